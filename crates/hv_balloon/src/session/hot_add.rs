//! Hot add: the offer of new memory, and the guest's answer.

use core::time::Duration;

use dynmem_protocol::{
    Capabilities, HotAddRequest, HotAddResponse, HotAddResult, MessageType, RangeWord,
};
use page_range::{PageCount, PageRange};

use super::{Activity, Session};
use crate::action::Prepare;
use crate::config::is_linux;
use crate::machine::Machine;
use crate::placement::Request;
use crate::{GuestFault, Notice, StopReason, Transaction};

/// The least time a guest has to answer a hot-add request before that is announced as overdue.
pub const HOT_ADD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long Linux waits for each block of memory to be brought online before it goes on without it
/// (Linux `hv_balloon.c`), less a margin for the difference between clocks.
const ONLINE_WAIT: Duration = Duration::from_millis(4900);

/// The smallest block for which Linux waits.
const LINUX_BLOCK: PageCount = PageCount::from_bytes(128 << 20);

/// How long a guest may take to add `range` before that is announced as overdue.
pub(super) fn patience(range: PageRange) -> Duration {
    HOT_ADD_TIMEOUT.saturating_add(online_waits(range, LINUX_BLOCK).saturating_mul(2))
}

/// The least time that Linux takes if no block of `range` is brought online.
fn online_waits(range: PageRange, alignment: PageCount) -> Duration {
    let block = alignment.max(LINUX_BLOCK);
    let blocks = range.count().get().checked_div(block.get()).unwrap_or(0).max(1);
    ONLINE_WAIT.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX))
}

/// Memory offered to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) range: PageRange,
    /// When the request was put into the ring; until then, the guest does not know of it.
    pub(super) since: Option<Duration>,
    /// When the answer is overdue; `None` once it is.
    pub(super) deadline: Option<Duration>,
}

impl Offer {
    fn unsent(machine: &Machine, range: PageRange) -> Self {
        Self { range, since: None, deadline: Some(machine.after(patience(range))) }
    }

    /// The request is in the ring: the guest's time starts now.
    pub(super) fn sent(self, machine: &Machine) -> Self {
        Self { since: Some(machine.now), ..Self::unsent(machine, self.range) }
    }

    pub(super) const fn is_overdue(&self) -> bool {
        self.deadline.is_none()
    }

    /// Whether the guest may be using the memory.
    pub(super) const fn is_told(&self) -> bool {
        self.since.is_some()
    }
}

impl Session {
    /// Where new memory goes, for a guest that lacks `missing` pages; `None` while memory leaves, and
    /// while it is not known whether the guest has and uses what was added before.
    ///
    /// # Errors
    /// The reason why this guest gets no new memory.
    pub(super) fn plan_new_memory(
        &self,
        machine: &mut Machine,
        missing: PageCount,
    ) -> Result<Option<(PageRange, Prepare)>, StopReason> {
        if !self.can(Capabilities::HOT_ADD) {
            return Err(StopReason::NoHotAddCapability);
        }
        if machine.placement.is_none() {
            return Err(StopReason::NoAddressSpace);
        }
        if self.late.is_some() {
            return Err(StopReason::HotAddTimeout);
        }
        if self.unused.is_some() || machine.awaits_report() {
            return Ok(None);
        }
        // What the guest may still reach would be a second way to new memory.
        machine.removals.retry();
        if machine.begin_removals() {
            return Ok(None);
        }
        let request = Request {
            missing,
            of_guest: self.guest_alignment(),
            // A guest that cannot balloon could not give back an excess.
            is_exact: !self.can(Capabilities::BALLOON),
            is_first: !self.is_proven,
        };
        let plan = machine.placement.as_mut().and_then(|placement| placement.plan(request));
        plan.map(Some).ok_or(match machine.ledger.unconfirmed() {
            PageCount::ZERO => StopReason::NoAddressSpace,
            _ => StopReason::Unconfirmed,
        })
    }

