//! See `tests/fuzz_bodies/src/qmp_lines.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_bodies::run("qmp_lines", data));
