//! The choice of the next transaction, from the target and the guest's capabilities.

use dynmem_protocol::Capabilities;
use page_range::PageCount;

use super::{Activity, BALLOON_TIMEOUT, Input, MAX_UNBALLOON_MESSAGE, Prepared, Session};
use crate::action::Prepare;
use crate::machine::Machine;
use crate::{Notice, StopReason, Transaction};

impl Session {
    /// Starts whatever can start now.
    #[inline]
    pub(crate) fn advance(&mut self, machine: &mut Machine) {
        self.take_in(machine, Input::Step);
        self.wait_for_room(machine);
    }

    /// Handles a deadline.
    pub(crate) fn on_deadline(&mut self, machine: &mut Machine) {
        if self.room_until.is_some_and(|until| until <= machine.now) {
            let lacks_pages = !machine.owed_pages().is_zero();
            let what = if lacks_pages { Transaction::Unballoon } else { Transaction::Balloon };
            machine.notify(Notice::TimedOut(what));
            machine.stop(StopReason::Timeout);
        } else if self.activity.deadline().is_some_and(|deadline| deadline <= machine.now) {
            self.take_in(machine, Input::Due);
        }
    }

    /// Limits the wait for room in the ring. A guest that does not read its ring blocks everything;
    /// the target waits for it no longer than for an answer.
    fn wait_for_room(&mut self, machine: &Machine) {
        if !self.is_idle() || self.outbox.is_idle() || !machine.has_open_target() {
            self.room_until = None;
            return;
        }
        let until = self.room_until.unwrap_or(machine.after(BALLOON_TIMEOUT));
        self.room_until = machine.has_to_do().then_some(until);
    }

    /// Begins the next transaction, if one is called for.
    pub(super) fn begin_next(&mut self, machine: &mut Machine) -> Activity {
        let owed = machine.owed_pages();
        if !owed.is_zero() {
            return self.grow(machine, owed);
        }
        if self.can(Capabilities::BALLOON) {
            return self.request_pages(machine, machine.excess_pages(), 0);
        }
        machine.stop(StopReason::NoBalloonCapability);
        Activity::Idle
    }

    /// Asks again after a short answer and the pause that follows it.
    pub(super) fn ask_again(&mut self, machine: &Machine, short_answers: u32) -> Activity {
        let excess = machine.excess_pages();
        if excess.is_zero() || !self.outbox.is_idle() || machine.is_inhibited {
            return Activity::Idle;
        }
        self.request_pages(machine, excess, short_answers)
    }

    /// Gives the guest `owed` pages, or some of them; pages that it gave before come first.
    fn grow(&mut self, machine: &mut Machine, owed: PageCount) -> Activity {
        if !machine.ledger.returnable().is_zero() {
            return self.return_pages(machine);
        }
        if machine.goal.is_none_or(|goal| goal.is_given_up()) {
            return Activity::Idle;
        }
        // Nothing is prepared during a removal: one job must not overtake the other.
        if machine.removals.is_busy() {
            return Activity::Idle;
        }
        if let Some(ranges) = machine.ledger.begin_provide(owed.min(MAX_UNBALLOON_MESSAGE)) {
            return Self::prepare(machine, Prepared::Returned, Prepare::Return(ranges));
        }
        // Pages still being discarded are returned when that has ended; memory missing beyond those
        // need not wait.
        let missing = machine.missing_pages();
        if missing.is_zero() {
            return Activity::Idle;
        }
        match self.plan_new_memory(machine, missing) {
            Ok(Some((range, what))) => Self::prepare(machine, Prepared::Added(range), what),
            Ok(None) => Activity::Idle,
            Err(reason) => {
                machine.stop(reason);
                Activity::Idle
            }
        }
    }
}
