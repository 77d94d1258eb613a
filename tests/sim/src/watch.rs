//! Checks on the host during a run: accounting, limits and waits; and counts of what the run came
//! across.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dynmem_protocol::{HostBody, HostMessage};
use dynmem_vsp::{JobId, Kept, Notice, Snapshot, TargetError, Trace as Step, TracedPacket};
use hv_balloon::{MAX_BALLOON_TIME, StateName, Transaction};
use page_range::PageCount;
use vmbus::protocol::{GuestMessage, Version};
use vmbus::ring::RingError;
use vmbus::{MAX_CHANNELS, MAX_GPADL_PAGES, MAX_GPADLS, MAX_QUEUED_MESSAGES};

use crate::oracle::Oracle;
use crate::tally::Tally;
use crate::trace::Trace;

/// The most actions that one event can cause in the device: its answer, a discard, notices, and one
/// fault of each kind that a message can have.
const MAX_ACTIONS: usize = 16;

/// The most messages sent one after another while the ring has room: those that return all that the
/// guest gave, in pieces of [`MAX_UNBALLOON_MESSAGE`](hv_balloon::MAX_UNBALLOON_MESSAGE) pages or
/// 508 ranges, and the answers that wait.
const MAX_SENDS: usize = 64;

/// The longest wait: for a guest that adds 32 GiB and brings nothing online.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// The checks and counts of a run.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) oracle: Oracle,
    pub(crate) bus: BusWatch,
    pub(crate) trace: Trace,
    pub(crate) tally: Tally,
    /// A transaction of this session timed out, so an honest guest may get two requests at once.
    pub(crate) timed_out: bool,
    /// The operator was told that the guest does not answer the last request.
    is_overdue: bool,
    /// The host has taken packets since this was last cleared.
    pub(crate) received: bool,
    /// The content of the guest's rings no longer makes sense.
    pub(crate) lost_ring: bool,
    /// The last accepted target, until its outcome is reported.
    open_target: Option<PageCount>,
    /// The guest is honest: it waits for an answer before it goes on.
    pub(crate) is_strict: bool,
    /// Log lines without a rate limit since the last target; they must be few by themselves.
    unlimited_lines: u32,
    /// How long the guest must be left alone after its handshake.
    pub(crate) settle: Duration,
    /// When this time began.
    settles_since: Duration,
    /// When the outstanding balloon request was sent.
    asked_at: Option<Duration>,
    /// The guest's size before it closed its channel, until it opens it again.
    size_at_close: Option<PageCount>,
    /// What the device last said of memory that the guest's kernel has not confirmed.
    unconfirmed: PageCount,
    /// What the machine left when it was last reset, and the target set since.
    pub(crate) left: Kept,
    /// The machine is being reset.
    is_resetting: bool,
}

impl Watch {
    pub(crate) fn new(oracle: Oracle, trace: Trace) -> Self {
        Self {
            oracle,
            bus: BusWatch::default(),
            trace,
            tally: Tally::default(),
            timed_out: false,
            is_overdue: false,
            received: false,
            lost_ring: false,
            open_target: None,
            is_strict: true,
            unlimited_lines: 0,
            settle: Duration::ZERO,
            settles_since: Duration::ZERO,
            asked_at: None,
            size_at_close: None,
            unconfirmed: PageCount::ZERO,
            left: Kept::default(),
            is_resetting: false,
        }
    }

    pub(crate) fn note(&self, now: Duration, line: impl FnOnce() -> String) {
        self.trace.note(now, line);
    }

    /// Whether the last target has been neither reached nor given up.
    pub(crate) const fn is_target_open(&self) -> bool {
        self.open_target.is_some()
    }

    /// Something went between device and channel.
    pub(crate) fn traced(&mut self, now: Duration, step: &Step) {
        match step {
            Step::Opened => {
                self.trace.note(now, || "device is told: opened".into());
                self.timed_out = false;
                self.size_at_close = None;
                self.oracle.opened();
            }
            Step::Closed => {
                self.trace.note(now, || "device is told: closed".into());
                // What its kernel does not know is no part of a guest's size.
                let known = self.oracle.actual().saturating_sub(self.unconfirmed);
                self.size_at_close.get_or_insert(known);
                self.oracle.channel_closed();
            }
            Step::Received(TracedPacket { payload: packet, .. }) => {
                self.trace.note(now, || format!("device is told: packet {}", describe(packet)));
                self.oracle.packet(packet);
            }
            Step::Emitted(message) => self.message(now, message),
            Step::Sent(bytes) => {
                let message = HostMessage::parse(bytes);
                if message.is_ok_and(|sent| matches!(sent.body, HostBody::BalloonRequest(_))) {
                    self.asked_at = Some(now);
                }
                self.oracle.sent(bytes);
            }
            Step::Dropped(_) | Step::Completed(_) => {}
            Step::State(state) => self.changed(now, *state),
        }
    }

