//! The VSP on one end of a channel, and a model of a Linux guest on the other.

use std::time::Duration;

use dynmem_vsp::{Config, DynamicMemory, Work};
use guest_model::dynmem::{Client, Memory, Personality};
use guest_model::vmbus::{GuestRings, Received};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::{ConnectionId, Relid, VpIndex};
use vmbus::{ChannelEvent, ChannelOutput, GuestMemory, OpenChannel, VmbusDevice};

use crate::channel::{LINUX_RING, rings};

const PAGES_PER_GIB: u64 = 1 << 18;

/// Ranges in a balloon response.
const RANGES: usize = 500;

/// The memory that the guest has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// 64 GiB of free memory, given in 2 MiB pieces down to 4 GiB.
    LargePages,
    /// 4 GiB of memory with every other page in use, given in single pages, no two of them
    /// adjacent, down to 2.5 GiB.
    EveryOtherPage,
}

impl Workload {
    const fn size(self) -> PageCount {
        PageCount::new(match self {
            Self::LargePages => 64 * PAGES_PER_GIB,
            Self::EveryOtherPage => 4 * PAGES_PER_GIB,
        })
    }

    const fn target(self) -> PageCount {
        PageCount::new(match self {
            Self::LargePages => 4 * PAGES_PER_GIB,
            Self::EveryOtherPage => 5 * PAGES_PER_GIB / 2,
        })
    }
}

/// A guest and its VSP, with Linux's rings between them. Discards end at once and do nothing, so
/// that only messages and the page ledger are measured.
#[derive(Debug)]
pub struct Machine<M> {
    vsp: DynamicMemory<M>,
    rings: GuestRings<M>,
    guest: Client,
    workload: Workload,
    now: Duration,
    message: Vec<u8>,
    /// Whether `message` waits for room.
    unsent: bool,
    received: Received,
    /// Messages the guest sent.
    pub to_host: u64,
    /// Messages the guest received.
    pub to_guest: u64,
    /// Returns a count, for example of time or allocations.
    counter: fn() -> u64,
    /// The count on the host's side.
    pub host_count: u64,
}

impl<M: GuestMemory + Clone> Machine<M> {
    /// A guest that has finished the handshake. The increases of `counter` during the host's work
    /// are summed up in [`Machine::host_count`].
    ///
    /// # Panics
    /// If guest and device do not connect.
    pub fn new(mem: &M, workload: Workload, counter: fn() -> u64) -> Self {
        let ram: PageRangeSet =
            PageRange::new(Gpfn::default(), workload.size()).into_iter().collect();
        let mut memory = Memory::new(ram.clone(), PageCount::ZERO);
        if workload == Workload::EveryOtherPage {
            memory.shatter_units(PageCount::new(2));
        }
        let mut personality = Personality::linux_6_1();
        personality.ballooning.ranges_per_message = RANGES;
        let config = Config { boot_ram: ram, status_reports: false, ..Config::default() };
        let guest_os_id = personality.guest_os_id;
        let (layout, rings) = rings(mem, LINUX_RING);
        let mut machine = Self {
            vsp: DynamicMemory::new(config).expect("memory that a guest can have"),
            rings,
            guest: Client::new(personality, memory),
            workload,
            now: Duration::ZERO,
            message: Vec::new(),
            unsent: false,
            received: Received::new(),
            to_host: 0,
            to_guest: 0,
            counter,
            host_count: 0,
        };
        machine.guest.open();
        let channel = OpenChannel {
            rings: layout,
            target_vp: Some(VpIndex::new(0)),
            relid: Relid::new(1),
            connection_id: ConnectionId::new(1),
            is_reopened: false,
        };
        let open = ChannelEvent::Open { memory: mem.clone(), channel, guest_os_id };
        machine.vsp.handle(machine.now, open);
        machine.talk();
        assert!(machine.guest.version().is_some(), "the handshake did not end");
        machine
    }

    /// Shrinks the guest to the workload's target.
    pub fn shrink(&mut self) {
        self.resize(self.workload.target());
    }

    /// Returns all pages.
    pub fn grow(&mut self) {
        self.resize(self.workload.size());
    }

    /// The guest reports its status this many times, in batches that fit into the ring.
    pub fn report_status(&mut self, times: u64) {
        for n in 1..=times {
            self.guest.report_status();
            self.guest_works();
            if n % 100 == 0 || n == times {
                self.host_works();
            }
        }
    }

    fn resize(&mut self, target: PageCount) {
        let start = (self.counter)();
        self.vsp.set_target(self.now, target).expect("within reach");
        self.act();
        self.host_count += (self.counter)() - start;
        self.talk();
        assert_eq!(self.vsp.snapshot().actual, target, "the guest did not follow");
    }

    /// Both sides work until neither has anything to do.
    fn talk(&mut self) {
        loop {
            let guest_worked = self.guest_works();
            if !self.host_works() && !guest_worked {
                return;
            }
        }
    }

    /// The guest reads and writes what it can; returns false if there was nothing to do.
    fn guest_works(&mut self) -> bool {
        let mut worked = false;
        while self.rings.receive_into(&mut self.received) {
            self.guest.receive(&self.received.payload).expect("the device keeps the rules");
            self.to_guest += 1;
            worked = true;
        }
        while self.unsent || self.guest.poll_send_into(&mut self.message) {
            self.unsent = self.rings.send(&self.message, 0).is_err();
            if self.unsent {
                break;
            }
            self.to_host += 1;
            worked = true;
        }
        worked
    }

    /// The host reads and writes what it can; returns false if the VSP had nothing to do.
    fn host_works(&mut self) -> bool {
        let start = (self.counter)();
        self.vsp.handle(self.now, ChannelEvent::Signalled);
        let mut worked = self.act();
        // The VSP continues after a timeout if there is more than a batch.
        while self.vsp.poll_timeout().is_some_and(|at| at <= self.now) {
            self.vsp.handle(self.now, ChannelEvent::Timeout);
            worked |= self.act();
        }
        self.host_count += (self.counter)() - start;
        worked
    }

    /// Carries out the VSP's requests; returns false if there were none.
    fn act(&mut self) -> bool {
        let mut worked = false;
        while let Some(output) = self.vsp.poll_output() {
            worked = true;
            match output {
                ChannelOutput::Work(Work::Job(job)) => self.vsp.job_done(self.now, job.id, true),
                ChannelOutput::Broken(error) => panic!("the ring is broken: {error}"),
                ChannelOutput::OpenFinished(result) => result.expect("the rings are sound"),
                _ => {}
            }
        }
        worked
    }
}
