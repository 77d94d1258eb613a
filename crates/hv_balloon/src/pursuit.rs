//! Progress towards the target, and its outcome.

use dynmem_protocol::Capabilities;
use page_range::PageCount;

use crate::machine::Machine;
use crate::placement::HotAddPlacement;
use crate::target::{Goal, Pursuit, Refusal};
use crate::{Notice, StopReason, TargetError};

impl Machine {
    /// Returns the target that would be set. `capabilities` is `None` until a guest has reported
    /// them.
    pub(crate) fn can_set_target(
        &self,
        target: PageCount,
        capabilities: Option<Capabilities>,
    ) -> Result<PageCount, TargetError> {
        let maximum = self.maximum(capabilities);
        if target.is_zero() {
            return Err(TargetError::Zero);
        }
        let cannot = |needed| capabilities.is_some_and(|have| !have.contains(needed));
        if target > maximum {
            let left = self.placement.as_ref().map_or(PageCount::ZERO, HotAddPlacement::left);
            let is_there = target <= self.ledger.known().saturating_add(left);
            let unconfirmed = self.ledger.unconfirmed();
            return Err(if is_there && cannot(Capabilities::HOT_ADD) {
                TargetError::CannotHotAdd { maximum }
            } else if target <= maximum.saturating_add(unconfirmed) {
                TargetError::Unconfirmed { maximum, unconfirmed }
            } else {
                TargetError::AboveMaximum { requested: target, maximum }
            });
        }
        let present = self.ledger.present();
        if target < present && cannot(Capabilities::BALLOON) {
            return Err(TargetError::CannotBalloon { present });
        }
        Ok(target.align_up(self.ledger.unit()).unwrap_or(target).min(maximum))
    }

    pub(crate) fn take_target(&mut self, target: PageCount) {
        self.goal = Some(Goal::new(target));
        if target <= self.ledger.present() {
            self.ledger.retry_discards();
        }
    }

    /// Whether the device still pursues the target.
    pub(crate) fn has_open_target(&self) -> bool {
        self.goal.is_some_and(Goal::is_open)
    }

    /// Gives up the target until one is set again.
    pub(crate) fn stop(&mut self, reason: StopReason) {
        if let Some(goal) = &mut self.goal
            && !goal.is_given_up()
        {
            goal.pursuit = Pursuit::Stopping(reason);
        }
    }

    /// The guest is slow, or stands still: says so once, and goes on when it does its part.
    pub(crate) fn overdue(&mut self, reason: StopReason) {
        let actual = self.ledger.actual();
        let Some(goal) = &mut self.goal else { return };
        let Goal { target, pursuit: Pursuit::Open, told } = *goal else { return };
        if actual == target {
            goal.pursuit = Pursuit::Reached;
        } else {
            goal.pursuit = Pursuit::Overdue(reason);
            goal.told.overdue = true;
        }
        if actual == target || !told.overdue {
            self.announce_size();
            self.announce_end(target, reason);
        }
    }

    /// The guest reports that it does not use what it added, whatever its size.
    pub(crate) fn not_onlined(&mut self) {
        let Some(goal) = &mut self.goal else { return };
        if let Pursuit::Open | Pursuit::Reached = goal.pursuit {
            let (target, was_told) = (goal.target, goal.told.unused);
            goal.pursuit = Pursuit::Overdue(StopReason::NotOnlined);
            goal.told.unused = true;
            if !was_told {
                self.announce_stop(target, StopReason::NotOnlined);
            }
        }
    }

    /// The guest did what it was waited for.
    pub(crate) fn heard(&mut self) {
        self.no_longer_overdue(|reason| reason != StopReason::NotOnlined);
    }

    /// The guest uses the memory that it added, as far as is known.
    pub(crate) fn onlined(&mut self) {
        self.no_longer_overdue(|reason| reason == StopReason::NotOnlined);
    }

    fn no_longer_overdue(&mut self, by: impl FnOnce(StopReason) -> bool) {
        if let Some(goal) = &mut self.goal
            && let Pursuit::Overdue(reason) = goal.pursuit
            && by(reason)
        {
            goal.pursuit = Pursuit::Open;
        }
    }

