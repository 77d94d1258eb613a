//! See `tests/fuzz_bodies/src/boot.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("boot", data));
