//! The VSP and its rings under difficult conditions: broken, full or missing rings, packets that
//! ask for completions, guests that wait for room.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dynmem_protocol::{
    BalloonResponse, Capabilities, CapabilitiesReport, RangeList, Version, VersionRequest,
};
use dynmem_vsp::{
    BATCH, Config, DynamicMemory, Job, Notice, RestoreError, SavedVsp, Task, Trace, TracedPacket,
    Work,
};
use guest_model::vmbus::{GuestRings, SharedMemory};
use hv_balloon::StateName;
use page_range::{Gpfn, PageCount, PageRange};
use vmbus::protocol::ring::{PacketKind, READ_INDEX, WRITE_INDEX};
use vmbus::protocol::{ConnectionId, Relid, VpIndex};
use vmbus::ring::{RingError, RingLayout};
use vmbus::{
    ChannelEvent, ChannelOutput, GuestMemory, GuestSignal, MAX_COMPLETIONS, OpenChannel,
    VmbusDevice,
};

type Memory = Arc<SharedMemory>;
type Output = ChannelOutput<Work>;

/// The number of pages of guest memory.
const PAGES: usize = 16;
const FIRST_RING_PAGE: u64 = 2;
/// The number of pages of each ring: a control page and a data page.
const SPLIT: usize = 2;
const NOW: Duration = Duration::ZERO;

struct Channel {
    vsp: DynamicMemory<Memory>,
    memory: Memory,
    guest: GuestRings<Memory>,
}

fn ring_pages(first: u64) -> Vec<Gpfn> {
    (first..first + 4).filter_map(Gpfn::new).collect()
}

fn open_channel(first: u64) -> OpenChannel {
    OpenChannel {
        rings: RingLayout::new(&ring_pages(first), SPLIT).unwrap(),
        target_vp: Some(VpIndex::new(3)),
        relid: Relid::new(7),
        connection_id: ConnectionId::new(0x1007),
        is_reopened: false,
    }
}

fn config() -> Config {
    let boot = PageRange::new(Gpfn::new(0).unwrap(), PageCount::new(1 << 18)).unwrap();
    Config { boot_ram: [boot].into_iter().collect(), ..Config::default() }
}

fn new_vsp() -> DynamicMemory<Memory> {
    DynamicMemory::new(config()).unwrap()
}

fn outputs(vsp: &mut DynamicMemory<Memory>) -> Vec<Output> {
    std::iter::from_fn(|| vsp.poll_output()).collect()
}

fn open(vsp: &mut DynamicMemory<Memory>, memory: &Memory, first: u64) -> Vec<Output> {
    let (memory, channel) = (Arc::clone(memory), open_channel(first));
    vsp.handle(NOW, ChannelEvent::Open { memory, channel, guest_os_id: 0 });
    outputs(vsp)
}

impl Channel {
    fn new() -> Self {
        let memory = Arc::new(SharedMemory::new(PAGES));
        let guest = GuestRings::new(memory.clone(), &ring_pages(FIRST_RING_PAGE), SPLIT);
        let mut vsp = new_vsp();
        assert_eq!(open(&mut vsp, &memory, FIRST_RING_PAGE), [Output::OpenFinished(Ok(()))]);
        Self { vsp, memory, guest }
    }

    fn tell(&mut self, event: ChannelEvent<Memory>) -> Vec<Output> {
        self.vsp.handle(NOW, event);
        outputs(&mut self.vsp)
    }

    fn save_and_restore(&mut self) {
        let saved = self.vsp.save(NOW);
        let open = Some((self.memory.clone(), open_channel(FIRST_RING_PAGE)));
        self.vsp = DynamicMemory::restore(config(), &saved, open, NOW).unwrap();
    }

    /// The guest's handshake.
    fn negotiate(&mut self) {
        let request = VersionRequest { version: Version::V2_0, is_last_attempt: false };
        let report = CapabilitiesReport {
            capabilities: Capabilities::BALLOON,
            minimum_pages: PageCount::ZERO,
            highest_page: 0,
        };
        for message in [request.emit(1), report.emit(2)] {
            self.guest.send(&message, 0).unwrap();
            self.tell(ChannelEvent::Signalled);
        }
    }

    fn state(&self) -> StateName {
        self.vsp.snapshot().state
    }
}

/// A request for an unknown version, which the device refuses each time.
fn unknown_version() -> Vec<u8> {
    VersionRequest { version: Version::from_wire(7), is_last_attempt: false }.emit(1)
}

const SIGNAL: Output = ChannelOutput::SignalGuest(GuestSignal { vp: VpIndex::new(3), flag: 7 });