    /// Offers new memory to the guest, unless a new target has made it unnecessary.
    pub(super) fn offer_memory(&mut self, machine: &mut Machine, range: PageRange) -> Activity {
        let wanted = !machine.missing_pages().is_zero()
            && machine.goal.is_some_and(|goal| !goal.is_given_up());
        let word = RangeWord::new(range).ok().filter(|_| wanted);
        let request = word.map(|range| HotAddRequest { range, region: Some(range) });
        let id = self.transaction_id;
        let sent = request
            .map(|request| self.outbox.push(|out| request.emit_into(id, out)))
            .is_some_and(|pushed| pushed.is_ok());
        if !sent {
            machine.remove_memory(range);
            return Activity::Idle;
        }
        machine.heard();
        machine.ledger.forget_foreign(range);
        self.status_before = self.fresh_status;
        Activity::HotAdding(Offer::unsent(machine, range))
    }

    /// Handles an answer in time.
    pub(super) fn took(
        &mut self,
        machine: &mut Machine,
        range: PageRange,
        response: HotAddResponse,
        since: Duration,
    ) -> Activity {
        let took = machine.now.saturating_sub(since);
        self.end_transaction(machine);
        self.take_answer(machine, range, response, Some(took))
    }

    /// The guest answers an offer that was given up, or what nobody asked.
    pub(super) fn took_late(
        &mut self,
        machine: &mut Machine,
        response: HotAddResponse,
        activity: Activity,
    ) -> Activity {
        match self.late.take_if(|late| late.is_told()) {
            Some(late) => match self.take_answer(machine, late.range, response, None) {
                pausing if activity == Activity::Idle => pausing,
                _ => activity,
            },
            None => self.out_of_state(machine, MessageType::HOT_ADD_RESPONSE, activity),
        }
    }

    fn take_answer(
        &mut self,
        machine: &mut Machine,
        range: PageRange,
        response: HotAddResponse,
        took: Option<Duration>,
    ) -> Activity {
        machine.heard();
        let alignment = machine.alignment(self.guest_alignment());
        let (offered, added) = (range.count(), response.pages);
        // The guest has access to all of a block, so it counts as a whole.
        let blocks = added.align_up(alignment).unwrap_or(offered).min(offered);
        if added != blocks {
            machine.fault(GuestFault::OddHotAdd { offered, added, alignment });
        }
        let taken = PageRange::new(range.start(), blocks).ok();
        if let Some(taken) = taken {
            machine.keep_added(taken);
        }
        let rest_start = taken.map_or(range.start(), PageRange::end);
        if let Some(range) = PageRange::between(rest_start, range.end()) {
            // Nothing is removed while memory is prepared: one job must not overtake the other.
            if self.preparation().is_some() {
                machine.removals.add(range);
            } else {
                machine.remove_memory(range);
            }
            return match (taken, response.result) {
                (Some(_), _) => self.try_again(machine, StopReason::HotAddPartial),
                // A late refusal does not concern what is done for another target meanwhile. That would
                // be given up, but not before a guest has answered that may never do so.
                (None, HotAddResult::SUCCESS) if took.is_none() && self.is_busy() => Activity::Idle,
                (None, HotAddResult::SUCCESS) => {
                    machine.stop(StopReason::HotAddRefused);
                    Activity::Idle
                }
                (None, _) => self.try_again(machine, StopReason::HotAddFailed),
            };
        }
        self.failures = 0;
        let is_quick = took.is_some_and(|took| took < online_waits(range, alignment));
        self.is_proven = is_quick || !is_linux(self.guest_os_id);
        if !self.is_proven {
            self.doubt_use(machine, range.count());
        }
        Activity::Idle
    }

    /// The guest is slow, or stands still.
    pub(super) fn hot_add_overdue(machine: &mut Machine, offer: Offer) -> Activity {
        machine.notify(Notice::TimedOut(Transaction::HotAdd));
        machine.overdue(StopReason::HotAddTimeout);
        Activity::HotAdding(Offer { deadline: None, ..offer })
    }

    /// The operator wants something else of a guest that has not answered in time. The guest keeps the
    /// memory within reach, since it may be using it.
    pub(super) fn offered_in_vain(&mut self, machine: &mut Machine, offer: Offer) -> Activity {
        self.late = Some(offer);
        self.end_transaction(machine)
    }
}
