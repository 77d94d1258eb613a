//! See `tests/fuzz_bodies/src/saved_state.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("saved_state", data));