#[test]
fn a_channel_without_rings_is_refused_and_the_device_never_hears_of_it() {
    let memory = Arc::new(SharedMemory::new(PAGES));
    let mut vsp = new_vsp();
    let refused = open(&mut vsp, &memory, 1 << 20);
    assert!(
        matches!(refused[..], [Output::OpenFinished(Err(RingError::Access(_)))]),
        "{refused:?}"
    );
    assert_eq!(vsp.snapshot().state, StateName::Closed);
    assert!(vsp.is_quiet());
    assert_eq!(open(&mut vsp, &memory, FIRST_RING_PAGE), [Output::OpenFinished(Ok(()))]);
    assert_eq!(vsp.snapshot().state, StateName::AwaitVersion);
}

/// The guest hears that its channel is open later than of the device's answer, and hears no signal
/// before that.
#[test]
fn a_guest_that_missed_the_first_signal_is_signalled_again_until_it_reads() {
    let memory = Arc::new(SharedMemory::new(PAGES));
    let mut guest = GuestRings::new(memory.clone(), &ring_pages(FIRST_RING_PAGE), SPLIT);
    let mut vsp = new_vsp();
    guest
        .send(&VersionRequest { version: Version::V2_0, is_last_attempt: true }.emit(1), 0)
        .unwrap();
    let heard = open(&mut vsp, &memory, FIRST_RING_PAGE);
    assert_eq!(heard, [Output::OpenFinished(Ok(())), SIGNAL]);
    let remind = |vsp: &mut DynamicMemory<Memory>| {
        let at = vsp.poll_timeout()?;
        vsp.handle(at, ChannelEvent::Timeout);
        Some((at.as_secs(), outputs(vsp)))
    };
    for at in [1, 3, 7] {
        assert_eq!(remind(&mut vsp), Some((at, vec![SIGNAL])));
    }
    assert!(guest.receive().is_some());
    assert_eq!(remind(&mut vsp), Some((15, vec![])), "it has read everything");
    for at in [31, 63, 127] {
        assert_eq!(remind(&mut vsp), Some((at, vec![])));
    }
    assert_eq!(remind(&mut vsp), None, "a guest that never goes on is left alone");
}

#[test]
fn a_guest_that_is_past_the_handshake_is_not_reminded() {
    let mut channel = Channel::new();
    channel.negotiate();
    while channel.guest.receive().is_some() {}
    let settled = channel.vsp.poll_timeout();
    assert_eq!(settled, Some(Duration::from_secs(1)));
    channel.vsp.handle(Duration::from_secs(1), ChannelEvent::Timeout);
    assert_eq!(outputs(&mut channel.vsp), []);
    assert_eq!(channel.vsp.poll_timeout(), Some(hv_balloon::DEFAULT_SETTLE));
}

#[test]
fn a_broken_ring_stops_the_channel_until_it_is_opened_anew() {
    let mut channel = Channel::new();
    let control = Gpfn::new(FIRST_RING_PAGE).unwrap().gpa().checked_add(WRITE_INDEX).unwrap();
    channel.memory.store_u32(control, 4, Ordering::SeqCst).unwrap();
    let outputs = channel.tell(ChannelEvent::Signalled);
    assert_eq!(outputs, [Output::Broken(RingError::WriteIndex(4))]);
    assert_eq!(channel.state(), StateName::Closed);
    assert!(!channel.vsp.uses_rings());
    assert_eq!(channel.tell(ChannelEvent::Signalled), [], "the rings are not touched again");
    assert!(!channel.vsp.is_quiet(), "the bus still has the channel open");
    assert_eq!(channel.tell(ChannelEvent::Close), [Output::CloseFinished]);
    assert!(channel.vsp.is_quiet());
    channel.memory.store_u32(control, 0, Ordering::SeqCst).unwrap();
    let memory = channel.memory.clone();
    let opened = open(&mut channel.vsp, &memory, FIRST_RING_PAGE);
    assert_eq!(opened, [Output::OpenFinished(Ok(()))]);
}

#[test]
fn work_asked_for_before_the_ring_broke_comes_before_the_close() {
    let mut channel = Channel::new();
    channel.vsp = channel.vsp.with_trace();
    channel.negotiate();
    let given = PageRange::new(Gpfn::new(100).unwrap(), PageCount::new(10)).unwrap();
    let mut ranges = RangeList::new();
    ranges.push(given).unwrap();
    let response = BalloonResponse::emit(3, false, &ranges);
    channel.guest.send_for_completion(&response, 1).unwrap();
    // The packet can be taken, but there is no ring to write its completion to.
    let control = Gpfn::new(FIRST_RING_PAGE + SPLIT as u64).unwrap().gpa();
    let read_index = control.checked_add(READ_INDEX).unwrap();
    channel.memory.store_u32(read_index, 4, Ordering::SeqCst).unwrap();
    let outputs = channel.tell(ChannelEvent::Signalled);
    let position = |is: fn(&Work) -> bool| {
        let is = |output: &Output| matches!(output, ChannelOutput::Work(work) if is(work));
        outputs.iter().position(is)
    };
    let discard = position(|work| matches!(work, Work::Job(Job { task: Task::Discard(_), .. })));
    let closed = position(|work| matches!(work, Work::Trace(Trace::Closed)));
    assert!(discard.is_some() && discard < closed, "{outputs:?}");
    assert_eq!(channel.state(), StateName::Closing, "the discard is waited for");
}

