//! See `tests/fuzz_bodies/src/hvb_options.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("hvb_options", data));
