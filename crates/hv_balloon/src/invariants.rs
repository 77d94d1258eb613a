//! What holds after every event, in words and in code.

use crate::Device;
use crate::state::State;
use crate::target::Pursuit;

/// Asserts all invariants.
pub(crate) fn check(device: &Device) {
    device.books.check();
    without_a_session_all_pages_are_the_guests(device);
    closing_waits_for_something(device);
    targets_are_some_memory(device);
    idle_means_nothing_to_do(device);
    open_targets_wait_for_something_that_ends(device);
}

fn without_a_session_all_pages_are_the_guests(device: &Device) {
    assert!(
        device.state.session().is_some() || device.books.is_untouched(),
        "pages are out in {}",
        device.state.name()
    );
}

fn closing_waits_for_something(device: &Device) {
    if let State::Closing { discards, preparation, .. } = &device.state {
        assert!(!discards.is_empty() || preparation.is_some(), "closing waits for nothing");
    }
}

/// There is no upper bound to check: a guest that turns up later may have an alignment with which
/// less can be added, and is told so when its turn comes.
fn targets_are_some_memory(device: &Device) {
    assert!(device.goal.is_none_or(|goal| !goal.target.is_zero()), "the target is no memory");
}

/// Else the device would sleep on an open target.
fn idle_means_nothing_to_do(device: &Device) {
    let waits_for_nothing = device.outbox.is_idle() && device.books.in_flight().is_zero();
    if let (State::Idle { .. }, Some(goal), true) = (&device.state, device.goal, waits_for_nothing)
    {
        assert!(goal.pursuit != Pursuit::Open, "idle with an open target");
        assert!(
            !matches!(goal.pursuit, Pursuit::Stopping(_)),
            "idle with a stop that was not announced"
        );
        assert!(
            goal.target <= device.books.present()
                || (goal.is_given_up() && device.books.returnable().is_zero()),
            "idle with pages the guest should have"
        );
    }
}

/// Whatever the guest does not do.
fn open_targets_wait_for_something_that_ends(device: &Device) {
    let is_open = device.goal.is_some_and(|goal| goal.pursuit == Pursuit::Open);
    let is_idle = matches!(device.state, State::Idle { .. });
    assert!(
        !(is_open && is_idle)
            || device.next_deadline().is_some()
            || !device.books.in_flight().is_zero(),
        "idle with an open target that nothing ends"
    );
}
