//! bin/hvb
fn main() {}
