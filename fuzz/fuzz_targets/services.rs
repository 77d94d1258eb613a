//! See `tests/fuzz_bodies/src/services.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("services", data));
