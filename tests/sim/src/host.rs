//! The host: the bus and the VSP as in every VMM, driven without threads.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dynmem_vsp::{Config, DynamicMemory, HotAdd, Job, Prepare, Snapshot, Task, Trace, Work};
use hv_balloon::StateName;
use page_range::{Gpa, Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::ring::PENDING_SEND_SIZE;
use vmbus::protocol::{ConnectionId, Relid, Version, VpIndex};
use vmbus::ring::RingError;
use vmbus::{
    ChannelEvent, ChannelId, ChannelOutput, GuestMemory, GuestSignal, OpenChannel, Server,
    ServerConfig, VmbusDevice,
};

use crate::memory::Ram;
use crate::synic::Synic;
use crate::watch::Watch;

/// The most bus actions in one turn of the loop, since vCPUs can keep asking the bus for more.
const ACTIONS_PER_TURN: u32 = 128;

/// The bus of a machine with two VPs; the guest's driver runs on the first one.
pub(crate) const BUS: ServerConfig =
    ServerConfig { vp_count: 2, page_limit: Gpfn::MAX, max_version: Version::V5_3 };

/// The host and everything that belongs to it.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) now: Duration,
    pub(crate) vsp: DynamicMemory<Ram>,
    pub(crate) channel: ChannelId,
    pub(crate) server: Server,
    pub(crate) synic: Synic,
    pub(crate) ram: Ram,
    /// The VSP's configuration, with the memory of the running machine.
    pub(crate) config: Config,
    /// The most packets that the VSP handles for one signal.
    pub(crate) batch: u32,
    /// The message that the previous VMM did not get into the ring.
    pub(crate) said: Option<Vec<u8>>,
    /// How many messages and other outputs the VSP has produced since it last took a packet.
    outputs: [usize; 2],
    /// Work on guest memory that has begun.
    pub(crate) jobs: Vec<Job>,
    /// The loop has work to do.
    pub(crate) wake: bool,
    /// The guest signalled the channel.
    pub(crate) signalled: bool,
    /// The channel's event flag, which the guest clears.
    pub(crate) event_flag: bool,
    /// The guest was signalled since it last found its ring full.
    pub(crate) hears_of_room: bool,
    /// The target VP and relid for signals to the guest, as the VSP was last told.
    pub(crate) signal: (Option<VpIndex>, Relid),
    /// The address at which the guest reads how much room the host waits for.
    awaited_room: Gpa,
    /// The bus has asked for the channel to be closed.
    pub(crate) is_closing: bool,
    /// The guest has made room since the host last tried to send a message.
    pub(crate) has_new_room: bool,
    /// Whether there is a machine; there is none between a reset and the next start.
    has_machine: bool,
    /// OS ID of the running guest.
    pub(crate) guest_os_id: u64,
    /// The packets that the guest put into the ring, in order; `None` if they cannot be known.
    pub(crate) expected: Option<VecDeque<Vec<u8>>>,
    /// The messages that the host put into the ring and the guest has not read, likewise.
    pub(crate) sent: Option<VecDeque<Vec<u8>>>,
    pub(crate) watch: Watch,
}

impl Host {
    pub(crate) fn new(config: Config, batch: u32, watch: Watch) -> Self {
        let mut server = Server::new(BUS);
        let vsp = Self::new_vsp(&config, batch);
        let channel = server.offer(vsp.offer()).expect("the only device");
        let ram = Ram::new(config.boot_ram.clone());
        Self {
            now: Duration::ZERO,
            vsp,
            channel,
            config,
            batch,
            said: None,
            outputs: [0; 2],
            server,
            synic: Synic::default(),
            ram,
            jobs: Vec::new(),
            wake: false,
            signalled: false,
            event_flag: false,
            hears_of_room: false,
            signal: (None, Relid::MIN),
            awaited_room: Gpa::new(0),
            is_closing: false,
            has_new_room: false,
            has_machine: true,
            guest_os_id: 0,
            expected: None,
            sent: None,
            watch,
        }
    }

