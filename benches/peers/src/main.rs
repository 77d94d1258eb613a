//! The same guest under `hvb` and under QEMU's balloons.

fn main() {}
