//! The host: bus server and device, and the VMM between them (`vmm/src/device_loop.rs`,
//! `vmm/src/balloon`), without threads.

use std::collections::VecDeque;
use std::time::Duration;

use hv_balloon::{Action, Config, Device, Event, HotAdd, JobId, Prepare, Snapshot, StateName};
use page_range::{PageCount, PageRange, PageRangeSet};
use vmbus::protocol::{ConnectionId, Guid};
use vmbus::ring::RingError;
use vmbus::{Offer, Server, ServerConfig};

use crate::channel::{Channel, Received};
use crate::memory::Ram;
use crate::synic::Synic;
use crate::watch::Watch;

const DYNAMIC_MEMORY: Guid = Guid::from_digits(0x525074dc_8985_46e2_8057_a307dc18a502);
const INSTANCE: Guid = Guid::from_digits(1);

/// Bus actions in one turn of the loop, as in `vmm`.
const ACTIONS_PER_TURN: u32 = 128;

/// Work on guest memory.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) what: Work,
}

#[derive(Debug)]
pub(crate) enum Work {
    Discard(Vec<PageRange>),
    Prepare(Prepare),
    Remove(PageRange),
}

/// The host and all that belongs to it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) now: Duration,
    pub(crate) device: Device,
    pub(crate) server: Server,
    pub(crate) synic: Synic,
    pub(crate) ram: Ram,
    pub(crate) channel: Option<Channel>,
    /// With the memory of the machine that runs.
    pub(crate) config: Config,
    /// What the last VMM had to say and did not get into the ring.
    pub(crate) said: Option<Vec<u8>>,
    pub(crate) jobs: Vec<Job>,
    /// The loop has something to look at.
    pub(crate) wake: bool,
    /// The guest signalled the channel.
    pub(crate) signalled: bool,
    /// The channel's event flag, which the guest clears.
    pub(crate) event_flag: bool,
    /// The guest has made room since a message was last tried.
    pub(crate) has_new_room: bool,
    /// A machine is there: none between a reset and the next start.
    has_machine: bool,
    /// Of the guest that runs.
    pub(crate) guest_os_id: u64,
    /// What the guest put into the ring, in this order, where that can be known.
    pub(crate) expected: Option<VecDeque<Vec<u8>>>,
    pub(crate) watch: Watch,
}