    fn new_vsp(config: &Config, batch: u32) -> DynamicMemory<Ram> {
        let vsp = DynamicMemory::new(config.clone()).expect("memory that a guest can have");
        vsp.with_batch(batch).with_trace()
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.vsp.snapshot()
    }

    /// Handles HvPostMessage; returns the hypercall status.
    pub(crate) fn post(&mut self, connection_id: ConnectionId, message: &[u8]) -> u16 {
        self.watch.bus.posted(message);
        let result = self.server.handle_message(connection_id, message);
        self.wake = true;
        result.map_or_else(|error| error.hypercall_status(), |()| 0)
    }

    /// One turn of the loop.
    pub(crate) fn turn(&mut self) {
        self.wake = false;
        if std::mem::take(&mut self.signalled) {
            self.watch.received = true;
            self.tell(ChannelEvent::Signalled);
        }
        self.pump();
    }

    /// Retries what waits for room in the ring.
    pub(crate) fn retry(&mut self) {
        self.signalled = true;
        self.turn();
    }

    /// Whether something waits for room in the ring.
    pub(crate) fn is_blocked(&self) -> bool {
        self.vsp.waits_for_room()
    }

    pub(crate) fn is_due(&self) -> bool {
        self.vsp.poll_timeout().is_some_and(|at| at <= self.now)
    }

    /// The VSP's deadline has passed.
    pub(crate) fn on_timeout(&mut self) {
        // The VSP may continue with packets.
        self.watch.received = true;
        self.tell(ChannelEvent::Timeout);
        self.pump();
    }

    /// The operator asks for a size.
    pub(crate) fn set_target(&mut self, target: PageCount) {
        self.begin();
        let answer = self.vsp.set_target(self.now, target);
        self.watch.target_set(self.now, target, answer);
        self.pump();
    }

    /// Ends one of the jobs. The VSP must not depend on the order in which they end.
    pub(crate) fn end_job(&mut self, at: usize, ok: bool) {
        let Job { id, task } = self.jobs.remove(at);
        self.watch.note(self.now, || format!("host: job {} {task:?} ends, {ok}", id.get()));
        match task {
            Task::Discard(ranges) if ok => self.discard(ranges),
            Task::Prepare(Prepare::Add { range, .. }) if ok => self.ram.add(range),
            Task::Remove(range) if ok => self.ram.remove(range),
            Task::Discard(_) | Task::Prepare(_) | Task::Remove(_) => {}
        }
        self.watch.job_done(self.now, id, ok);
        self.begin();
        self.vsp.job_done(self.now, id, ok);
        self.pump();
    }

    pub(crate) fn discard(&mut self, ranges: Vec<PageRange>) {
        for range in ranges {
            // A guest that gave away pages of its ring finds zeros in it.
            if self.ram.discard(range) {
                self.expected = None;
                self.sent = None;
                self.watch.lost_ring = true;
            }
        }
    }

    /// The machine is stopped for a reset.
    pub(crate) fn begin_reset(&mut self) {
        self.vsp.announce_reset();
        self.server.reset();
        self.watch.system_reset(self.now, &self.snapshot());
        self.ram.set_off_limits(true);
        self.tell(ChannelEvent::Reset);
        assert!(!self.uses_rings(), "the rings are in use after a reset");
        self.has_machine = false;
        self.pump();
    }

    /// Whether no work for the previous guest is left.
    pub(crate) fn is_quiet(&self) -> bool {
        self.vsp.is_quiet() && self.jobs.is_empty() && !self.wake
    }

    /// The next machine starts.
    pub(crate) fn restart(&mut self, boot_ram: PageRangeSet, hot_add: Option<HotAdd>) {
        assert!(self.is_quiet(), "the next machine starts too early");
        self.watch.oracle.replace(boot_ram.clone(), hot_add);
        self.ram.restart(boot_ram.clone());
        self.synic = Synic::default();
        self.config.boot_ram.clone_from(&boot_ram);
        self.config.hot_add = hot_add;
        let kept = self.vsp.take_kept();
        assert_eq!(kept, self.watch.left, "not what the last machine left");
        self.start_machine(boot_ram, hot_add, kept.target);
        self.has_machine = true;
        self.event_flag = false;
        self.signalled = false;
        self.take_outputs();
    }

