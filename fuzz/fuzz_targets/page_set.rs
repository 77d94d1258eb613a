//! See `tests/fuzz_bodies/src/page_set.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("page_set", data));