impl Host {
    pub(crate) fn new(config: Config, watch: Watch) -> Self {
        let mut server = Server::new(ServerConfig::default());
        let offer = Offer { interface: DYNAMIC_MEMORY, instance: INSTANCE };
        server.offer(offer).expect("the only device");
        let ram = Ram::new(config.boot_ram.clone());
        Self {
            now: Duration::ZERO,
            device: Device::new(config.clone()).expect("a machine that can be"),
            config,
            said: None,
            server,
            synic: Synic::default(),
            ram,
            channel: None,
            jobs: Vec::new(),
            wake: false,
            signalled: false,
            event_flag: false,
            has_new_room: false,
            has_machine: true,
            guest_os_id: 0,
            expected: None,
            watch,
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.device.snapshot()
    }

    /// HvPostMessage; its status.
    pub(crate) fn post(&mut self, connection_id: ConnectionId, message: &[u8]) -> u16 {
        self.watch.bus.posted(message);
        let result = self.server.handle_message(connection_id, message);
        self.wake = true;
        result.map_or_else(|error| error.hypercall_status(), |()| 0)
    }

    /// One turn of the loop, which takes at most `batch` packets.
    pub(crate) fn turn(&mut self, batch: usize) {
        self.wake = false;
        if std::mem::take(&mut self.signalled)
            && let Err(error) = self.receive(batch)
        {
            self.break_channel(error);
        }
        self.pump();
    }

    /// Whether a message waits for room in the ring.
    pub(crate) fn is_blocked(&self) -> bool {
        let has_message = self.device.message().is_some();
        self.channel.as_ref().is_some_and(|channel| channel.is_blocked(has_message))
    }

    pub(crate) fn is_due(&self) -> bool {
        self.device.next_deadline().is_some_and(|at| at <= self.now)
    }

    /// The device's time has come.
    pub(crate) fn on_deadline(&mut self) {
        self.tell(Event::Deadline);
        self.pump();
    }

    /// The operator asks for a size.
    pub(crate) fn set_target(&mut self, target: PageCount) {
        let answer = self.device.can_set_target(target);
        self.watch.target_set(self.now, target, answer);
        assert_eq!(self.device.set_target(self.now, target), answer);
        self.watch.changed(self.now, self.device.snapshot().state);
        self.pump();
    }

    /// Ends one of the jobs, in any order: the device must not depend on it.
    pub(crate) fn end_job(&mut self, at: usize, ok: bool) {
        let Job { id, what } = self.jobs.remove(at);
        self.watch.note(self.now, || format!("host: job {} {what:?} ends, {ok}", id.get()));
        match what {
            Work::Discard(ranges) if ok => self.discard(ranges),
            Work::Prepare(Prepare::Add { range, .. }) if ok => self.ram.add(range),
            Work::Remove(range) if ok => self.ram.remove(range),
            _ => {}
        }
        self.tell(Event::JobDone { id, ok });
        self.pump();
    }

    pub(crate) fn discard(&mut self, ranges: Vec<PageRange>) {
        for range in ranges {
            // A guest that gave its ring away has a ring of zeros.
            if self.ram.discard(range) {
                self.expected = None;
                self.watch.lost_ring = true;
            }
        }
    }

    /// The machine is stopped for a reset.
    pub(crate) fn begin_reset(&mut self) {
        self.server.reset();
        self.tell(Event::SystemReset);
        self.has_machine = false;
        self.pump();
    }

    /// Whether nothing is under way for the guest that was.
    pub(crate) fn is_quiet(&self) -> bool {
        self.channel.is_none()
            && self.snapshot().state == StateName::Closed
            && self.jobs.is_empty()
            && !self.wake
    }

    /// The next machine starts.
    pub(crate) fn restart(&mut self, boot_ram: PageRangeSet, hot_add: Option<HotAdd>) {
        assert!(self.is_quiet(), "the next machine starts too early");
        self.watch.next_machine();
        self.watch.oracle.replace(boot_ram.clone(), hot_add);
        self.ram.restart(boot_ram.clone());
        self.synic = Synic::default();
        self.config.boot_ram.clone_from(&boot_ram);
        self.config.hot_add = hot_add;
        self.device.replace_memory(self.now, boot_ram, hot_add).expect("the device is closed");
        self.has_machine = true;
        self.event_flag = false;
        self.signalled = false;
        self.act();
    }

    fn receive(&mut self, batch: usize) -> Result<(), RingError> {
        self.watch.received = true;
        for _ in 0..batch {
            let Some(channel) = &mut self.channel else { return Ok(()) };
            match channel.receive()? {
                Received::Message(message) => {
                    self.expect(&message);
                    self.tell(Event::Packet(&message));
                }
                Received::Other => {}
                Received::Nothing => {
                    channel.end_receive();
                    self.signal_guest();
                    return Ok(());
                }
            }
            self.try_act()?;
        }
        if let Some(channel) = &mut self.channel {
            channel.end_receive();
            self.signalled = true;
        }
        self.signal_guest();
        Ok(())
    }

    /// Each packet comes once, in order, and as it was when it was published, whatever the guest has
    /// made of its ring since.
    fn expect(&mut self, message: &[u8]) {
        if self.ram.take_tampered() {
            self.expected = None;
            self.watch.lost_ring = true;
        }
        if let Some(expected) = &mut self.expected {
            let published = expected.pop_front().expect("a packet that nobody sent");
            assert_eq!(message, published, "not the packet that was sent");
        }
    }

    /// Does what the device asks for, then what the bus does, and so on.
    pub(crate) fn pump(&mut self) {
        let mut drained = 0;
        for turn in 0.. {
            if turn == ACTIONS_PER_TURN {
                self.wake = true;
                break;
            }
            self.act();
            let action = if self.synic.has_room() {
                self.server.poll_action()
            } else {
                self.server.poll_channel_action()
            };
            let Some(action) = action else { break };
            drained += 1;
            self.watch.bus.drained(drained);
            self.bus_action(action);
        }
        self.finish_close();
    }

    fn bus_action(&mut self, action: vmbus::Action) {
        match action {
            vmbus::Action::Send { message, .. } => {
                // A hostile guest may have opened its next channel before it takes this message.
                let is_strict = self.watch.is_strict;
                let at_rest = self.watch.oracle.is_quiet() && !self.uses_rings()
                    || !is_strict && self.snapshot().state != StateName::Closing;
                self.watch.bus.sent(message.as_bytes(), at_rest);
                self.synic.post(message);
            }
            vmbus::Action::DropQueuedMessages => self.synic.drop_queued(),
            vmbus::Action::Open { channel, rings, .. } => {
                let opened = match self.has_machine {
                    true => Channel::open(channel, self.ram.of_host(), &rings).ok(),
                    false => None,
                };
                let ok = opened.is_some();
                self.watch.note(self.now, || format!("host: opens the channel: {ok}"));
                if let Some(channel) = opened {
                    assert!(self.channel.is_none(), "a channel opens twice");
                    self.channel = Some(channel);
                    self.tell(Event::ChannelOpened { guest_os_id: self.guest_os_id });
                }
                self.server.open_finished(channel, ok);
                // Looks at the ring once.
                self.signalled = ok;
                self.wake = true;
            }
            vmbus::Action::Close { channel: id } => match &mut self.channel {
                Some(channel) if channel.id == id => {
                    channel.stop();
                    channel.closing = true;
                    channel.quiet = false;
                    // What was copied out of the ring and not looked at is lost.
                    self.expected = None;
                    self.watch.note(self.now, || "host: closes the channel".into());
                    self.tell(Event::ChannelClosed);
                }
                _ => self.server.close_finished(id),
            },
            vmbus::Action::SetTargetVp { .. } => {}
        }
    }

    /// Lets go of a channel that the bus wants closed once the device is done with it.
    fn finish_close(&mut self) {
        if let Some(channel) = self.channel.take_if(|channel| channel.closing && channel.quiet) {
            self.server.close_finished(channel.id);
            self.wake = true;
        }
    }

    /// Whether the host may touch the rings.
    pub(crate) fn uses_rings(&self) -> bool {
        self.channel.as_ref().is_some_and(Channel::uses_rings)
    }

    fn act(&mut self) {
        if let Err(error) = self.try_act() {
            self.break_channel(error);
            self.try_act().expect("without a channel nothing can fail");
        }
    }

    fn try_act(&mut self) -> Result<(), RingError> {
        let (mut sends, mut others) = (0, 0);
        loop {
            if let Some(channel) = &mut self.channel {
                self.has_new_room = false;
                if channel.flush(self.device.message())? {
                    self.tell(Event::Sent);
                }
                self.signal_guest();
            }
            let Some(action) = self.device.poll_action() else {
                self.check();
                return Ok(());
            };
            match action {
                Action::Send => sends += 1,
                _ => others += 1,
            }
            self.watch.polled(sends, others);
            self.act_on(action);
        }
    }

    fn act_on(&mut self, action: Action) {
        if !matches!(action, Action::Send | Action::Notify(_)) {
            self.watch.note(self.now, || format!("device: {action:?}"));
        }
        match action {
            Action::Send => {
                let message = self.device.message().expect("there is a message").to_vec();
                match self.said.take() {
                    Some(said) => assert_eq!(message, said, "not the message that waited"),
                    None => self.watch.message(self.now, &message),
                }
            }
            Action::Discard { id, ranges } => {
                self.watch.oracle.discard(id, &ranges);
                self.jobs.push(Job { id, what: Work::Discard(ranges) });
            }
            Action::Prepare { id, what } => {
                self.watch.oracle.prepare(id, &what);
                self.jobs.push(Job { id, what: Work::Prepare(what) });
            }
            Action::RemoveMemory { id, range } => {
                self.watch.oracle.remove(id, range);
                self.jobs.push(Job { id, what: Work::Remove(range) });
            }
            Action::CloseFinished => {
                self.watch.oracle.close_finished();
                if let Some(channel) = &mut self.channel {
                    channel.quiet = true;
                }
            }
            Action::Notify(notice) => self.watch.notice(self.now, &notice),
        }
    }

    /// The guest broke its ring: the channel is of no use until the guest opens it anew.
    fn break_channel(&mut self, error: RingError) {
        self.watch.note(self.now, || format!("host: stops the channel: {error}"));
        self.watch.ring_error(error);
        if let Some(channel) = &mut self.channel {
            channel.stop();
            self.tell(Event::ChannelClosed);
        }
    }

    fn signal_guest(&mut self) {
        if let Some(channel) = &mut self.channel
            && channel.take_signal()
        {
            self.event_flag = true;
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        self.watch.before(self.now, &event, self.device.message());
        self.device.handle(self.now, event);
        self.watch.changed(self.now, self.device.snapshot().state);
    }

    /// Once the device has said all that it has to say.
    fn check(&self) {
        let deadline = self.device.next_deadline();
        self.watch.check(self.now, &self.device.snapshot(), deadline);
    }
}
