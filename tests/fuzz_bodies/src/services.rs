//! The integration services and a guest that says anything on their channels: packets, answers with a
//! byte changed, broken rings, at any time.
//!
//! A service must not panic, must have at most one message without an answer, ask for a channel to be
//! opened or closed just once, and come to rest at every time; saving and restoring it changes nothing.

use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use guest_model::services::ServiceDriver;
use guest_model::vmbus::{GuestRings, SharedMemory};
use integration_services::protocol::{Message, flags};
use integration_services::{
    HeartbeatKind, Kind, SavedState, Service, ShutdownKind, TimeSample, TimeSync, TimeSyncKind,
    Work,
};
use page_range::{Gpa, Gpfn};
use vmbus::protocol::{ConnectionId, Relid, VpIndex};
use vmbus::ring::RingLayout;
use vmbus::{ChannelEvent, ChannelOutput, GuestMemory, OpenChannel, VmbusDevice};

type Memory = Arc<SharedMemory>;

const MAX_STEPS: usize = 200;
const PAGES: usize = 8;
const SPLIT: usize = 4;
/// The most that a service does at one time before it waits for something: a batch of packets, each
/// with a completion and a fault, and the reminders.
const MOST_TURNS: usize = 2000;

#[derive(Arbitrary, Debug)]
enum Step {
    Signal,
    Pass(u16),
    Packet {
        kind: u8,
        completion: bool,
        payload: Vec<u8>,
    },
    /// The oldest message is taken, and answered as it should be but for some bytes.
    Answer {
        changes: Vec<(u8, u8)>,
    },
    Break {
        at: u16,
        value: u32,
    },
    Command,
    Reopen,
    Reset,
    Move,
}

/// What each kind of service can be commanded.
trait Commanded: Kind + Default {
    fn fresh() -> Service<Memory, Self> {
        Service::new()
    }

    fn command(_: &mut Service<Memory, Self>, _: Duration) {}

    fn sample(_: &mut Service<Memory, Self>, _: Duration) {}
}

impl Commanded for HeartbeatKind {}

impl Commanded for ShutdownKind {
    fn command(service: &mut Service<Memory, Self>, now: Duration) {
        let before = service.negotiated().map(|_| ());
        assert_eq!(service.request_shutdown(now), before);
    }
}

impl Commanded for TimeSyncKind {
    fn fresh() -> Service<Memory, Self> {
        TimeSync::new().with_reference_time()
    }

    fn command(service: &mut Service<Memory, Self>, now: Duration) {
        service.resync(now);
    }

    fn sample(service: &mut Service<Memory, Self>, now: Duration) {
        service.sample(now, TimeSample { host: 1, reference: Some(2) });
    }
}

/// The first byte chooses the service; the rest are steps.
pub(crate) fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 3 {
        0 => World::<ShutdownKind>::run(rest),
        1 => World::<HeartbeatKind>::run(rest),
        _ => World::<TimeSyncKind>::run(rest),
    }
}

struct World<K: Commanded> {
    service: Service<Memory, K>,
    memory: Memory,
    guest: GuestRings<Memory>,
    driver: ServiceDriver,
    now: Duration,
    /// Messages since the guest last sent something.
    unanswered: usize,
    /// The guest has broken its rings.
    is_broken: bool,
    /// The service was told to open or to close, and has not answered.
    owes: Option<&'static str>,
}

impl<K: Commanded> World<K> {
    fn run(data: &[u8]) {
        let memory = Arc::new(SharedMemory::new(PAGES));
        let guest = GuestRings::new(Arc::clone(&memory), &pages(), SPLIT);
        let driver = ServiceDriver::linux();
        let (now, service) = (Duration::ZERO, K::fresh());
        let (unanswered, is_broken, owes) = (0, false, None);
        let mut world = Self { service, memory, guest, driver, now, unanswered, is_broken, owes };
        world.open();
        let mut input = Unstructured::new(data);
        for _ in 0..MAX_STEPS {
            if input.is_empty() {
                break;
            }
            let Ok(step) = Step::arbitrary(&mut input) else { break };
            world.step(step);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Signal => self.tell(ChannelEvent::Signalled),
            Step::Pass(millis) => {
                self.now += Duration::from_millis(millis.into());
                self.tell(ChannelEvent::Timeout);
            }
            // The model of the guest trusts its own rings.
            Step::Packet { .. } | Step::Answer { .. } if self.is_broken => {}
            Step::Packet { kind, completion, mut payload } => {
                payload.truncate(2100);
                let kind = vmbus::protocol::ring::PacketKind(kind.into());
                let _ = if completion {
                    self.guest.send_of_kind(kind, &payload, 5)
                } else {
                    self.guest.write_packet(kind, &payload, 5, 0)
                };
                self.unanswered = 0;
            }
            Step::Answer { changes } => self.answer(&changes),
            Step::Break { at, value } => {
                // A word of either ring's control page.
                let page = u64::from(at & 1) * SPLIT as u64;
                let gpa = Gpa::new(page * 4096 + u64::from(at >> 1) % 1024 * 4);
                self.memory.write(gpa, &value.to_le_bytes()).unwrap();
                self.is_broken = true;
            }
            Step::Command => {
                K::command(&mut self.service, self.now);
                self.settle();
            }
            Step::Reopen => {
                self.owes = Some("a close");
                self.tell(ChannelEvent::Close);
                assert!(self.service.is_quiet());
                self.guest = GuestRings::new(Arc::clone(&self.memory), &pages(), SPLIT);
                self.driver = ServiceDriver::linux();
                self.open();
            }
            Step::Reset => self.tell(ChannelEvent::Reset),
            Step::Move => self.move_on(),
        }
    }

