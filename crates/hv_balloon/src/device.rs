//! The device as the driver sees it: events in, actions out.

use core::time::Duration;

use dynmem_protocol::{GuestBody, GuestMessage};
use page_range::{PageCount, PageRangeSet};

use crate::config::check_memory;
use crate::link::Link;
use crate::machine::Machine;
use crate::session::Session;
use crate::target::Refusal;
use crate::{
    Action, Config, ConfigError, Event, GuestFault, HotAdd, JobId, Notice, ReplaceError, StateName,
    TargetError,
};

/// The host side of Dynamic Memory for one guest. The crate documentation says how to run it.
#[derive(Debug)]
pub struct Device {
    /// The guest's channel and its session.
    pub(crate) link: Link,
    /// State that outlives the channel.
    pub(crate) machine: Machine,
}

impl Device {
    /// Creates a device for a guest that has not started.
    ///
    /// # Errors
    /// [`ConfigError`] if the configuration is invalid.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        check_memory(&config.boot_ram, config.hot_add.as_ref(), config.discard_unit)?;
        Ok(Self { link: Link::Closed, machine: Machine::new(config) })
    }

    /// Handles an event that happened at `now`, the time since the VM started. Call
    /// [`Device::poll_action`] until `None` afterwards.
    pub fn handle(&mut self, now: Duration, event: Event<'_>) {
        self.machine.now = self.machine.now.max(now);
        match event {
            Event::ChannelOpened { guest_os_id, is_reopened } => {
                self.link.open(&mut self.machine, guest_os_id, is_reopened);
            }
            Event::ChannelClosed => self.link.close(&mut self.machine),
            Event::Packet(packet) => self.on_packet(packet),
            Event::Sent => self.on_sent(),
            Event::JobDone { id, ok } => self.on_job_done(id, ok),
            Event::SystemReset => self.link.reset(&mut self.machine),
            Event::Deadline => {
                if let Some(session) = self.link.session_mut() {
                    session.on_deadline(&mut self.machine);
                }
            }
        }
        self.go_on();
    }

    /// Sets the guest's target size to `target` pages. Returns the accepted target: `target`
    /// rounded up to a multiple of [`Config::discard_unit`]. If the guest is not ready, the device
    /// pursues the target once it is. Setting the same target again starts a new attempt. `now` is
    /// the time since the VM started. Call [`Device::poll_action`] until `None` afterwards.
    ///
    /// # Errors
    /// [`TargetError`] with the limit. The previous target stays in force, and
    /// [`Snapshot::last_refusal`](crate::Snapshot::last_refusal) shows the refusal.
    pub fn set_target(
        &mut self,
        now: Duration,
        target: PageCount,
    ) -> Result<PageCount, TargetError> {
        self.machine.now = self.machine.now.max(now);
        let taken = self.can_set_target(target);
        match taken {
            Ok(taken) => {
                self.machine.take_target(taken);
                if let Some(session) = self.link.session_mut() {
                    session.target_set(&mut self.machine);
                }
            }
            Err(error) => self.machine.last_refusal = Some((target, Refusal::Target(error))),
        }
        self.go_on();
        taken
    }

    /// Checks whether [`Device::set_target`] would accept `target` now, and returns the target that
    /// it would set.
    ///
    /// # Errors
    /// [`TargetError`] with the limit.
    pub fn can_set_target(&self, target: PageCount) -> Result<PageCount, TargetError> {
        self.machine.can_set_target(target, self.link.session().map(Session::capabilities))
    }

    /// Forbids or allows discards. Forbid them while something needs the guest's memory to stay in
    /// place: a passed-through device, a postcopy migration, or a snapshot taken by the host.
    ///
    /// While discards are forbidden, none begins and the device asks the guest for no pages. Pages
    /// that the guest gives anyway wait, and may be returned. The device still returns pages, adds
    /// memory, and removes memory that the guest does not use. Discards already running continue;
    /// they have ended once [`Snapshot::discarding`](crate::Snapshot::discarding) is zero. When
    /// discards are allowed again, the device resumes by itself.
    ///
    /// The setting survives closes and resets. It is not saved: a restored device starts with
    /// [`Config::inhibited`]. `now` is the time since the VM started. Call [`Device::poll_action`]
    /// until `None` afterwards.
    pub fn set_inhibited(&mut self, now: Duration, inhibited: bool) {
        self.machine.now = self.machine.now.max(now);
        self.machine.is_inhibited = inhibited;
        self.machine.retry_held();
        self.go_on();
    }

    /// Starts whatever can start now, and announces what has changed.
    #[inline]
    pub(crate) fn go_on(&mut self) {
        self.machine.start_discards();
        if let Some(session) = self.link.session_mut() {
            session.advance(&mut self.machine);
        }
        self.machine.judge(self.link.session().is_some_and(Session::is_busy));
        self.machine.announce_size();
        #[cfg(any(test, debug_assertions))]
        crate::invariants::check(self);
    }

    /// Replaces the guest's memory, for a guest that starts next with different memory. Call this
    /// between the [`Action::CloseFinished`] of a reset and the next [`Event::ChannelOpened`]. A
    /// target set since the reset stays in force. Call [`Device::poll_action`] until `None`
    /// afterwards.
    ///
    /// The memory is that of a new machine: the device forgets added memory of the old one that
    /// could not be removed.
    ///
    /// # Errors
    /// [`ReplaceError`] while a channel is open or closing, or if the memory is invalid. Nothing
    /// has changed then.
    pub fn replace_memory(
        &mut self,
        now: Duration,
        boot_ram: PageRangeSet,
        hot_add: Option<HotAdd>,
    ) -> Result<(), ReplaceError> {
        let state = self.link.name();
        if state != StateName::Closed {
            return Err(ReplaceError::InUse { state });
        }
        check_memory(&boot_ram, hot_add.as_ref(), self.machine.ledger.unit())?;
        self.machine.now = self.machine.now.max(now);
        self.machine.replace_memory(boot_ram, hot_add);
        self.machine.announce_size();
        // The new memory may already have the target size.
        self.machine.judge(false);
        Ok(())
    }

    /// Returns the next action, or `None` if there is nothing to do.
    #[inline]
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.machine.poll_action();
        action.or_else(|| self.link.outbox_mut()?.poll().then_some(Action::Send))
    }

    /// The message to write to the ring, from [`Action::Send`] until [`Event::Sent`] or until the
    /// channel closes.
    #[must_use]
    #[inline]
    pub fn message(&self) -> Option<&[u8]> {
        self.link.outbox()?.current()
    }

    /// When [`Event::Deadline`] is due, as time since the VM started.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.link.session()?.deadline()
    }

    #[inline]
    fn on_packet(&mut self, packet: &[u8]) {
        let message = match GuestMessage::parse(packet) {
            Ok(message) => message,
            Err(error) => return self.machine.fault(GuestFault::Malformed(error)),
        };
        let id = message.transaction_id;
        match (&mut self.link, message.body) {
            (Link::Ready(session), body) => session.on_message(&mut self.machine, body),
            (Link::Handshake(handshake), GuestBody::VersionRequest(request)) => {
                handshake.on_version_request(&mut self.machine, id, request);
            }
            (link @ Link::Handshake(_), GuestBody::CapabilitiesReport(report)) => {
                link.agree(&mut self.machine, id, report);
            }
            (link, body) => self.machine.out_of_state(body.message_type(), link.name()),
        }
    }

    fn on_sent(&mut self) {
        if let Some(outbox) = self.link.outbox_mut() {
            outbox.sent();
        }
        if let Some(session) = self.link.session_mut() {
            session.sent(&mut self.machine);
        }
    }

    /// Handles the end of a job. A job that the device no longer waits for, or never did, changes
    /// nothing.
    fn on_job_done(&mut self, id: JobId, ok: bool) {
        let Some(range) = self.machine.removals.finish(id, ok) else {
            return self.link.job_done(&mut self.machine, id, ok);
        };
        if !ok {
            self.machine.notify(Notice::RemovalFailed { range });
        }
        self.link.removed(&mut self.machine, ok);
    }
}
