//! The device on one end of a channel, a model of a Linux guest on the other.

use std::time::Duration;

use guest_model::dynmem::{Client, Memory, Personality};
use guest_model::vmbus::Received;
use hv_balloon::{Action, Config, Device, Event};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::GuestMemory;
use vmbus::ring::Sent;

use crate::channel::{Ends, LINUX_RING};

const PAGES_PER_GIB: u64 = 1 << 18;

/// Ranges in a balloon response.
const RANGES: usize = 500;

/// What the guest has to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// 64 GiB of free memory, given in 2 MiB pieces down to 4 GiB.
    LargePages,
    /// 4 GiB of which every other page is in use: single pages, none beside another, down to
    /// 2.5 GiB.
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

/// A guest and its device, with Linux's rings between them. Discards end at once and do nothing, so
/// that only messages and books are measured.
#[derive(Debug)]
pub struct Machine<M> {
    ends: Ends<M>,
    device: Device,
    guest: Client,
    workload: Workload,
    now: Duration,
    message: Vec<u8>,
    /// Whether `message` waits for room.
    unsent: bool,
    received: Received,
    /// Messages the host received, without status reports in it.
    pub to_host: u64,
    /// Messages the host sent.
    pub to_guest: u64,
    /// Counts something, time for instance, or allocations.
    counter: fn() -> u64,
    /// What was counted on the host's side.
    pub host_count: u64,
}

impl<M: GuestMemory + Clone> Machine<M> {
    /// A guest that has finished the handshake. What `counter` says more after the host's work than
    /// before is added up in [`Machine::host_count`].
    ///
    /// # Panics
    /// If guest and device do not get together.
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
        let mut machine = Self {
            ends: Ends::open(mem, LINUX_RING),
            device: Device::new(config).expect("a machine that can be"),
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
        machine.device.handle(machine.now, Event::ChannelOpened { guest_os_id });
        machine.talk();
        assert!(machine.guest.version().is_some(), "the handshake did not end");
        machine
    }

    /// Shrinks the guest to the workload's target.
    pub fn shrink(&mut self) {
        self.resize(self.workload.target());
    }

    /// Gives all pages back.
    pub fn grow(&mut self) {
        self.resize(self.workload.size());
    }

    /// The guest reports its status so many times, in batches that fit the ring.
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
        self.device.set_target(self.now, target).expect("a target that can be met");
        self.act();
        self.host_count += (self.counter)() - start;
        self.talk();
        assert_eq!(self.device.snapshot().actual, target, "the guest did not follow");
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

    /// The guest reads and writes what it can; false where there was nothing.
    fn guest_works(&mut self) -> bool {
        let mut worked = false;
        while self.ends.guest.receive_into(&mut self.received) {
            self.guest.receive(&self.received.payload).expect("the device keeps the rules");
            worked = true;
        }
        while self.unsent || self.guest.poll_send_into(&mut self.message) {
            self.unsent = self.ends.guest.send(&self.message, 0).is_err();
            if self.unsent {
                break;
            }
            worked = true;
        }
        worked
    }

    /// The host reads and writes what it can; false where there was nothing.
    fn host_works(&mut self) -> bool {
        let start = (self.counter)();
        let before = self.to_host + self.to_guest;
        self.act();
        while let Some(packet) = self.ends.host.receive().expect("the ring is sound") {
            self.device.handle(self.now, Event::Packet(packet.payload));
            self.to_host += 1;
            self.act();
        }
        let _ = self.ends.host.end_receive();
        self.host_count += (self.counter)() - start;
        before != self.to_host + self.to_guest
    }

    /// Does what the device asks for.
    fn act(&mut self) {
        loop {
            if let Some(message) = self.device.message()
                && let Sent::Written { .. } = self.ends.host.send(message, 0).expect("sound")
            {
                self.to_guest += 1;
                self.device.handle(self.now, Event::Sent);
            }
            match self.device.poll_action() {
                Some(Action::Discard { id, .. }) => {
                    self.device.handle(self.now, Event::JobDone { id, ok: true });
                }
                Some(_) => {}
                None => return,
            }
        }
    }
}
