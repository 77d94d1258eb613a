//! A service and a guest with its driver.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use guest_model::services::{Heard, ServiceDriver, ServiceGuest};
use guest_model::vmbus::{GuestRings, SharedMemory};
use integration_services::{
    HeartbeatKind, Kind, Notice, Service, ShutdownKind, TimeSample, TimeSyncKind, Work,
};
use page_range::Gpfn;
use vmbus::protocol::{ConnectionId, Relid, VpIndex};
use vmbus::ring::RingLayout;
use vmbus::{ChannelEvent, ChannelOutput, GuestSignal, OpenChannel, VmbusDevice};

pub(crate) type Memory = Arc<SharedMemory>;

/// Pages of each ring: one for control, and three as Linux has them.
const SPLIT: usize = 4;

fn pages() -> Vec<Gpfn> {
    (0..8).filter_map(Gpfn::new).collect()
}

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn channel() -> OpenChannel {
    OpenChannel {
        rings: RingLayout::new(&pages(), SPLIT).unwrap(),
        target_vp: Some(VpIndex::new(0)),
        relid: Relid::new(3),
        connection_id: ConnectionId::new(0x1003),
        is_reopened: false,
    }
}

/// A kind of service, and how it takes a sample.
pub(crate) trait Sampled: Kind + Default {
    fn give(_: &mut Service<Memory, Self>, _: Duration, _: TimeSample)
    where
        Self: Sized,
    {
        panic!("this service asks for no sample");
    }
}

impl Sampled for ShutdownKind {}

impl Sampled for HeartbeatKind {}

impl Sampled for TimeSyncKind {
    fn give(service: &mut Service<Memory, Self>, now: Duration, sample: TimeSample) {
        service.sample(now, sample);
    }
}

pub(crate) struct Pair<K: Kind> {
    pub(crate) service: Service<Memory, K>,
    pub(crate) guest: ServiceGuest<Memory>,
    pub(crate) memory: Memory,
    pub(crate) now: Duration,
    /// The guest takes no messages.
    pub(crate) is_deaf: bool,
    pub(crate) sample: Option<TimeSample>,
    pub(crate) asked_for_samples: u32,
    pub(crate) signals: u32,
    pub(crate) last_signal: Option<GuestSignal>,
    pub(crate) work: Vec<Work>,
}

impl<K: Sampled> Pair<K> {
    /// The guest has opened the channel, and has not looked at it yet.
    pub(crate) fn open(driver: ServiceDriver) -> Self {
        Self::with(Service::new(), driver)
    }

    pub(crate) fn with(service: Service<Memory, K>, driver: ServiceDriver) -> Self {
        let memory = Arc::new(SharedMemory::new(8));
        let rings = GuestRings::new(Arc::clone(&memory), &pages(), SPLIT);
        let mut pair = Self {
            service,
            guest: ServiceGuest { rings, driver },
            memory,
            now: Duration::ZERO,
            is_deaf: false,
            sample: None,
            asked_for_samples: 0,
            signals: 0,
            last_signal: None,
            work: Vec::new(),
        };
        pair.open_channel();
        pair
    }

    /// A Linux that has negotiated.
    pub(crate) fn ready() -> Self {
        let mut pair = Self::open(ServiceDriver::linux());
        pair.run();
        pair.notices();
        pair.heard();
        pair
    }

    fn open_channel(&mut self) {
        let (memory, channel) = (Arc::clone(&self.memory), channel());
        self.service.handle(self.now, ChannelEvent::Open { memory, channel, guest_os_id: 0 });
        let first = self.service.poll_output();
        assert_eq!(first, Some(ChannelOutput::OpenFinished(Ok(()))));
        self.take_outputs();
    }

    /// The guest closes its channel and opens it anew.
    pub(crate) fn reopen(&mut self) {
        self.service.handle(self.now, ChannelEvent::Close);
        self.take_outputs();
        assert!(self.service.is_quiet());
        self.guest.rings = GuestRings::new(Arc::clone(&self.memory), &pages(), SPLIT);
        self.open_channel();
    }

    /// Both sides do what they have to do at this time.
    pub(crate) fn run(&mut self) {
        self.take_outputs();
        while !self.is_deaf && self.guest.step() {
            self.service.handle(self.now, ChannelEvent::Signalled);
            self.take_outputs();
        }
    }

    /// Time passes until `end`, with every deadline.
    pub(crate) fn pass(&mut self, end: Duration) {
        self.run();
        while let Some(at) = self.service.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.service.handle(self.now, ChannelEvent::Timeout);
            self.run();
        }
        self.now = end;
    }

    pub(crate) fn take_outputs(&mut self) {
        while let Some(output) = self.service.poll_output() {
            match output {
                ChannelOutput::SignalGuest(signal) => {
                    self.signals += 1;
                    self.last_signal = Some(signal);
                }
                ChannelOutput::Work(work) => {
                    if work == Work::Sample {
                        self.asked_for_samples += 1;
                        if let Some(sample) = self.sample {
                            K::give(&mut self.service, self.now, sample);
                        }
                    }
                    self.work.push(work);
                }
                ChannelOutput::CloseFinished => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The notices since the last call.
    pub(crate) fn notices(&mut self) -> Vec<Notice> {
        let work = mem::take(&mut self.work).into_iter();
        work.filter_map(|work| match work {
            Work::Notify(notice) => Some(notice),
            _ => None,
        })
        .collect()
    }

    /// What the guest heard since the last call.
    pub(crate) fn heard(&mut self) -> Vec<Heard> {
        mem::take(&mut self.guest.driver.heard)
    }
}
