//! The device: its data, its table of events, its queue of actions.

use alloc::collections::VecDeque;
use core::time::Duration;

use dynmem_protocol::{GuestBody, GuestMessage, MessageType, RangeList, StatusReport};
use page_range::{PageCount, PageRangeSet};

use crate::action::JobIds;
use crate::books::Books;
use crate::config::check_memory;
use crate::outbox::Outbox;
use crate::region::Region;
use crate::removal::Removals;
use crate::state::State;
use crate::target::{Goal, Refusal};
use crate::{
    Action, Config, ConfigError, Event, FaultCounts, GuestFault, HotAdd, Notice, ReplaceError,
    Settle, TargetError,
};

/// The host side of Dynamic Memory for one guest. See the crate's documentation for how to run it.
#[derive(Debug)]
pub struct Device {
    pub(crate) settle: Settle,
    pub(crate) status_reports: bool,
    /// The time of the last event.
    pub(crate) now: Duration,
    pub(crate) state: State,
    pub(crate) books: Books,
    /// What `books` start with.
    pub(crate) boot_ram: PageRangeSet,
    pub(crate) region: Option<Region>,
    pub(crate) jobs: JobIds,
    pub(crate) removals: Removals,
    /// While true, no discard begins and no page is asked of the guest.
    pub(crate) is_inhibited: bool,
    /// OS id of the connected guest.
    pub(crate) guest_os_id: Option<u64>,
    pub(crate) goal: Option<Goal>,
    pub(crate) outbox: Outbox,
    /// While the target waits for the guest to make room in its ring: for how long.
    pub(crate) room_until: Option<Duration>,
    /// What is given back in one message; here so that its room is used again.
    pub(crate) ranges: RangeList,
    /// For requests of ours; guests do not echo it.
    pub(crate) transaction_id: u32,
    pub(crate) status: Option<StatusReport>,
    pub(crate) faults: FaultCounts,
    pub(crate) last_refusal: Option<(PageCount, Refusal)>,
    /// The hot-added memory last announced.
    pub(crate) announced_hot_added: PageCount,
    /// The size last announced.
    pub(crate) announced: PageCount,
    pub(crate) actions: VecDeque<Action>,
}

