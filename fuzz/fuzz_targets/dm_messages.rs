//! See `tests/fuzz_bodies/src/dm_messages.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("dm_messages", data));
