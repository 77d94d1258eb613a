//! tests/guest_agent
fn main() {}
