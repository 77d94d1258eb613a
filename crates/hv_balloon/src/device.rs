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

/// The host side of Dynamic Memory for one guest. See the crate's documentation for how to run it.
#[derive(Debug)]
pub struct Device {
    /// The guest's channel, and what is between the guest and the device.
    pub(crate) link: Link,
    /// What outlives the channel.
    pub(crate) machine: Machine,
}

impl Device {
    /// A device for a guest that has not started.
    ///
    /// # Errors
    /// [`ConfigError`] where the configuration describes no machine that can be.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        check_memory(&config.boot_ram, config.hot_add.as_ref(), config.discard_unit)?;
        Ok(Self { link: Link::Closed, machine: Machine::new(config) })
    }

    /// Takes in what happened at `now`, the time since the VM started. Call
    /// [`Device::poll_action`] until `None` afterwards.
    pub fn handle(&mut self, now: Duration, event: Event<'_>) {
        self.machine.now = self.machine.now.max(now);
        match event {
            Event::ChannelOpened { guest_os_id } => self.link.open(guest_os_id),
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

    /// Whether `target` could be set now, whatever the guest is doing; the target itself if so. A
    /// guest that is not ready gets it when it is.
    ///
    /// # Errors
    /// [`TargetError`] with the limit.
    pub fn can_set_target(&self, target: PageCount) -> Result<PageCount, TargetError> {
        self.machine.can_set_target(target, self.link.session().map(Session::capabilities))
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
        self.machine.now = self.machine.now.max(now);
        self.machine.is_inhibited = inhibited;
        self.machine.retry_held();
        self.go_on();
    }

    /// Does what can be done now and says what has changed.
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
        let state = self.link.name();
        if state != StateName::Closed {
            return Err(ReplaceError::InUse { state });
        }
        check_memory(&boot_ram, hot_add.as_ref(), self.machine.ledger.unit())?;
        self.machine.now = self.machine.now.max(now);
        self.machine.replace_memory(boot_ram, hot_add);
        self.machine.announce_size();
        // A target that was set for it may be the size it has.
        self.machine.judge(false);
        Ok(())
    }

    /// The next thing to do, until there is none.
    #[inline]
    pub fn poll_action(&mut self) -> Option<Action> {
        let action = self.machine.poll_action();
        action.or_else(|| self.link.outbox_mut()?.poll().then_some(Action::Send))
    }

    /// The message to write to the ring: from [`Action::Send`] until [`Event::Sent`], or until the
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

    /// A job ended. One that nobody waits for any more, or never did, changes nothing.
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