    /// Pages that the guest has above an open target.
    pub(crate) fn excess_pages(&self) -> PageCount {
        match self.goal {
            Some(goal) if goal.is_open() => self.ledger.present().saturating_sub(goal.target),
            _ => PageCount::ZERO,
        }
    }

    /// Pages that the guest lacks to reach its target, whether or not they can be returned yet.
    pub(crate) fn owed_pages(&self) -> PageCount {
        self.goal.map_or(PageCount::ZERO, |goal| goal.target.saturating_sub(self.ledger.present()))
    }

    /// Whether the guest may be asked for pages.
    #[inline]
    pub(crate) fn may_ask(&self) -> bool {
        !self.is_inhibited && !self.awaits_report()
    }

    /// Whether there are pages to give to the guest or to request from it.
    #[inline]
    pub(crate) fn has_to_do(&self) -> bool {
        (self.may_ask() && !self.excess_pages().is_zero()) || !self.owed_pages().is_zero()
    }

    /// Pages that the guest would lack to reach its target even if it had all the RAM it knows.
    pub(crate) fn missing_pages(&self) -> PageCount {
        self.goal.map_or(PageCount::ZERO, |goal| goal.target.saturating_sub(self.ledger.known()))
    }

    /// Announces the outcome of the target once nothing under way can change it. `is_busy` means
    /// that the session has a transaction or a preparation under way.
    pub(crate) fn judge(&mut self, is_busy: bool) {
        let Some(Goal { target, pursuit, told }) = self.goal else { return };
        if is_busy || !self.ledger.in_flight().is_zero() {
            return;
        }
        let actual = self.ledger.actual();
        let verdict = match pursuit {
            Pursuit::Reached => return,
            // The size may be another one.
            Pursuit::Open | Pursuit::Overdue(_) if self.awaits_report() => return,
            // The size is right, but the guest has nothing from it.
            Pursuit::Overdue(StopReason::NotOnlined) => return,
            _ if actual == target => Pursuit::Reached,
            Pursuit::Stopping(reason) => Pursuit::Stopped(reason),
            Pursuit::Open | Pursuit::Overdue(_) if self.ledger.present() == target => {
                let failed = !self.ledger.undiscarded().is_zero();
                let held = StopReason::HeldByHugePages;
                Pursuit::Stopped(if failed { StopReason::DiscardFailed } else { held })
            }
            Pursuit::Open | Pursuit::Overdue(_) | Pursuit::Stopped(_) => return,
        };
        self.goal = Some(Goal { target, pursuit: verdict, told });
        self.announce_size();
        match verdict {
            Pursuit::Stopped(reason) => self.announce_stop(target, reason),
            Pursuit::Open | Pursuit::Overdue(_) | Pursuit::Stopping(_) | Pursuit::Reached => {
                self.notify(Notice::TargetReached { actual });
            }
        }
    }

    /// Announces a stop that waited for the last discard, because the session ends.
    pub(crate) fn announce_stopping(&mut self) {
        if let Some(Goal { target, pursuit: Pursuit::Stopping(reason), .. }) = self.goal {
            self.announce_end(target, reason);
        }
    }

    /// Drops a target that was reached or given up, since it does not concern the next guest.
    pub(crate) fn forget_what_is_done(&mut self) {
        self.goal = self.goal.filter(|goal| goal.is_open());
    }

    /// Drops the target because the machine was reset.
    pub(crate) fn drop_target(&mut self) {
        let Some(Goal { target, pursuit, .. }) = self.goal.take() else { return };
        match pursuit {
            Pursuit::Open => self.announce_end(target, StopReason::Reset),
            Pursuit::Stopping(reason) => self.announce_end(target, reason),
            Pursuit::Overdue(_) | Pursuit::Stopped(_) | Pursuit::Reached => {}
        }
    }

    /// Announces the outcome of a target that is no longer pursued, with the current size: pages
    /// still being discarded go back to the guest.
    fn announce_end(&mut self, target: PageCount, reason: StopReason) {
        let actual = self.ledger.actual();
        if actual == target {
            self.notify(Notice::TargetReached { actual });
        } else {
            self.announce_stop(target, reason);
        }
    }

    fn announce_stop(&mut self, target: PageCount, reason: StopReason) {
        self.last_refusal = Some((target, Refusal::Stopped(reason)));
        let actual = self.ledger.actual();
        self.notify(Notice::StoppedShort { target, actual, reason });
    }
}
