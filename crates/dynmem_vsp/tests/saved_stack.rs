//! Bus, rings and device are saved and restored together, by the embedding example for saved state.

#[path = "../examples/saved_state.rs"]
mod saved_state;

use guest_model::dynmem::Personality;
use saved_state::embed;

#[test]
fn the_example_runs() {
    saved_state::main();
}

#[test]
fn every_guest_is_resized_the_same_when_its_vmm_changes_after_every_message() {
    // Windows 7 and the host have no version of the bus in common.
    for guest in Personality::all().into_iter().filter(|guest| guest.name != "Windows 7") {
        let name = guest.name;
        let size = embed::resize(guest.clone()).map(|(_, size)| size);
        let (moved, vmms) = saved_state::resize(guest);
        assert_eq!(Some(moved), size, "{name}");
        assert!(vmms > 1, "{name}: {vmms}");
    }
}
