//! From target to transactions: what to do next, and when the end is reached.

use dynmem_protocol::Capabilities;
use page_range::PageCount;

use crate::state::{Session, State};
use crate::target::{Goal, Pursuit};
use crate::{Action, Device, Notice, StopReason, TargetError, Transaction};

impl Device {
    /// Whether `target` could be set now, whatever the guest is doing; the target itself if so. A
    /// guest that is not ready gets it when it is.
    ///
    /// # Errors
    /// [`TargetError`] with the limit.
    pub fn can_set_target(&self, target: PageCount) -> Result<PageCount, TargetError> {
        let maximum = self.books.assigned();
        if target.is_zero() {
            Err(TargetError::Zero)
        } else if target > maximum {
            Err(TargetError::AboveMaximum { requested: target, maximum })
        } else {
            Ok(target)
        }
    }

    pub(crate) fn on_set_target(&mut self, target: PageCount) {
        match self.can_set_target(target) {
            Ok(target) => self.goal = Some(Goal::new(target)),
            Err(error) => return self.notify(Notice::TargetRefused(error)),
        }
        if target <= self.books.present() {
            self.books.retry_discards();
        }
        if let State::Pausing { session, .. } = self.state {
            self.state = State::Idle { session };
        }
    }

    /// The ring took a message: the guest's time to answer starts now.
    pub(crate) fn on_sent(&mut self) {
        self.outbox.sent();
        let from_now = self.after(crate::BALLOON_TIMEOUT);
        match &mut self.state {
            State::Ballooning { deadline, .. } => *deadline = from_now,
            State::Unballooning { deadline, .. } => *deadline = from_now,
            _ => {}
        }
    }

    pub(crate) fn on_deadline(&mut self) {
        if self.state.deadline().is_none_or(|deadline| self.now < deadline) {
            return;
        }
        match self.state {
            State::Settling { session, .. } => self.become_ready(session),
            State::Pausing { session, short_answers, .. } => self.ask_again(session, short_answers),
            State::Ballooning { session, .. } => {
                self.notify(Notice::TimedOut(Transaction::Balloon));
                self.end_transaction(session);
                if !self.excess_pages().is_zero() {
                    self.stop(StopReason::Timeout);
                }
            }
            State::Unballooning { session, .. } => {
                // The guest may have the pages and its answer be lost. They must not go twice.
                self.notify(Notice::TimedOut(Transaction::Unballoon));
                self.books.finish_return();
                self.end_transaction(session);
            }
            _ => {}
        }
    }

    /// Does all that can be done now.
    pub(crate) fn advance(&mut self) {
        while let Some((id, ranges)) = self.books.start_discard() {
            self.act(Action::Discard { id, ranges });
        }
        if self.outbox.is_idle() {
            match self.state {
                State::Idle { session } => self.step(session),
                State::Unballooning { session, all_sent: false, .. } => self.return_pages(session),
                _ => {}
            }
        }
        self.judge();
    }

    /// Starts the next transaction, if one is called for.
    fn step(&mut self, session: Session) {
        if !self.owed_pages().is_zero() {
            // What is still being discarded is returned when that has ended.
            if !self.books.returnable().is_zero() {
                self.return_pages(session);
            }
            return;
        }
        let excess = self.excess_pages();
        if excess.is_zero() {
            return;
        }
        if session.capabilities.contains(Capabilities::BALLOON) {
            self.request_pages(session, excess, 0);
        } else {
            self.stop(StopReason::NoBalloonCapability);
        }
    }

    fn ask_again(&mut self, session: Session, short_answers: u32) {
        self.state = State::Idle { session };
        let excess = self.excess_pages();
        if !excess.is_zero() && self.outbox.is_idle() {
            self.request_pages(session, excess, short_answers);
        }
    }

    /// Says what became of the target, once nothing under way can change it.
    fn judge(&mut self) {
        let busy = matches!(self.state, State::Ballooning { .. } | State::Unballooning { .. });
        let Some(Goal { target, pursuit }) = self.goal else { return };
        if busy || !self.books.in_flight().is_zero() {
            return;
        }
        let actual = self.books.actual();
        let verdict = match pursuit {
            Pursuit::Reached => return,
            _ if actual == target => Pursuit::Reached,
            Pursuit::Stopping(reason) => Pursuit::Stopped(reason),
            Pursuit::Open if self.books.present() == target => {
                Pursuit::Stopped(StopReason::DiscardFailed)
            }
            Pursuit::Open | Pursuit::Stopped(_) => return,
        };
        self.goal = Some(Goal { target, pursuit: verdict });
        self.announce_size();
        if let Pursuit::Stopped(reason) = verdict {
            self.notify(Notice::StoppedShort { target, actual, reason });
        } else {
            self.notify(Notice::TargetReached { actual });
        }
    }
}
