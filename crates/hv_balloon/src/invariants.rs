//! What holds after every event, in words and in code.

use crate::Device;
use crate::state::{Prepared, State};
use crate::target::Pursuit;

/// Asserts all invariants.
pub(crate) fn check(device: &Device) {
    device.books.check(device.is_inhibited);
    nothing_is_prepared_while_memory_leaves(device);
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
    let removes = device.removals.is_busy();
    match &device.state {
        State::Closing { discards, preparation, .. } => {
            let waits = !discards.is_empty() || preparation.is_some() || removes;
            assert!(waits, "closing waits for nothing");
        }
        State::Closed => assert!(!removes, "closed while memory is removed"),
        _ => assert!(device.removals.waiting.is_empty(), "a removal waits for nothing"),
    }
}

/// Else a worker with two threads could do one before the other.
fn nothing_is_prepared_while_memory_leaves(device: &Device) {
    let prepares = matches!(
        device.state,
        State::Preparing { .. } | State::Closing { preparation: Some(_), .. }
    );
    assert!(!prepares || !device.removals.is_busy(), "memory is prepared while some is removed");
    let adds = match device.state {
        State::Preparing { preparation, .. } => matches!(preparation.what, Prepared::Added(_)),
        _ => false,
    };
    assert!(!adds || device.removals.stuck.is_empty(), "memory is added while some is stuck");
}

/// There is no upper bound to check: a guest that turns up later may have an alignment with which
/// less can be added, and is told so when its turn comes.
fn targets_are_some_memory(device: &Device) {
    assert!(device.goal.is_none_or(|goal| !goal.target.is_zero()), "the target is no memory");
}

/// Else the device would sleep on an open target.
fn idle_means_nothing_to_do(device: &Device) {
    let waits_for_nothing =
        device.outbox.is_idle() && device.books.in_flight().is_zero() && !device.removals.is_busy();
    if let (State::Idle { .. }, Some(goal), true) = (&device.state, device.goal, waits_for_nothing)
    {
        let may_not_ask = device.is_inhibited && !device.excess_pages().is_zero();
        assert!(goal.pursuit != Pursuit::Open || may_not_ask, "idle with an open target");
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
            || !device.books.in_flight().is_zero()
            || device.removals.is_busy()
            || device.is_inhibited,
        "idle with an open target that nothing ends"
    );
}