    /// A job has ended; the VSP is about to hear of it.
    pub(crate) fn job_done(&mut self, now: Duration, id: JobId, ok: bool) {
        self.trace.note(now, || format!("VSP is told: job {} done, {ok}", id.get()));
        self.oracle.job_done(id, ok);
    }

    /// The machine was stopped; the VSP is about to hear of it.
    pub(crate) fn system_reset(&mut self, now: Duration, device: &Snapshot) {
        self.trace.note(now, || "VSP is told: reset".into());
        // The target was for the previous machine.
        self.unlimited_lines = 0;
        let target = device.target.filter(|_| device.is_pursued);
        let size = Some(self.size_at_close.take().unwrap_or(device.actual));
        self.left = Kept { size, target, set_since: None };
        self.is_resetting = true;
        self.oracle.system_reset();
    }

    /// A machine starts, with the previous machine's target if there is one and none is newer.
    pub(crate) fn next_machine(&mut self, target: Option<PageCount>) {
        self.open_target = target.or(self.open_target);
        self.is_resetting = false;
        self.unlimited_lines = 0;
        self.size_at_close = None;
    }

    /// Another VMM takes over: what is overdue is due now.
    pub(crate) fn moved(&mut self, now: Duration) {
        let least = now.saturating_sub(MAX_BALLOON_TIME);
        self.asked_at = self.asked_at.map(|at| at.max(least));
        self.oracle.begin_move();
    }

    fn changed(&mut self, now: Duration, state: StateName) {
        if state != self.oracle.state {
            self.trace.note(now, || format!("device is {state}"));
            self.tally.see_state(state);
            if self.oracle.state == StateName::AwaitCaps {
                self.settles_since = now;
            }
            self.oracle.state = state;
            self.asked_at = self.asked_at.filter(|_| state == StateName::Ballooning);
        }
    }

    /// Checks what must hold whenever the device has no more output.
    pub(crate) fn check(&mut self, now: Duration, device: &Snapshot, deadline: Option<Duration>) {
        self.unconfirmed = device.unconfirmed;
        self.oracle.check(device);
        self.check_wait(now, device.state, deadline);
        let is_known = device.target.is_some() || self.open_target.is_none();
        assert!(is_known, "a target was forgotten and nobody was told");
    }

    /// Checks that no wait lasts for ever before the operator hears of it.
    fn check_wait(&self, now: Duration, state: StateName, deadline: Option<Duration>) {
        use StateName::{Ballooning, HotAdding, Pausing, Settling, Unballooning};
        let waits = match state {
            Pausing | Settling => true,
            Ballooning | HotAdding | Unballooning => !self.is_overdue,
            _ => false,
        };
        assert!(!waits || deadline.is_some(), "{state} without a deadline");
        if let Some(deadline) = deadline {
            assert!(deadline <= now + MAX_WAIT, "waits until {deadline:?}");
            let last = self.asked_at.filter(|_| state == Ballooning);
            let last = last.map(|asked| asked + MAX_BALLOON_TIME);
            assert!(
                last.is_none_or(|last| deadline <= last),
                "a request ends at {deadline:?}, not {last:?}"
            );
        }
    }

    /// The VSP produced this many messages and other outputs in one go.
    pub(crate) fn polled(&self, [sends, others]: [usize; 2]) {
        // When pages are returned, the size changes from message to message.
        assert!(others <= MAX_ACTIONS + sends, "the device's queue of actions grows");
        assert!(sends <= MAX_SENDS, "the device sends without end");
    }

    fn message(&mut self, now: Duration, bytes: &[u8]) {
        self.trace.note(now, || {
            let message = HostMessage::parse(bytes);
            format!("device says: {}", short(&format!("{message:?}")))
        });
        let is_request = HostMessage::parse(bytes).is_ok_and(|message| {
            use HostBody::{BalloonRequest, HotAddRequest, UnballoonRequest};
            matches!(message.body, BalloonRequest(_) | HotAddRequest(_) | UnballoonRequest(_))
        });
        let waited = now.saturating_sub(self.settles_since);
        assert!(!is_request || waited >= self.settle, "asked after {waited:?}");
        if is_request {
            // The previous request is over; this one's time begins when it is in the ring.
            self.asked_at = None;
            self.is_overdue = false;
        }
        self.oracle.message(bytes);
    }

    pub(crate) fn target_set(
        &mut self,
        now: Duration,
        target: PageCount,
        answer: Result<PageCount, TargetError>,
    ) {
        self.trace.note(now, || format!("operator: wants {target} pages: {answer:?}"));
        if let Ok(taken) = answer {
            if self.is_resetting {
                self.left.set_since = Some(target);
            }
            self.open_target = Some(taken);
            self.unlimited_lines = 0;
        }
    }