#[test]
fn completions_come_in_order_and_wait_for_room() {
    let mut channel = Channel::new();
    // A completion takes 24 bytes of the 4096 in the ring to the guest, one byte of which stays free.
    let fits = (4096 - 1) / 24;
    let (mut asked, mut heard) = (0, 0);
    while !channel.vsp.waits_for_room() {
        asked += 1;
        channel.guest.send_for_completion(&[0; 8], asked).unwrap();
        channel.tell(ChannelEvent::Signalled);
        assert!(asked < 1000, "the ring never fills");
    }
    assert_eq!(asked, fits + 1);
    // The number of further completions that wait is bounded.
    for _ in 0..3 * MAX_COMPLETIONS as u64 {
        asked += 1;
        channel.guest.send_for_completion(&[0; 8], asked).unwrap();
        channel.tell(ChannelEvent::Signalled);
    }
    // As many as may wait survive a restore.
    channel.save_and_restore();
    loop {
        while let Some(packet) = channel.guest.receive() {
            heard += 1;
            assert_eq!((packet.kind, packet.transaction_id), (PacketKind::COMPLETION, heard));
        }
        if !channel.vsp.waits_for_room() {
            break;
        }
        channel.tell(ChannelEvent::Signalled);
    }
    assert_eq!(heard, fits + MAX_COMPLETIONS as u64);
}

#[test]
fn a_message_waits_for_room_and_then_goes_out_with_a_signal() {
    let mut channel = Channel::new();
    while !channel.vsp.waits_for_room() {
        channel.guest.send_for_completion(&[0; 8], 1).unwrap();
        channel.tell(ChannelEvent::Signalled);
    }
    channel.guest.send(&unknown_version(), 0).unwrap();
    channel.tell(ChannelEvent::Signalled);
    assert!(channel.vsp.unsent().is_some());
    while channel.guest.receive().is_some() {}
    let outputs = channel.tell(ChannelEvent::Signalled);
    assert_eq!(outputs, [SIGNAL], "the guest found its ring empty and sleeps");
    assert!(channel.vsp.unsent().is_none() && !channel.vsp.waits_for_room());
}

#[test]
fn every_message_that_waits_is_restored() {
    const ANSWERS: usize = 3;
    let mut channel = Channel::new();
    while !channel.vsp.waits_for_room() {
        channel.guest.send_for_completion(&[0; 8], 1).unwrap();
        channel.tell(ChannelEvent::Signalled);
    }
    for _ in 0..ANSWERS {
        channel.guest.send(&unknown_version(), 0).unwrap();
        channel.tell(ChannelEvent::Signalled);
    }
    channel.save_and_restore();
    let mut answers = 0;
    while channel.vsp.waits_for_room() {
        let packets = std::iter::from_fn(|| channel.guest.receive());
        answers += packets.filter(|packet| packet.kind == PacketKind::DATA_IN_BAND).count();
        channel.tell(ChannelEvent::Signalled);
    }
    let packets = std::iter::from_fn(|| channel.guest.receive());
    answers += packets.filter(|packet| packet.kind == PacketKind::DATA_IN_BAND).count();
    assert_eq!(answers, ANSWERS);
}

#[test]
fn a_session_is_restored_with_its_rings_only() {
    let channel = Channel::new();
    let saved = serde_json::to_value(channel.vsp.save(NOW)).unwrap();
    let restore = |saved: &serde_json::Value| {
        let saved: SavedVsp = serde_json::from_value(saved.clone()).unwrap();
        let open = Some((channel.memory.clone(), open_channel(FIRST_RING_PAGE)));
        DynamicMemory::restore(config(), &saved, open, NOW).map(|vsp| vsp.uses_rings())
    };
    assert_eq!(restore(&saved), Ok(true));
    let mut without = saved;
    without["V1"]["channel"].take();
    assert_eq!(restore(&without), Err(RestoreError::RingsAmiss));
}

/// A signal may have been lost with the old machine.
#[test]
fn the_guest_is_signalled_after_a_restore() {
    let mut channel = Channel::new();
    assert_eq!(channel.tell(ChannelEvent::Signalled), []);
    channel.save_and_restore();
    assert_eq!(channel.tell(ChannelEvent::Signalled), [SIGNAL]);
}