    /// Starts a machine. The target that the previous one left holds unless another was set since.
    fn start_machine(
        &mut self,
        boot_ram: PageRangeSet,
        hot_add: Option<HotAdd>,
        target: Option<PageCount>,
    ) {
        let since = self.snapshot().target;
        self.vsp.start_machine(self.now, boot_ram, hot_add, target).expect("the VSP is quiet");
        let device = self.snapshot();
        match (since, target) {
            (Some(_), _) => assert_eq!(device.target, since, "replaced by an older target"),
            (None, Some(target)) if target <= device.maximum => {
                assert_eq!(device.target, target.align_up(self.config.discard_unit));
            }
            _ => assert_eq!(device.target, None, "a target that nobody set"),
        }
        self.watch.next_machine(if since.is_none() { device.target } else { None });
    }

    /// Forbids discards, or allows them again.
    pub(crate) fn inhibit(&mut self, inhibited: bool) {
        self.watch.note(self.now, || format!("host: discards forbidden: {inhibited}"));
        self.config.inhibited = inhibited;
        self.begin();
        self.vsp.set_inhibited(self.now, inhibited);
        self.pump();
    }

    /// Prepares for the next input to the VSP, which will then retry what waits for room.
    fn begin(&mut self) {
        self.has_new_room = false;
        self.outputs = [0; 2];
    }

    fn tell(&mut self, event: ChannelEvent<Ram>) {
        self.begin();
        self.vsp.handle(self.now, event);
        self.take_outputs();
    }

    /// Checks that each packet comes once, in order, and as it was published, whatever the guest
    /// has done to its ring since.
    fn expect(&mut self, message: &[u8]) {
        self.is_in_order();
        if let Some(expected) = &mut self.expected {
            let published = expected.pop_front().expect("a packet that nobody sent");
            assert_eq!(message, published, "not the packet that was sent");
        }
    }

    /// Whether the guest has left its rings alone, as far as can be known.
    fn is_in_order(&mut self) -> bool {
        if self.ram.take_tampered() || self.watch.lost_ring {
            self.expected = None;
            self.watch.lost_ring = true;
        }
        self.expected.is_some()
    }

    /// Checks that the guest is told to signal room only while the host waits for room.
    fn check_awaited_room(&mut self) {
        if self.uses_rings() && !self.vsp.waits_for_room() && self.is_in_order() {
            let word = self.ram.load_u32(self.awaited_room, Ordering::Relaxed);
            assert_eq!(word, Ok(0), "the guest is told that the host waits for room");
        }
    }

    /// Carries out what the VSP asks for, then what the bus asks for, and so on.
    pub(crate) fn pump(&mut self) {
        let mut drained = 0;
        for turn in 0.. {
            if turn == ACTIONS_PER_TURN {
                self.wake = true;
                break;
            }
            self.take_outputs();
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
            vmbus::Action::Open {
                channel,
                rings,
                target_vp,
                relid,
                connection_id,
                is_reopened,
            } => {
                if !self.has_machine {
                    return self.server.open_finished(channel, false);
                }
                self.signal = (target_vp, relid);
                self.ram.set_off_limits(false);
                self.ram.watch_rings(Some(&rings));
                let head = rings.outgoing()[0].gpa();
                self.awaited_room = head.checked_add(PENDING_SEND_SIZE).expect("a page");
                self.tell(ChannelEvent::Open {
                    memory: self.ram.of_host(),
                    channel: OpenChannel { rings, target_vp, relid, connection_id, is_reopened },
                    guest_os_id: self.guest_os_id,
                });
            }
            vmbus::Action::Close { .. } => {
                // Packets that were copied out of the ring but not handled are lost.
                self.expected = None;
                self.watch.note(self.now, || "host: closes the channel".into());
                self.ram.set_off_limits(true);
                self.is_closing = true;
                self.tell(ChannelEvent::Close);
            }
            vmbus::Action::SetTargetVp { target_vp, .. } => {
                self.signal.0 = Some(target_vp);
                self.tell(ChannelEvent::SetTargetVp(target_vp));
            }
        }
    }