    pub(crate) fn notice(&mut self, now: Duration, notice: &Notice) {
        self.trace.note(now, || format!("device tells: {}", short(&format!("{notice:?}"))));
        self.tally.see_notice(notice);
        match notice {
            Notice::TargetReached { .. } | Notice::StoppedShort { .. } => {
                self.open_target = None;
                self.unlimited_lines += 1;
                // That the guest is slow, that it does not use its memory, that the target was given
                // up, and that late pages reached it.
                assert!(self.unlimited_lines <= 4, "a guest makes the log grow");
            }
            Notice::TimedOut(what) => {
                self.timed_out = true;
                self.is_overdue = true;
                if *what == Transaction::Balloon {
                    self.asked_at = None;
                }
            }
            _ => {}
        }
    }

    pub(crate) fn ring_error(&mut self, error: RingError) {
        self.tally.see(
            "ring error",
            match error {
                RingError::Access(_) => "access",
                RingError::Layout => "layout",
                RingError::WriteIndex(_) => "write index",
                RingError::ReadIndex(_) => "read index",
                RingError::PacketLength { .. } => "packet length",
                RingError::PayloadOffset { .. } => "payload offset",
                RingError::TooLong { .. } => "too long",
            },
        );
    }
}

/// Watches the bus: what is queued, and which pages the guest has lent.
#[derive(Debug, Default)]
pub(crate) struct BusWatch {
    /// The length in words of each page list that the guest announced, by GPADL.
    announced: BTreeMap<u32, usize>,
    /// Those of them that the host accepted.
    live: BTreeMap<u32, usize>,
    /// GPADLs with which the guest has opened a channel, so that the host may be using them.
    rings: BTreeSet<u32>,
}

impl BusWatch {
    /// The guest announces a page list of this many bytes.
    fn header(&mut self, gpadl: u32, bytes: u16) {
        self.announced.insert(gpadl, usize::from(bytes) / 8);
    }

    /// The guest posts a message.
    pub(crate) fn posted(&mut self, message: &[u8]) {
        match GuestMessage::parse(message, Version::V5_3) {
            Ok((GuestMessage::GpadlHeader(header), _)) => {
                self.header(header.gpadl.get(), header.range_buflen.get());
            }
            Ok((GuestMessage::Open(open), _)) => {
                self.rings.insert(open.ring_gpadl.get());
            }
            Ok((GuestMessage::RelidReleased(_), _)) => self.live.clear(),
            _ => {}
        }
    }

    /// The server produced this many actions in one go.
    pub(crate) fn drained(&self, actions: usize) {
        let limit = MAX_QUEUED_MESSAGES + 4 * MAX_CHANNELS + 4;
        assert!(actions <= limit, "the bus has {actions} actions waiting");
    }

    /// The host sends a message; `at_rest` says whether it has stopped using the guest's memory.
    pub(crate) fn sent(&mut self, message: &[u8], at_rest: bool) {
        use vmbus::protocol::HostMessage as Message;
        match Message::parse(message, Version::V5_3).expect("the host speaks the protocol").0 {
            Message::GpadlCreated(created) if created.status.get() == 0 => {
                let gpadl = created.gpadl.get();
                let words = self.announced.get(&gpadl).copied().unwrap_or(0);
                self.live.entry(gpadl).or_insert(words);
                assert!(self.live.len() <= MAX_GPADLS, "too many GPADLs");
                let words: usize = self.live.values().sum();
                assert!(words <= MAX_GPADL_PAGES, "too many pages in GPADLs");
            }
            Message::GpadlTorndown(torndown) => {
                // A GPADL that never existed may be torn down at any time.
                let gpadl = torndown.gpadl.get();
                let was_live = self.live.remove(&gpadl).is_some();
                let was_ring = self.rings.remove(&gpadl) && was_live;
                assert!(at_rest || !was_ring, "the guest gets its ring back while the host works");
            }
            Message::UnloadResponse | Message::VersionResponse(_) => {
                assert!(at_rest, "the next kernel uses memory on which the host still works");
                self.live.clear();
                self.rings.clear();
            }
            _ => {}
        }
    }
}

/// A message from the guest in one line.
fn describe(packet: &[u8]) -> String {
    match dynmem_protocol::GuestMessage::parse(packet) {
        Ok(message) => short(&format!("{:?}", message.body)),
        Err(error) => format!("of {} bytes: {error}", packet.len()),
    }
}

/// The start of a long line.
fn short(line: &str) -> String {
    const MOST: usize = 300;
    let mut text: String = line.chars().take(MOST).collect();
    if text.len() < line.len() {
        text.push('…');
    }
    text
}

/// A bus message in one line.
pub(crate) fn bus_message(bytes: &[u8]) -> String {
    match GuestMessage::parse(bytes, Version::V5_3) {
        Ok((message, _)) => short(&format!("{message:?}")),
        Err(error) => error.to_string(),
    }
}
