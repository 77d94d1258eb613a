//! From target to transactions: what to do next, and when the end is reached.

use dynmem_protocol::Capabilities;
use page_range::PageCount;

use crate::region::{Region, Unanswered};
use crate::state::{Session, State};
use crate::target::{Goal, Pursuit, Refusal};
use crate::{Action, Device, Notice, StopReason, TargetError, Transaction};

impl Device {
    /// Whether `target` could be set now, whatever the guest is doing; the target itself if so. A
    /// guest that is not ready gets it when it is.
    ///
    /// # Errors
    /// [`TargetError`] with the limit.
    pub fn can_set_target(&self, target: PageCount) -> Result<PageCount, TargetError> {
        let maximum = self.maximum();
        if target.is_zero() {
            return Err(TargetError::Zero);
        }
        let capabilities = self.state.session().map(|session| session.capabilities);
        let cannot = |needed| capabilities.is_some_and(|have| !have.contains(needed));
        if target > maximum {
            let left = self.region.as_ref().map_or(PageCount::ZERO, Region::left);
            let is_there = target <= self.books.assigned().saturating_add(left);
            return Err(match is_there && cannot(Capabilities::HOT_ADD) {
                true => TargetError::CannotHotAdd { maximum },
                false => TargetError::AboveMaximum { requested: target, maximum },
            });
        }
        let present = self.books.present();
        if target < present && cannot(Capabilities::BALLOON) {
            return Err(TargetError::CannotBalloon { present });
        }
        Ok(target.align_up(self.books.unit()).unwrap_or(target).min(maximum))
    }

    /// The largest target that could be met: the memory the guest has and what can be added to it,
    /// as far as its capabilities are known.
    pub(crate) fn maximum(&self) -> PageCount {
        let addable = self.region.as_ref().map(|region| match self.state.session() {
            None => region.left(),
            Some(Session { capabilities, .. }) if capabilities.contains(Capabilities::HOT_ADD) => {
                region.addable(capabilities.hot_add_alignment())
            }
            Some(_) => PageCount::ZERO,
        });
        self.books.assigned().saturating_add(addable.unwrap_or_default())
    }

    pub(crate) fn take_target(&mut self, target: PageCount) {
        self.goal = Some(Goal::new(target));
        self.room_until = None;
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
            State::Ballooning { asked, deadline, .. } => {
                asked.sent(self.now);
                *deadline = from_now;
            }
            State::Unballooning { deadline, .. } => *deadline = from_now,
            State::HotAdding { range, since, deadline, .. } => {
                *since = Some(self.now);
                *deadline = self.now.saturating_add(crate::hot_add::patience(*range));
            }
            _ => {}
        }
        if let Some(late) = self.region.as_mut().and_then(|region| region.unanswered.as_mut()) {
            late.is_told = true;
        }
    }

    pub(crate) fn on_deadline(&mut self) {
        if self.room_until.is_some_and(|until| until <= self.now) {
            let lacks_pages = !self.owed_pages().is_zero();
            let what = if lacks_pages { Transaction::Unballoon } else { Transaction::Balloon };
            self.notify(Notice::TimedOut(what));
            return self.stop(StopReason::Timeout);
        }
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
                self.end_transaction(session);
            }
            State::HotAdding { session, range, since, .. } => {
                self.hot_add_timed_out(session, Unanswered { range, is_told: since.is_some() });
            }
            _ => {}
        }
    }

    /// Does all that can be done now.
    pub(crate) fn advance(&mut self) {
        while !self.is_inhibited
            && let Some((id, ranges)) = self.books.start_discard(&mut self.jobs)
        {
            self.act(Action::Discard { id, ranges });
        }
        if self.outbox.is_idle() {
            match self.state {
                State::Idle { session } => self.step(session),
                State::Unballooning { session, all_sent: false, .. } => self.return_pages(session),
                _ => {}
            }
        }
        self.wait_for_room();
        self.judge();
    }

    /// A guest that does not read its ring stops everything. The target waits for it no longer than
    /// for an answer.
    fn wait_for_room(&mut self) {
        let is_blocked = matches!(self.state, State::Idle { .. }) && !self.outbox.is_idle();
        let is_open = self.goal.is_some_and(Goal::is_open);
        let may_ask = !self.is_inhibited && !self.excess_pages().is_zero();
        let has_to_do = may_ask || !self.owed_pages().is_zero();
        self.room_until = (is_blocked && is_open && has_to_do)
            .then(|| self.room_until.unwrap_or(self.after(crate::BALLOON_TIMEOUT)));
    }

    /// Starts the next transaction, if one is called for.
    fn step(&mut self, session: Session) {
        let owed = self.owed_pages();
        if !owed.is_zero() {
            return self.grow(session, owed);
        }
        let excess = self.excess_pages();
        if excess.is_zero() || self.is_inhibited {
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
        if !excess.is_zero() && self.outbox.is_idle() && !self.is_inhibited {
            self.request_pages(session, excess, short_answers);
        }
    }

    /// Says what became of the target, once nothing under way can change it.
    pub(crate) fn judge(&mut self) {
        let busy = matches!(
            self.state,
            State::Ballooning { .. }
                | State::Unballooning { .. }
                | State::Preparing { .. }
                | State::HotAdding { .. }
        );
        let Some(Goal { target, pursuit }) = self.goal else { return };
        if busy || !self.books.in_flight().is_zero() {
            return;
        }
        let actual = self.books.actual();
        let verdict = match pursuit {
            Pursuit::Reached => return,
            // The size is right, but the guest has nothing from it.
            Pursuit::Stopping(StopReason::NotOnlined) => Pursuit::Stopped(StopReason::NotOnlined),
            Pursuit::Stopped(StopReason::NotOnlined) => return,
            _ if actual == target => Pursuit::Reached,
            Pursuit::Stopping(reason) => Pursuit::Stopped(reason),
            Pursuit::Open if self.books.present() == target => {
                let failed = !self.books.undiscarded().is_zero();
                let held = StopReason::HeldByHugePages;
                Pursuit::Stopped(if failed { StopReason::DiscardFailed } else { held })
            }
            Pursuit::Open | Pursuit::Stopped(_) => return,
        };
        self.goal = Some(Goal { target, pursuit: verdict });
        self.announce_size();
        if let Pursuit::Stopped(reason) = verdict {
            self.last_refusal = Some((target, Refusal::Stopped(reason)));
            self.notify(Notice::StoppedShort { target, actual, reason });
        } else {
            self.notify(Notice::TargetReached { actual });
        }
    }
}
