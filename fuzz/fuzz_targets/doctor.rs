//! See `tests/fuzz_bodies/src/doctor.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("doctor", data));
