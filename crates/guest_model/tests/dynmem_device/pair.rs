//! A device and a driver with a short ring between them, in virtual time.

use std::collections::VecDeque;
use std::time::Duration;

use guest_model::dynmem::{Client, Memory, Personality};
use hv_balloon::{Action, Config, Device, DiscardId, Event, Notice, Settle, Snapshot};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};

/// Messages to the guest that fit the ring.
const RING_SLOTS: usize = 2;

pub(crate) const PAGES_PER_MIB: u64 = 256;

pub(crate) fn mib(mib: u64) -> PageCount {
    PageCount::new(mib * PAGES_PER_MIB)
}

/// RAM as a PC has it: with a hole below 1 MiB and one below 4 GiB.
pub(crate) fn ram(size_mib: u64) -> PageRangeSet {
    let range = |start: u64, end: u64| {
        PageRange::between(Gpfn::new(start).unwrap(), Gpfn::new(end).unwrap()).unwrap()
    };
    let high = 0x10_0000;
    let low_end = size_mib / 2 * PAGES_PER_MIB;
    let size = size_mib * PAGES_PER_MIB;
    // 96 pages of the hole come back at the top, so that the size is exact.
    [range(0, 0xa0), range(0x100, low_end), range(high, high + size - low_end + 0x60)]
        .into_iter()
        .collect()
}

/// One thing that can happen next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// The guest reads a message.
    ToGuest,
    /// The host reads a message.
    ToHost,
    /// The oldest discard ends.
    Discard,
}

pub(crate) struct Pair {
    pub(crate) device: Device,
    pub(crate) guest: Client,
    pub(crate) notices: Vec<Notice>,
    pub(crate) closes_finished: usize,
    now: Duration,
    /// What the driver has to write while the ring is full.
    unsent: Option<Vec<u8>>,
    ring: VecDeque<Vec<u8>>,
    /// Discards begun, each with whether it belongs to the guest's present session.
    discards: VecDeque<(DiscardId, Vec<PageRange>, bool)>,
}

impl Pair {
    /// A guest of this size, with `in_use_mib` in use, that has not opened the channel.
    pub(crate) fn new(personality: Personality, size_mib: u64, in_use_mib: u64) -> Self {
        let boot_ram = ram(size_mib);
        let memory = Memory::new(boot_ram.clone(), mib(in_use_mib));
        let settle = Settle::Fixed(Duration::ZERO);
        Self {
            device: Device::new(Config { boot_ram, settle, status_reports: true }),
            guest: Client::new(personality, memory),
            notices: Vec::new(),
            closes_finished: 0,
            now: Duration::ZERO,
            unsent: None,
            ring: VecDeque::new(),
            discards: VecDeque::new(),
        }
    }

    /// A Linux guest of 1 GiB, 64 MiB of it in use, ready to be asked.
    pub(crate) fn linux() -> Self {
        let mut pair = Self::new(Personality::linux_6_1(), 1024, 64);
        pair.open();
        pair.run();
        pair
    }

    pub(crate) fn open(&mut self) {
        self.guest.open();
        self.handle(Event::ChannelOpened { guest_os_id: 0 });
    }

    pub(crate) fn close(&mut self) {
        self.guest.close();
        self.hang_up();
        self.handle(Event::ChannelClosed);
    }

    /// A reset: the guest starts again with this memory.
    pub(crate) fn reset(&mut self, guest: Client) {
        self.guest = guest;
        self.hang_up();
        self.handle(Event::SystemReset);
    }

    fn hang_up(&mut self) {
        self.ring.clear();
        self.unsent = None;
        for (_, _, is_present) in &mut self.discards {
            *is_present = false;
        }
    }

    pub(crate) fn set_target(&mut self, target: PageCount) {
        self.handle(Event::SetTarget(target));
    }

    /// Sets a target and lets both sides work until nothing is left to do.
    pub(crate) fn resize(&mut self, target: PageCount) {
        self.set_target(target);
        self.run();
    }

    /// Steps until nothing is left to do, deadlines included.
    pub(crate) fn run(&mut self) {
        loop {
            let moved = [Step::ToGuest, Step::ToHost, Step::Discard].map(|step| self.step(step));
            if moved == [false; 3] {
                let Some(deadline) = self.device.next_deadline() else { return };
                self.now = deadline;
                self.handle(Event::Deadline);
            }
        }
    }

    /// Does one thing; false where there is nothing of the kind to do.
    pub(crate) fn step(&mut self, step: Step) -> bool {
        match step {
            Step::ToGuest => {
                let Some(message) = self.ring.pop_front() else { return false };
                self.guest.receive(&message).unwrap_or_else(|rule| panic!("rule broken: {rule}"));
                self.write();
            }
            Step::ToHost => {
                let Some(message) = self.guest.poll_send() else { return false };
                self.handle(Event::Packet(&message));
            }
            Step::Discard => {
                let Some((id, ranges, is_present)) = self.discards.pop_front() else {
                    return false;
                };
                if is_present {
                    self.assert_out(&ranges);
                }
                self.handle(Event::Discarded { id, ok: true });
            }
        }
        true
    }

    pub(crate) fn handle(&mut self, event: Event<'_>) {
        self.device.handle(self.now, event);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.device.poll_action() {
            match action {
                Action::Send(message) => {
                    assert_eq!(self.unsent.replace(message), None, "two messages at a time");
                    self.write();
                }
                Action::Discard { id, ranges } => {
                    self.assert_out(&ranges);
                    self.discards.push_back((id, ranges, true));
                }
                Action::CloseFinished => {
                    assert!(self.discards.is_empty(), "closed while discarding");
                    self.closes_finished += 1;
                }
                Action::Notify(notice) => self.notices.push(notice),
            }
        }
    }

    /// Writes what waits, if the ring has room.
    fn write(&mut self) {
        if self.ring.len() < RING_SLOTS
            && let Some(message) = self.unsent.take()
        {
            self.ring.push_back(message);
            self.handle(Event::Sent);
        }
    }

    /// A page the guest can use must not be discarded: that is lost data.
    fn assert_out(&self, ranges: &[PageRange]) {
        for &range in ranges {
            assert!(self.guest.memory().ballooned().contains_range(range), "{range} is in use");
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.device.snapshot()
    }

    /// Asserts that both sides have the same idea of the guest's size, and that it is this one.
    pub(crate) fn assert_size(&self, size: PageCount) {
        assert_eq!(self.snapshot().actual, size);
        assert_eq!(self.guest.memory().managed(), size);
    }
}