#[test]
fn signals_go_to_the_vp_that_the_guest_named_last() {
    let mut channel = Channel::new();
    channel.tell(ChannelEvent::SetTargetVp(VpIndex::new(1)));
    channel.guest.send(&unknown_version(), 0).unwrap();
    let outputs = channel.tell(ChannelEvent::Signalled);
    let signal = Output::SignalGuest(GuestSignal { vp: VpIndex::new(1), flag: 7 });
    assert!(outputs.contains(&signal), "{outputs:?}");
}

#[test]
fn a_guest_that_waits_for_room_is_signalled() {
    let mut channel = Channel::new();
    while channel.guest.send_or_wait(&[0; 1000], 0).is_ok() {}
    let outputs = channel.tell(ChannelEvent::Signalled);
    assert!(outputs.contains(&SIGNAL), "{outputs:?}");
    assert!(channel.guest.send_or_wait(&[0; 1000], 0).is_ok());
}

#[test]
fn a_batch_ends_and_the_rest_is_due_at_once() {
    let mut channel = Channel::new();
    let packets = 2 * BATCH + 1;
    for _ in 0..packets {
        channel.guest.send(&[], 0).unwrap();
    }
    let faults = |outputs: &[Output]| {
        outputs
            .iter()
            .filter(|output| matches!(output, ChannelOutput::Work(Work::Notify(Notice::Fault(_)))))
            .count()
    };
    assert_eq!(faults(&channel.tell(ChannelEvent::Signalled)), BATCH as usize);
    assert_eq!(channel.vsp.poll_timeout(), Some(NOW));
    assert_eq!(faults(&channel.tell(ChannelEvent::Timeout)), BATCH as usize);
    assert_eq!(faults(&channel.tell(ChannelEvent::Timeout)), 1);
    let next = channel.vsp.poll_timeout();
    assert!(next > Some(NOW), "nothing is due before the guest is reminded: {next:?}");
}

#[test]
fn a_deadline_that_has_passed_comes_before_the_rest_of_a_batch() {
    let mut channel = Channel::new();
    channel.negotiate();
    assert_eq!(channel.state(), StateName::Settling);
    let settled = hv_balloon::DEFAULT_SETTLE;
    for _ in 0..2 * BATCH {
        channel.guest.send(&[], 0).unwrap();
    }
    channel.tell(ChannelEvent::Signalled);
    assert_eq!(channel.vsp.poll_timeout(), Some(NOW), "half of the packets wait");
    // Packets could move the deadline, but one that has passed ends the wait all the same.
    channel.vsp.handle(settled, ChannelEvent::Timeout);
    assert_eq!(channel.state(), StateName::Idle);
}

#[test]
fn a_reset_leaves_the_rings_alone_and_keeps_size_and_target() {
    let mut channel = Channel::new();
    let target = PageCount::new(1 << 17);
    channel.vsp.set_target(NOW, target).unwrap();
    channel.vsp.announce_reset();
    let since = PageCount::new(1 << 16);
    channel.guest.send(&unknown_version(), 0).unwrap();
    channel.tell(ChannelEvent::Reset);
    assert!(!channel.vsp.uses_rings());
    assert_eq!(channel.vsp.set_target(NOW, since), Ok(since));
    assert!(channel.tell(ChannelEvent::Close).contains(&Output::CloseFinished));
    assert!(channel.vsp.is_quiet());
    let kept = channel.vsp.take_kept();
    assert_eq!((kept.size, kept.target), (Some(PageCount::new(1 << 18)), Some(target)));
    assert_eq!(kept.set_since, Some(since));
    assert!(channel.guest.receive().is_none(), "nothing was written for a guest that is gone");
}

#[test]
fn a_trace_has_each_packet_and_message_once() {
    let memory = Arc::new(SharedMemory::new(PAGES));
    let mut guest = GuestRings::new(memory.clone(), &ring_pages(FIRST_RING_PAGE), SPLIT);
    let mut vsp = new_vsp().with_trace();
    guest.send(&unknown_version(), 0).unwrap();
    let steps: Vec<_> = open(&mut vsp, &memory, FIRST_RING_PAGE)
        .into_iter()
        .filter_map(|output| match output {
            ChannelOutput::Work(Work::Trace(step)) => Some(step),
            _ => None,
        })
        .collect();
    let answer = guest.receive().unwrap().payload;
    assert_eq!(
        steps,
        [
            Trace::Opened,
            Trace::State(StateName::AwaitVersion),
            Trace::Received(TracedPacket {
                kind: PacketKind::DATA_IN_BAND,
                transaction_id: 0,
                completion_requested: false,
                payload: unknown_version(),
            }),
            Trace::Emitted(answer.clone()),
            Trace::Sent(answer),
        ]
    );
}
