//! The choice of the next transaction, from the target and the guest's capabilities.

use core::time::Duration;

use dynmem_protocol::Capabilities;
use page_range::PageCount;

use super::{Activity, BALLOON_TIMEOUT, Input, MAX_UNBALLOON_MESSAGE, Prepared, Session, Unused};
use crate::action::Prepare;
use crate::machine::Machine;
use crate::{Notice, StopReason, Transaction};

/// A request that is called for, and the guest's room in its ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Room {
    /// There is room, or nothing to ask.
    #[default]
    Free,
    /// There is none. The guest may take this long to make some.
    Until(Duration),
    /// There was none in time.
    Overdue,
}

impl Room {
    pub(super) const fn deadline(self) -> Option<Duration> {
        match self {
            Self::Until(until) => Some(until),
            Self::Free | Self::Overdue => None,
        }
    }
}

impl Session {
    /// Starts whatever can start now.
    #[inline]
    pub(crate) fn advance(&mut self, machine: &mut Machine) {
        self.take_in(machine, Input::Step);
        self.wait_for_room(machine);
    }

    /// Handles a deadline.
    pub(crate) fn on_deadline(&mut self, machine: &mut Machine) {
        if self.room.deadline().is_some_and(|until| until <= machine.now) {
            self.room = Room::Overdue;
            let lacks_pages = !machine.owed_pages().is_zero();
            let what = if lacks_pages { Transaction::Unballoon } else { Transaction::Balloon };
            machine.notify(Notice::TimedOut(what));
            machine.overdue(StopReason::Timeout);
        } else if self.unused.and_then(Unused::deadline).is_some_and(|until| until <= machine.now) {
            self.unused = None;
        } else if self.confirmed_by.is_some_and(|until| until <= machine.now) {
            self.confirmed_by = None;
            machine.report_overdue();
        } else if self.activity.deadline().is_some_and(|deadline| deadline <= machine.now) {
            self.take_in(machine, Input::Due);
        }
    }

    /// A guest that does not read its ring stops everything. The operator waits for it no longer than
    /// for an answer.
    fn wait_for_room(&mut self, machine: &mut Machine) {
        let is_blocked = self.is_idle() && !self.outbox.is_idle();
        if !is_blocked || !machine.has_open_target() || !machine.has_to_do() {
            if self.room == Room::Overdue {
                machine.heard();
            }
            self.room = Room::Free;
        } else if self.room == Room::Free {
            self.room = Room::Until(machine.after(BALLOON_TIMEOUT));
        }
    }

    /// Begins the next transaction, if one is called for.
    pub(super) fn begin_next(&mut self, machine: &mut Machine) -> Activity {
        let owed = machine.owed_pages();
        if !owed.is_zero() {
            return self.grow(machine, owed);
        }
        if self.can(Capabilities::BALLOON) {
            let excess = machine.excess_pages();
            return self.request_pages(machine, excess, 0);
        }
        machine.stop(StopReason::NoBalloonCapability);
        Activity::Idle
    }

    /// Asks again after a short answer and the pause that follows it.
    pub(super) fn ask_again(&mut self, machine: &mut Machine, short_answers: u32) -> Activity {
        let excess = machine.excess_pages();
        let may_ask = machine.may_ask() && self.can(Capabilities::BALLOON);
        if excess.is_zero() || !self.outbox.is_idle() || !may_ask {
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
            // The answer to that offer is still to come.
            Err(StopReason::HotAddTimeout) => {
                machine.overdue(StopReason::HotAddTimeout);
                Activity::Idle
            }
            Err(reason) => {
                machine.stop(reason);
                Activity::Idle
            }
        }
    }
}