    /// Whether the host may touch the rings.
    pub(crate) fn uses_rings(&self) -> bool {
        self.vsp.uses_rings()
    }

    fn take_outputs(&mut self) {
        while let Some(output) = self.vsp.poll_output() {
            self.take(output);
        }
        let goes_on = self.ram.take_impossible_index();
        assert!(!goes_on, "the host continues with an index that is not a position in its ring");
        self.check_awaited_room();
        if self.is_blocked() {
            self.watch.tally.see("event", "ring full");
        }
        self.watch.check(self.now, &self.snapshot(), self.vsp.poll_timeout());
    }

    fn take(&mut self, output: ChannelOutput<Work>) {
        match output {
            ChannelOutput::SignalGuest(GuestSignal { vp, flag }) => {
                let (wanted, relid) = self.signal;
                assert_eq!(
                    (Some(vp), u32::from(flag)),
                    (wanted, relid.get()),
                    "not the VP and flag to signal"
                );
                self.event_flag = true;
                self.hears_of_room = true;
            }
            ChannelOutput::OpenFinished(result) => {
                self.watch.note(self.now, || format!("host: opens the channel: {result:?}"));
                let state = self.snapshot().state;
                if let Err(error) = result {
                    assert_eq!(state, StateName::Closed, "the device has a channel");
                    self.watch.ring_error(error);
                    self.ram.watch_rings(None);
                } else {
                    assert_eq!(state, StateName::AwaitVersion, "opened, but there is no channel");
                }
                self.server.open_finished(self.channel, result.is_ok());
                self.wake = true;
            }
            ChannelOutput::CloseFinished => {
                let is_asked = std::mem::take(&mut self.is_closing);
                assert!(is_asked, "the bus did not ask for a close");
                self.watch.oracle.close_finished();
                self.server.close_finished(self.channel);
                self.wake = true;
            }
            ChannelOutput::Broken(error) => {
                self.watch.note(self.now, || format!("host: stops the channel: {error}"));
                let is_impossible = matches!(
                    error,
                    RingError::WriteIndex(_)
                        | RingError::PacketLength { .. }
                        | RingError::PayloadOffset { .. }
                );
                assert!(!is_impossible || !self.is_in_order(), "the guest's ring was in order");
                self.ram.set_off_limits(true);
                self.ram.watch_rings(None);
                self.watch.ring_error(error);
            }
            ChannelOutput::Work(work) => self.work(work),
        }
    }

    fn work(&mut self, work: Work) {
        let counted = &mut self.outputs;
        match &work {
            Work::Trace(Trace::Received(_)) => *counted = [0; 2],
            Work::Trace(Trace::Emitted(_)) => counted[0] += 1,
            Work::Trace(_) => {}
            _ => counted[1] += 1,
        }
        self.watch.polled(self.outputs);
        if !matches!(work, Work::Trace(_) | Work::Notify(_)) {
            self.watch.note(self.now, || format!("VSP: {work:?}"));
        }
        match work {
            Work::Job(job) => {
                match &job.task {
                    Task::Discard(ranges) => {
                        assert!(
                            !self.config.inhibited,
                            "a discard begins while discards are forbidden"
                        );
                        self.watch.oracle.discard(job.id, ranges);
                    }
                    Task::Prepare(what) => self.watch.oracle.prepare(job.id, what),
                    Task::Remove(range) => self.watch.oracle.remove(job.id, *range),
                }
                self.jobs.push(job);
            }
            Work::Notify(notice) => self.watch.notice(self.now, &notice),
            Work::Trace(trace) => self.trace(&trace),
        }
    }

    fn trace(&mut self, trace: &Trace) {
        match trace {
            Trace::Received(packet) => self.expect(&packet.payload),
            Trace::Sent(message) => {
                self.sent.iter_mut().for_each(|sent| sent.push_back(message.clone()));
            }
            _ => {}
        }
        if let Trace::Emitted(message) = trace
            && let Some(said) = self.said.take()
        {
            assert_eq!(*message, said, "not the message that waited");
            return;
        }
        self.watch.traced(self.now, trace);
    }
}
