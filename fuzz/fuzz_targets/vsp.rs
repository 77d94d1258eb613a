//! See `tests/fuzz_bodies/src/vsp.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("vsp", data));
