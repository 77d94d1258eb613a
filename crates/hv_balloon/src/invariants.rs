//! The invariants of the device, checked after every event.

use crate::Device;
use crate::link::Link;
use crate::machine::Machine;
use crate::session::{Prepared, Session};
use crate::target::Pursuit;

/// Asserts all invariants.
pub(crate) fn check(device: &Device) {
    let Device { link, machine } = device;
    machine.ledger.check(machine.is_inhibited);
    nothing_is_prepared_while_memory_leaves(link, machine);
    without_a_session_all_pages_are_the_guests(link, machine);
    closing_waits_for_something(link, machine);
    // A target has no upper bound to check: a guest that connects later may have an alignment with
    // which less memory can be added, and its target then stops short.
    assert!(machine.goal.is_none_or(|goal| !goal.target.is_zero()), "the target is zero");
    if let Some(session) = link.session().filter(|session| session.is_idle()) {
        idle_means_nothing_to_do(session, machine);
        open_targets_wait_for_something_that_ends(session, machine);
    }
}

fn without_a_session_all_pages_are_the_guests(link: &Link, machine: &Machine) {
    let is_right = link.session().is_some() || machine.ledger.is_untouched();
    assert!(is_right, "pages are out in {}", link.name());
}

fn closing_waits_for_something(link: &Link, machine: &Machine) {
    let removes = machine.removals.is_busy();
    match link {
        Link::Closing(closing) => {
            assert!(closing.has_jobs() || removes, "closing waits for nothing");
        }
        Link::Closed => assert!(!removes, "closed while memory is removed"),
        Link::Handshake(_) | Link::Ready(_) => {
            let waits = !machine.removals.waiting.is_empty();
            let prepares = link.session().is_some_and(|session| session.preparation().is_some());
            assert!(!waits || prepares, "a removal waits for nothing");
        }
    }
}

/// Otherwise a worker with two threads could do one before the other.
fn nothing_is_prepared_while_memory_leaves(link: &Link, machine: &Machine) {
    let preparation = link.session().and_then(Session::preparation);
    let prepares =
        preparation.is_some() || link.closing().is_some_and(|closing| closing.is_preparing());
    assert!(!prepares || !machine.removals.is_busy(), "memory is prepared while some is removed");
    let adds = preparation.is_some_and(|at| matches!(at.what, Prepared::Added(_)));
    assert!(!adds || machine.removals.stuck.is_empty(), "memory is added while some is stuck");
}

/// Otherwise the device would sleep on an open target.
fn idle_means_nothing_to_do(session: &Session, machine: &Machine) {
    let Machine { ledger, removals, .. } = machine;
    let waits = !session.outbox().is_idle() || !ledger.in_flight().is_zero() || removals.is_busy();
    if let (Some(goal), false) = (machine.goal, waits) {
        let may_not_ask = !machine.may_ask() && !machine.excess_pages().is_zero();
        let waits_for_guest = matches!(goal.pursuit, Pursuit::Overdue(_))
            || session.looks_for_use()
            || machine.awaits_report();
        assert!(!goal.is_open() || may_not_ask || waits_for_guest, "idle with an open target");
        assert!(
            !matches!(goal.pursuit, Pursuit::Stopping(_)),
            "idle with a stop that was not announced"
        );
        assert!(
            goal.target <= ledger.present()
                || ((goal.is_given_up() || waits_for_guest) && ledger.returnable().is_zero()),
            "idle with pages the guest should have"
        );
    }
}

/// Otherwise the operator could wait for a silent guest for ever and hear nothing.
fn open_targets_wait_for_something_that_ends(session: &Session, machine: &Machine) {
    assert!(
        machine.goal.is_none_or(|goal| goal.pursuit != Pursuit::Open)
            || session.deadline().is_some()
            || !machine.ledger.in_flight().is_zero()
            || machine.removals.is_busy()
            || machine.is_inhibited,
        "idle with an open target that nothing ends"
    );
}
