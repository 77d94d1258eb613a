//! Bus, rings and device together, run by the code that shows embedders how.

#[path = "../examples/embed.rs"]
mod embed;

#[test]
fn a_guest_connects_shrinks_grows_and_leaves() {
    embed::main();
}
