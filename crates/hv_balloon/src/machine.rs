//! State that outlives sessions: the guest's memory, the jobs on it, and actions for the driver.

use alloc::collections::VecDeque;
use core::time::Duration;

use dynmem_protocol::{Capabilities, MessageType};
use page_range::{PageCount, PageRange, PageRangeSet};

use crate::action::JobIds;
use crate::confirmation::Confirmation;
use crate::ledger::PageLedger;
use crate::placement::HotAddPlacement;
use crate::removal::Removals;
use crate::target::{Goal, Refusal};
use crate::{
    Action, Config, FaultCounts, GuestFault, HotAdd, Job, JobId, Notice, Settle, StateName, Task,
};

/// The guest's machine, as the device knows it.
#[derive(Debug)]
pub(crate) struct Machine {
    settle: Settle,
    status_reports: bool,
    /// The time of the last event.
    pub(crate) now: Duration,
    pub(crate) ledger: PageLedger,
    /// The RAM that `ledger` starts with.
    pub(crate) boot_ram: PageRangeSet,
    pub(crate) placement: Option<HotAddPlacement>,
    pub(crate) jobs: JobIds,
    pub(crate) removals: Removals,
    /// While true, no discard begins and the guest is asked for no pages.
    pub(crate) is_inhibited: bool,
    pub(crate) confirmation: Confirmation,
    pub(crate) goal: Option<Goal>,
    pub(crate) last_refusal: Option<(PageCount, Refusal)>,
    pub(crate) faults: FaultCounts,
    pub(crate) announced: Announced,
    actions: VecDeque<Action>,
}

/// The sizes last announced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Announced {
    pub(crate) actual: PageCount,
    pub(crate) hot_added: PageCount,
}

impl Machine {
    /// `config` must have been checked.
    pub(crate) fn new(config: Config) -> Self {
        let ledger = PageLedger::new(config.boot_ram.clone(), config.discard_unit);
        Self {
            settle: config.settle,
            status_reports: config.status_reports,
            now: Duration::ZERO,
            announced: Announced { actual: ledger.actual(), hot_added: PageCount::ZERO },
            ledger,
            boot_ram: config.boot_ram,
            placement: config.hot_add.map(HotAddPlacement::new),
            jobs: JobIds::default(),
            removals: Removals::default(),
            is_inhibited: config.inhibited,
            confirmation: Confirmation::default(),
            goal: None,
            last_refusal: None,
            faults: FaultCounts::default(),
            actions: VecDeque::new(),
        }
    }

    /// Replaces the memory with that of another machine. The target stays.
    pub(crate) fn replace_memory(&mut self, boot_ram: PageRangeSet, hot_add: Option<HotAdd>) {
        self.removals = Removals::default();
        self.ledger.restart(boot_ram.clone());
        self.confirmation = Confirmation::default();
        self.boot_ram = boot_ram;
        self.placement = hot_add.map(HotAddPlacement::new);
    }

    /// Resets the memory to the boot size and queues the removal of all added memory.
    pub(crate) fn reset_memory(&mut self) {
        self.ledger.restart(self.boot_ram.clone());
        self.confirmation = Confirmation::default();
        if let Some(added) = self.placement.as_mut().and_then(HotAddPlacement::reset) {
            self.removals.add(added);
        }
        self.removals.retry();
    }

    /// Starts discards of the pages that the guest gave, as many as may be in flight.
    #[inline]
    pub(crate) fn start_discards(&mut self) {
        while !self.is_inhibited
            && let Some((id, ranges)) = self.ledger.start_discard(&mut self.jobs)
        {
            self.start(id, Task::Discard(ranges));
        }
    }

    /// Queues held pages for a discard, unless the guest is to get them back.
    pub(crate) fn retry_held(&mut self) {
        if self.owed_pages().is_zero() && !self.is_inhibited {
            self.ledger.retry_held();
        }
    }

    /// Records that the guest has taken offered pages.
    pub(crate) fn keep_added(&mut self, range: PageRange) {
        self.ledger.add_ram(range);
        if let Some(placement) = &mut self.placement {
            placement.advance(range);
        }
    }

    /// Removes memory that the guest does not use.
    pub(crate) fn remove_memory(&mut self, range: PageRange) {
        self.removals.add(range);
        self.begin_removals();
    }

    /// Starts all waiting removals; returns false if there are none.
    pub(crate) fn begin_removals(&mut self) -> bool {
        let begun = self.removals.begin(&mut self.jobs);
        for &(id, range) in &begun {
            self.start(id, Task::Remove(range));
        }
        !begun.is_empty()
    }

    /// Pages the guest has beyond its boot RAM.
    pub(crate) const fn hot_added(&self) -> PageCount {
        self.ledger.assigned().saturating_sub(self.boot_ram.len())
    }

    /// The most memory that the guest can have. `capabilities` is `None` until a guest has reported
    /// them.
    pub(crate) fn maximum(&self, capabilities: Option<Capabilities>) -> PageCount {
        let addable = self.placement.as_ref().map(|placement| match capabilities {
            None => placement.left(),
            Some(can) if can.contains(Capabilities::HOT_ADD) => {
                placement.addable(can.hot_add_alignment())
            }
            Some(_) => PageCount::ZERO,
        });
        self.ledger.known().saturating_add(addable.unwrap_or_default())
    }

    /// The alignment of memory added to a guest whose own alignment is `of_guest`.
    pub(crate) fn alignment(&self, of_guest: PageCount) -> PageCount {
        self.placement.as_ref().map_or(of_guest, |placement| placement.alignment(of_guest))
    }

    /// How long a guest is left alone after the handshake.
    pub(crate) const fn settle_time(&self, guest_os_id: u64) -> Duration {
        self.settle.time(guest_os_id)
    }

    pub(crate) const fn wants_status_reports(&self) -> bool {
        self.status_reports
    }

    /// The time `wait` from now.
    pub(crate) const fn after(&self, wait: Duration) -> Duration {
        self.now.saturating_add(wait)
    }

    pub(crate) fn start(&mut self, id: JobId, task: Task) {
        self.act(Action::Work(Job { id, task }));
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(crate) fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub(crate) fn close_finished(&mut self) {
        // A stale one would be mistaken for the next close's.
        self.actions.retain(|action| *action != Action::CloseFinished);
        self.act(Action::CloseFinished);
    }

    /// Whether a `CloseFinished` is still waiting for the driver.
    pub(crate) fn has_close_finished(&self) -> bool {
        self.actions.contains(&Action::CloseFinished)
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        self.act(Action::Notify(notice));
    }

    pub(crate) fn fault(&mut self, fault: GuestFault) {
        self.faults.count(fault);
        self.notify(Notice::Fault(fault));
    }

    pub(crate) fn out_of_state(&mut self, message: MessageType, state: StateName) {
        self.fault(GuestFault::OutOfState { message, state });
    }

    #[inline]
    pub(crate) fn announce_size(&mut self) {
        let hot_added = self.hot_added();
        if hot_added != self.announced.hot_added {
            self.announced.hot_added = hot_added;
            self.notify(Notice::HotAddedChanged { hot_added });
        }
        let actual = self.ledger.actual();
        if actual != self.announced.actual {
            self.announced.actual = actual;
            self.notify(Notice::SizeChanged { actual });
        }
    }
}
