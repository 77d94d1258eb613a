//! See `tests/fuzz_bodies/src/hypercalls.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("hypercalls", data));