impl Device {
    /// A device for a guest that has not started.
    ///
    /// # Errors
    /// [`ConfigError`] where the configuration describes no machine that can be.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        check_memory(&config.boot_ram, config.hot_add.as_ref(), config.discard_unit)?;
        let books = Books::new(config.boot_ram.clone(), config.discard_unit);
        Ok(Self {
            settle: config.settle,
            status_reports: config.status_reports,
            now: Duration::ZERO,
            state: State::Closed,
            announced: books.actual(),
            books,
            boot_ram: config.boot_ram,
            region: config.hot_add.map(Region::new),
            jobs: JobIds::default(),
            removals: Removals::default(),
            is_inhibited: config.inhibited,
            guest_os_id: None,
            goal: None,
            outbox: Outbox::default(),
            room_until: None,
            ranges: RangeList::new(),
            transaction_id: 0,
            status: None,
            faults: FaultCounts::default(),
            last_refusal: None,
            announced_hot_added: PageCount::ZERO,
            actions: VecDeque::new(),
        })
    }

    /// Takes in what happened at `now`, the time since the VM started. Call
    /// [`Device::poll_action`] until `None` afterwards.
    pub fn handle(&mut self, now: Duration, event: Event<'_>) {
        self.now = self.now.max(now);
        match event {
            Event::ChannelOpened { guest_os_id } => self.on_channel_opened(guest_os_id),
            Event::ChannelClosed => self.close(),
            Event::Packet(packet) => self.on_packet(packet),
            Event::Sent => self.on_sent(),
            Event::JobDone { id, ok } => self.on_job_done(id, ok),
            Event::SystemReset => self.on_system_reset(),
            Event::Deadline => self.on_deadline(),
        }
        self.go_on();
    }

    /// Asks for a guest of `target` pages and returns the target as taken: rounded up to whole
    /// [`Config::discard_unit`]s. A guest that is not ready is asked once it is. The same target
    /// again is a new try. `now` is the time since the VM started. Call [`Device::poll_action`]
    /// until `None` afterwards.
    ///
    /// # Errors
    /// [`TargetError`] with the limit. The target before stays, and the refusal is kept as
    /// [`Snapshot::last_refusal`](crate::Snapshot::last_refusal).
    pub fn set_target(
        &mut self,
        now: Duration,
        target: PageCount,
    ) -> Result<PageCount, TargetError> {
        self.now = self.now.max(now);
        let taken = self.can_set_target(target);
        match taken {
            Ok(taken) => self.take_target(taken),
            Err(error) => self.last_refusal = Some((target, Refusal::Target(error))),
        }
        self.go_on();
        taken
    }

    /// Forbids or allows discards, for as long as something must find the guest's memory in place:
    /// a device that is passed through, a migration by postcopy, a snapshot that the host takes.
    ///
    /// While forbidden, no discard begins and the guest is asked for no pages. Pages that it gives
    /// all the same wait, and may be given back. Returning pages, adding memory and removing what
    /// the guest does not use go on. Discards that run are not stopped: they have ended once
    /// [`Snapshot::discarding`](crate::Snapshot::discarding) is zero. When allowed again, the
    /// device goes on by itself.
    ///
    /// Holds over closes and resets. It is not saved: [`Config::inhibited`] says how a restored
    /// device begins. `now` is the time since the VM started. Call [`Device::poll_action`] until
    /// `None` afterwards.
    pub fn set_inhibited(&mut self, now: Duration, inhibited: bool) {
        self.now = self.now.max(now);
        self.is_inhibited = inhibited;
        self.retry_held();
        self.go_on();
    }

    /// Does what can be done now and says what has changed.
    pub(crate) fn go_on(&mut self) {
        self.advance();
        self.announce_size();
        #[cfg(any(test, debug_assertions))]
        crate::invariants::check(self);
    }

    /// Describes the memory of the guest that starts next, where that is not what it was. For
    /// between a reset's [`Action::CloseFinished`] and the next [`Event::ChannelOpened`]. A target
    /// set since stays. Call [`Device::poll_action`] until `None` afterwards.
    ///
    /// The memory is that of a new machine: added memory of the old one that could not be removed
    /// is forgotten.
    ///
    /// # Errors
    /// [`ReplaceError`] while a channel is open or closing, or where the memory cannot be. Nothing
    /// is changed then.
    pub fn replace_memory(
        &mut self,
        now: Duration,
        boot_ram: PageRangeSet,
        hot_add: Option<HotAdd>,
    ) -> Result<(), ReplaceError> {
        if self.state != State::Closed {
            return Err(ReplaceError::InUse { state: self.state.name() });
        }
        check_memory(&boot_ram, hot_add.as_ref(), self.books.unit())?;
        self.now = self.now.max(now);
        self.removals = Removals::default();
        self.books.restart(boot_ram.clone());
        self.boot_ram = boot_ram;
        self.region = hot_add.map(Region::new);
        self.announce_size();
        // A target that was set for it may be the size it has.
        self.judge();
        Ok(())
    }

    /// The next thing to do, until there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front().or_else(|| self.outbox.poll().then_some(Action::Send))
    }

    /// The message to write to the ring: from [`Action::Send`] until [`Event::Sent`], or until the
    /// channel closes.
    #[must_use]
    pub fn message(&self) -> Option<&[u8]> {
        self.outbox.current()
    }

    /// When [`Event::Deadline`] is due, as time since the VM started.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<Duration> {
        match self.state.deadline() {
            Some(at) => Some(at),
            None => self.room_until,
        }
    }

    fn on_packet(&mut self, packet: &[u8]) {
        let message = match GuestMessage::parse(packet) {
            Ok(message) => message,
            Err(error) => return self.fault(GuestFault::Malformed(error)),
        };
        let id = message.transaction_id;
        match message.body {
            GuestBody::VersionRequest(request) => self.on_version_request(id, request),
            GuestBody::CapabilitiesReport(report) => self.on_capabilities_report(id, report),
            GuestBody::StatusReport(report) => self.on_status_report(report),
            GuestBody::BalloonResponse(response) => self.on_balloon_response(response),
            GuestBody::UnballoonResponse(_) => self.on_unballoon_response(),
            GuestBody::HotAddResponse(response) => self.on_hot_add_response(response),
            GuestBody::HotRemoveResponse(_) => {
                self.out_of_state(message.body.message_type());
            }
        }
    }

    fn on_status_report(&mut self, report: StatusReport) {
        if self.state.session().is_none() {
            return self.out_of_state(MessageType::STATUS_REPORT);
        }
        self.status = Some(report);
        if self.status_reports {
            self.notify(Notice::StatusReport(report));
        }
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub(crate) fn notify(&mut self, notice: Notice) {
        self.act(Action::Notify(notice));
    }

    pub(crate) fn fault(&mut self, fault: GuestFault) {
        self.faults.count(fault);
        self.notify(Notice::Fault(fault));
    }

    pub(crate) fn out_of_state(&mut self, message: MessageType) {
        self.fault(GuestFault::OutOfState { message, state: self.state.name() });
    }

    /// Pages the guest has beyond its boot RAM.
    pub(crate) const fn hot_added(&self) -> PageCount {
        self.books.assigned().saturating_sub(self.boot_ram.len())
    }

    pub(crate) fn announce_size(&mut self) {
        let hot_added = self.hot_added();
        if hot_added != self.announced_hot_added {
            self.announced_hot_added = hot_added;
            self.notify(Notice::HotAddedChanged { hot_added });
        }
        let actual = self.books.actual();
        if actual != self.announced {
            self.announced = actual;
            self.notify(Notice::SizeChanged { actual });
        }
    }

    /// The time `wait` from now.
    pub(crate) const fn after(&self, wait: Duration) -> Duration {
        self.now.saturating_add(wait)
    }
}