    fn open(&mut self) {
        self.unanswered = 0;
        self.is_broken = false;
        self.owes = Some("an open");
        let (memory, channel) = (Arc::clone(&self.memory), channel());
        self.tell(ChannelEvent::Open { memory, channel, guest_os_id: 0 });
    }

    fn answer(&mut self, changes: &[(u8, u8)]) {
        let Some(packet) = self.guest.receive() else { return };
        let Ok(message) = Message::parse(&packet.payload) else { return };
        assert_eq!(message.flags, flags::TRANSACTION | flags::REQUEST);
        self.unanswered += 1;
        assert!(self.unanswered <= 1, "a message before the last one was answered");
        let mut answer = self.driver.answer(&packet.payload);
        for (at, value) in changes {
            if let Some(byte) = answer.get_mut(usize::from(*at)) {
                *byte = *value;
            }
        }
        if self.guest.send(&answer, packet.transaction_id).is_ok() {
            self.unanswered = 0;
        }
    }

    fn move_on(&mut self) {
        let bytes = self.service.save(self.now).to_bytes();
        let saved = integration_services::SavedService::from_bytes(&bytes).unwrap();
        let open = Some((Arc::clone(&self.memory), channel()));
        // Only rings that the guest broke cannot be restored.
        if let Ok(restored) = K::fresh().restored(&saved, open, self.now) {
            assert_eq!(restored.negotiated(), self.service.negotiated());
            assert_eq!(restored.is_waiting(), self.service.is_waiting());
            self.service = restored;
        }
        self.tell(ChannelEvent::Signalled);
    }

    fn tell(&mut self, event: ChannelEvent<Memory>) {
        self.service.handle(self.now, event);
        self.settle();
        assert_eq!(self.owes, None, "the service owes {:?}", self.owes);
    }

    /// Takes all outputs, and does what is due at once.
    fn settle(&mut self) {
        for _ in 0..MOST_TURNS {
            if let Some(output) = self.service.poll_output() {
                self.output(output);
            } else if self.service.poll_timeout().is_some_and(|at| at <= self.now) {
                self.service.handle(self.now, ChannelEvent::Timeout);
            } else {
                return;
            }
        }
        panic!("the service does not come to rest");
    }

    fn output(&mut self, output: ChannelOutput<Work>) {
        match output {
            ChannelOutput::OpenFinished(result) => {
                assert_eq!(self.owes.take(), Some("an open"));
                assert!(result.is_ok(), "{result:?}");
            }
            ChannelOutput::CloseFinished => assert_eq!(self.owes.take(), Some("a close")),
            ChannelOutput::Work(Work::Sample) => K::sample(&mut self.service, self.now),
            ChannelOutput::Work(Work::Notify(notice)) => assert!(!notice.to_string().is_empty()),
            ChannelOutput::Work(Work::Trace(_)) => panic!("a trace that nobody wants"),
            ChannelOutput::SignalGuest(signal) => {
                assert_eq!((signal.vp.get(), signal.flag), (0, 3))
            }
            ChannelOutput::Broken(_) => assert!(self.service.negotiated().is_err()),
        }
    }
}

fn pages() -> Vec<Gpfn> {
    (0..PAGES as u64).filter_map(Gpfn::new).collect()
}

fn channel() -> OpenChannel {
    OpenChannel {
        rings: RingLayout::new(&pages(), SPLIT).unwrap(),
        target_vp: Some(VpIndex::new(0)),
        relid: Relid::new(3),
        connection_id: ConnectionId::new(0x1003),
        is_reopened: false,
    }
}
