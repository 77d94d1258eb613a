//! See `tests/fuzz_bodies/src/virtio.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("virtio", data));
