//! See `tests/fuzz_bodies/src/vmbus_messages.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("vmbus_messages", data));
