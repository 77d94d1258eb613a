//! See `tests/fuzz_bodies/src/balance_recording.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("balance_recording", data));
