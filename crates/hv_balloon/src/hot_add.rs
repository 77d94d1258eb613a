//! New memory for the guest, and discarded memory made ready to go back.

use core::time::Duration;

use dynmem_protocol::{
    Capabilities, HotAddRequest, HotAddResponse, HotAddResult, MessageType, RangeWord,
};
use page_range::{PageCount, PageRange};

use crate::action::Prepare;
use crate::config::is_linux;
use crate::region::Unanswered;
use crate::state::{Preparation, Prepared, Session, State};
use crate::{Action, Device, GuestFault, MAX_UNBALLOON_MESSAGE, Notice, StopReason, Transaction};

/// The least time a guest has to answer a hot-add request.
pub const HOT_ADD_TIMEOUT: Duration = Duration::from_secs(60);

/// Linux waits so long for each block of memory to be brought online before it goes on without
/// (Linux `hv_balloon.c`), less what clocks may differ.
const ONLINE_WAIT: Duration = Duration::from_millis(4900);

/// The smallest block for which Linux waits.
const LINUX_BLOCK: PageCount = PageCount::from_bytes(128 << 20);

/// How long a guest may take to add `range`.
pub(crate) fn patience(range: PageRange) -> Duration {
    HOT_ADD_TIMEOUT.saturating_add(online_waits(range, LINUX_BLOCK).saturating_mul(2))
}

/// How long Linux takes at least when no block of `range` is brought online.
fn online_waits(range: PageRange, alignment: PageCount) -> Duration {
    let block = alignment.max(LINUX_BLOCK);
    let blocks = range.count().get().checked_div(block.get()).unwrap_or(0).max(1);
    ONLINE_WAIT.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX))
}

impl Device {
    /// Gives the guest `owed` pages, or some of them: those it gave before first.
    pub(crate) fn grow(&mut self, session: Session, owed: PageCount) {
        if !self.books.returnable().is_zero() {
            return self.return_pages(session);
        }
        if self.goal.is_none_or(|goal| goal.is_given_up()) {
            return;
        }
        // Nothing is prepared while memory leaves: one job must not overtake the other.
        if self.removals.is_busy() {
            return;
        }
        if let Some(ranges) = self.books.begin_provide(owed.min(MAX_UNBALLOON_MESSAGE)) {
            return self.prepare(session, Prepared::Returned, Prepare::Return(ranges));
        }
        // What is still being discarded is returned when that has ended; memory that is missing
        // beyond that need not wait.
        let missing = self.missing_pages();
        if !missing.is_zero() {
            self.add_memory(session, missing);
        }
    }

    /// Pages the guest lacks to its target even if it had all its RAM.
    pub(crate) fn missing_pages(&self) -> PageCount {
        self.goal.map_or(PageCount::ZERO, |goal| goal.target.saturating_sub(self.books.assigned()))
    }

    fn add_memory(&mut self, session: Session, missing: PageCount) {
        if !session.capabilities.contains(Capabilities::HOT_ADD) {
            return self.stop(StopReason::NoHotAddCapability);
        }
        match &self.region {
            None => return self.stop(StopReason::NoAddressSpace),
            Some(region) if region.unanswered.is_some() => {
                return self.stop(StopReason::HotAddTimeout);
            }
            Some(_) => {}
        }
        // What the guest may still reach would be a second way to new memory.
        self.removals.retry();
        if self.begin_removals() {
            return;
        }
        // A guest that cannot balloon could not give back what is too much.
        let exact = !session.capabilities.contains(Capabilities::BALLOON);
        let of_guest = session.capabilities.hot_add_alignment();
        let plan = self.region.as_mut().and_then(|region| region.plan(missing, of_guest, exact));
        match plan {
            Some((range, what)) => self.prepare(session, Prepared::Added(range), what),
            None => self.stop(StopReason::NoAddressSpace),
        }
    }

    fn prepare(&mut self, session: Session, what: Prepared, task: Prepare) {
        let job = self.jobs.next();
        self.state = State::Preparing { session, preparation: Preparation { job, what } };
        self.act(Action::Prepare { id: job, what: task });
    }

