//! What holds after every event, in words and in code.

use page_range::PageCount;

use crate::Device;
use crate::region::Region;
use crate::state::State;
use crate::target::Pursuit;

/// Asserts all invariants.
pub(crate) fn check(device: &Device) {
    device.books.check();
    without_a_session_all_pages_are_the_guests(device);
    pages_are_unconfirmed_only_while_unballooning(device);
    closing_waits_for_something(device);
    targets_can_be_reached(device);
    idle_means_nothing_to_do(device);
}

fn without_a_session_all_pages_are_the_guests(device: &Device) {
    assert!(
        device.state.session().is_some() || device.books.is_untouched(),
        "pages are out in {}",
        device.state.name()
    );
}

fn pages_are_unconfirmed_only_while_unballooning(device: &Device) {
    assert!(
        matches!(device.state, State::Unballooning { .. }) || !device.books.is_returning(),
        "pages are on their way back in {}",
        device.state.name()
    );
}

fn closing_waits_for_something(device: &Device) {
    if let State::Closing { discards, preparation } = &device.state {
        assert!(!discards.is_empty() || preparation.is_some(), "closing waits for nothing");
    }
}

/// A guest that turns up later may have an alignment with which less can be added.
fn targets_can_be_reached(device: &Device) {
    if let Some(goal) = device.goal {
        assert!(!goal.target.is_zero(), "the target is no memory");
        let to_add = device.region.as_ref().map_or(PageCount::ZERO, Region::left);
        let most = device.books.assigned().saturating_add(to_add);
        assert!(
            goal.target <= most || goal.is_given_up() || device.state.session().is_none(),
            "the target is above all memory there is"
        );
    }
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