    pub(crate) fn on_prepared(&mut self, session: Session, what: Prepared, ok: bool) {
        self.state = State::Idle { session };
        match what {
            Prepared::Returned => {
                self.books.finish_provide(ok);
                self.retry_held();
            }
            Prepared::Added(range) if ok => self.offer(session, range),
            Prepared::Added(_) | Prepared::Absent => {}
        }
        if !ok {
            self.stop(StopReason::HostMemory);
        }
    }

    /// Tells the guest of new memory, unless a new target has made it needless.
    fn offer(&mut self, session: Session, range: PageRange) {
        let wanted =
            !self.missing_pages().is_zero() && self.goal.is_some_and(|goal| !goal.is_given_up());
        let word = RangeWord::new(range).ok().filter(|_| wanted);
        let request = word.map(|range| HotAddRequest { range, region: Some(range) });
        let id = self.transaction_id;
        let sent = request
            .map(|request| self.outbox.push(|out| request.emit_into(id, out)))
            .is_some_and(|pushed| pushed.is_ok());
        if sent {
            self.books.forget_foreign(range);
            let deadline = self.after(patience(range));
            self.state = State::HotAdding { session, range, since: None, deadline };
        } else {
            self.remove_memory(range);
        }
    }

    pub(crate) fn on_hot_add_response(&mut self, response: HotAddResponse) {
        if let State::HotAdding { session, range, since: Some(since), .. } = self.state {
            self.end_transaction(session);
            let took = self.now.saturating_sub(since);
            return self.take_answer(session, range, response, Some(took));
        }
        let unanswered = self.region.as_mut().map(|region| &mut region.unanswered);
        let late = unanswered.and_then(|late| late.take_if(|late| late.is_told));
        match self.state.session().zip(late) {
            Some((session, late)) => self.take_answer(session, late.range, response, None),
            None => self.out_of_state(MessageType::HOT_ADD_RESPONSE),
        }
    }

    fn take_answer(
        &mut self,
        session: Session,
        range: PageRange,
        response: HotAddResponse,
        took: Option<Duration>,
    ) {
        let of_guest = session.capabilities.hot_add_alignment();
        let alignment = self.region.as_ref().map_or(of_guest, |region| region.alignment(of_guest));
        let (offered, added) = (range.count(), response.pages);
        // A block is within the guest's reach as a whole, so it counts as a whole.
        let blocks = added.align_up(alignment).unwrap_or(offered).min(offered);
        if added != blocks {
            self.fault(GuestFault::OddHotAdd { offered, added, alignment });
        }
        let taken = PageRange::new(range.start(), blocks).ok();
        if let Some(taken) = taken {
            self.keep_added(taken);
        }
        let rest_start = taken.map_or(range.start(), PageRange::end);
        if let Some(range) = PageRange::between(rest_start, range.end()) {
            self.remove_memory(range);
            return self.stop(match (taken, response.result) {
                (Some(_), _) => StopReason::HotAddPartial,
                (None, HotAddResult::SUCCESS) => StopReason::HotAddRefused,
                (None, _) => StopReason::HotAddFailed,
            });
        }
        let waited_in_vain = took.is_some_and(|took| took >= online_waits(range, alignment))
            && self.guest_os_id.is_some_and(is_linux);
        if let Some(region) = &mut self.region {
            region.is_proven = !waited_in_vain;
        }
        if waited_in_vain {
            self.stop(StopReason::NotOnlined);
        }
    }

    /// Pages that were offered are the guest's from now on.
    pub(crate) fn keep_added(&mut self, range: PageRange) {
        self.books.add_ram(range);
        if let Some(region) = &mut self.region {
            region.advance(range);
        }
    }

    pub(crate) fn hot_add_timed_out(&mut self, session: Session, late: Unanswered) {
        self.notify(Notice::TimedOut(Transaction::HotAdd));
        if let Some(region) = &mut self.region {
            region.unanswered = Some(late);
        }
        self.end_transaction(session);
        self.stop(StopReason::HotAddTimeout);
    }
}
