//! A driver for tests, which puts the device's actions on lists for the test to inspect.

use std::collections::VecDeque;
use std::time::Duration;

use dynmem_protocol::*;
use hv_balloon::{
    Action, Config, Device, Event, HotAdd, Job, JobId, Notice, Prepare, Settle, StateName,
    TargetError, Task,
};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};

pub(crate) const RAM_PAGES: u64 = 8192;

pub(crate) fn pages(count: u64) -> PageCount {
    PageCount::new(count)
}

pub(crate) fn range(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), pages(count)).unwrap()
}

/// RAM with a hole in it: 4096 pages from 0 and 4096 pages from 0x10000.
pub(crate) fn ram() -> PageRangeSet {
    [range(0, RAM_PAGES / 2), range(0x1_0000, RAM_PAGES / 2)].into_iter().collect()
}

pub(crate) struct Driver {
    pub(crate) device: Device,
    /// The device's configuration.
    pub(crate) config: Config,
    pub(crate) now: Duration,
    /// Messages in the ring that the test has not taken yet.
    pub(crate) ring: VecDeque<Vec<u8>>,
    /// Discards requested and not yet finished.
    pub(crate) discards: VecDeque<(JobId, Vec<PageRange>)>,
    /// Memory that is being prepared.
    pub(crate) preparing: VecDeque<(JobId, Prepare)>,
    /// Memory that is being removed.
    pub(crate) removing: VecDeque<(JobId, PageRange)>,
    /// Whether removals succeed at once; otherwise [`Driver::finish_removal`] ends them.
    pub(crate) removes_at_once: bool,
    /// Memory that was removed.
    pub(crate) removed: Vec<PageRange>,
    pub(crate) notices: Vec<Notice>,
    pub(crate) closes_finished: usize,
    /// The message held back while the ring is full.
    pub(crate) stuck: Option<Vec<u8>>,
    pub(crate) ring_is_full: bool,
}

impl Driver {
    pub(crate) fn new(settle: Settle, status_reports: bool) -> Self {
        let config = Config { boot_ram: ram(), settle, status_reports, ..Config::default() };
        Self::with(config)
    }

    pub(crate) fn with(config: Config) -> Self {
        Self {
            device: Device::new(config.clone()).unwrap(),
            config,
            now: Duration::from_secs(1),
            ring: VecDeque::new(),
            discards: VecDeque::new(),
            preparing: VecDeque::new(),
            removing: VecDeque::new(),
            removes_at_once: true,
            removed: Vec::new(),
            notices: Vec::new(),
            closes_finished: 0,
            stuck: None,
            ring_is_full: false,
        }
    }

    /// A driver whose guest has completed the handshake and is ready for requests.
    pub(crate) fn ready() -> Self {
        let mut driver = Self::new(Settle::Fixed(Duration::ZERO), false);
        driver.shake_hands();
        assert_eq!(driver.state(), StateName::Idle);
        driver
    }

    /// A driver whose guest can also take new memory: up to 4096 pages, in blocks of 512.
    pub(crate) fn growable() -> Self {
        let hot_add = HotAdd { window: WINDOW, capacity: pages(4096), least_alignment: pages(1) };
        let mut driver = Self::with(Config {
            boot_ram: ram(),
            settle: Settle::Fixed(Duration::ZERO),
            hot_add: Some(hot_add),
            ..Config::default()
        });
        driver.shake_hands_as(0, CAN_GROW);
        assert_eq!(driver.state(), StateName::Idle);
        driver
    }

    /// A driver whose guest gave its highest `count` pages.
    pub(crate) fn with_ballooned(count: u64) -> Self {
        let mut driver = Self::ready();
        driver.set_target(RAM_PAGES - count);
        driver.give(&[range(0x1_1000 - count, count)], false);
        driver.finish_discards();
        driver.drain();
        driver
    }

    pub(crate) fn shake_hands(&mut self) {
        self.shake_hands_as(0, Capabilities::BALLOON);
    }

    pub(crate) fn shake_hands_as(&mut self, guest_os_id: u64, capabilities: Capabilities) {
        self.handle(Event::ChannelOpened { guest_os_id, is_reopened: false });
        self.packet(&version_request(Version::V2_0));
        self.packet(&capabilities_report(capabilities));
        self.drain();
    }

    /// Forgets messages and notices, so that a test sees only later ones.
    pub(crate) fn drain(&mut self) {
        self.ring.clear();
        self.notices.clear();
    }

    pub(crate) fn handle(&mut self, event: Event<'_>) {
        self.device.handle(self.now, event);
        self.run();
    }

    /// Replaces the device by one restored from its saved state. What the old device had requested
    /// is void; the restored one requests it again.
    pub(crate) fn save_and_restore(&mut self) {
        let saved = self.device.save(self.now);
        self.device = Device::restore(self.config.clone(), &saved, self.now).unwrap();
        self.discards.clear();
        self.preparing.clear();
        self.removing.clear();
        self.stuck = None;
        self.run();
    }

    fn run(&mut self) {
        while let Some(action) = self.device.poll_action() {
            match action {
                Action::Send if self.ring_is_full => {
                    let message = self.device.message().map(<[u8]>::to_vec);
                    assert!(message.is_some(), "nothing to send");
                    assert_eq!(core::mem::replace(&mut self.stuck, message), None, "two at a time");
                }
                Action::Send => {
                    self.ring.push_back(self.device.message().expect("a message").to_vec());
                    self.device.handle(self.now, Event::Sent);
                }
                Action::Work(Job { id, task: Task::Discard(ranges) }) => {
                    self.discards.push_back((id, ranges))
                }
                Action::Work(Job { id, task: Task::Prepare(what) }) => {
                    self.preparing.push_back((id, what))
                }
                Action::Work(Job { id, task: Task::Remove(range) }) if self.removes_at_once => {
                    self.removed.push(range);
                    self.device.handle(self.now, Event::JobDone { id, ok: true });
                }
                Action::Work(Job { id, task: Task::Remove(range) }) => {
                    self.removing.push_back((id, range))
                }
                Action::CloseFinished => self.closes_finished += 1,
                Action::Notify(notice) => self.notices.push(notice),
            }
        }
    }

    pub(crate) fn packet(&mut self, packet: &[u8]) {
        self.handle(Event::Packet(packet));
    }

    /// Sets a target that may be refused.
    pub(crate) fn try_target(&mut self, target: u64) -> Result<PageCount, TargetError> {
        let taken = self.device.set_target(self.now, pages(target));
        self.run();
        taken
    }

    pub(crate) fn set_target(&mut self, target: u64) {
        self.try_target(target).expect("a target that can be met");
    }

    pub(crate) fn set_inhibited(&mut self, inhibited: bool) {
        self.device.set_inhibited(self.now, inhibited);
        self.run();
    }

    /// Ends the oldest removal.
    pub(crate) fn finish_removal(&mut self, ok: bool) -> PageRange {
        let (id, range) = self.removing.pop_front().expect("no removal begun");
        self.handle(Event::JobDone { id, ok });
        range
    }

    /// Answers a balloon request with these ranges.
    pub(crate) fn give(&mut self, ranges: &[PageRange], more_pages: bool) {
        self.packet(&BalloonResponse::emit(99, more_pages, &list(ranges)));
    }

    pub(crate) fn unballooned(&mut self) {
        self.packet(&UnballoonResponse.emit(99));
    }

    pub(crate) fn finish_discard(&mut self, ok: bool) -> Vec<PageRange> {
        let (id, ranges) = self.discards.pop_front().expect("no discard begun");
        self.handle(Event::JobDone { id, ok });
        ranges
    }

    pub(crate) fn finish_discards(&mut self) {
        while !self.discards.is_empty() {
            self.finish_discard(true);
        }
    }

    /// Ends the oldest preparation, successfully or not.
    pub(crate) fn prepared(&mut self, ok: bool) -> Prepare {
        let (id, what) = self.preparing.pop_front().expect("nothing is being prepared");
        self.handle(Event::JobDone { id, ok });
        what
    }

    /// Answers a hot-add request.
    pub(crate) fn added(&mut self, count: u64, result: HotAddResult) {
        self.packet(&HotAddResponse { pages: pages(count), result }.emit(99));
    }

    /// Takes the next message, a hot-add request, and returns its range, which must equal its
    /// region.
    pub(crate) fn offered(&mut self) -> PageRange {
        let message = self.ring.pop_front().expect("nothing was sent");
        match HostMessage::parse(&message).unwrap().body {
            HostBody::HotAddRequest(request) => {
                assert_eq!(request.region, Some(request.range));
                request.range.range().unwrap()
            }
            other => panic!("not a hot-add request: {other:?}"),
        }
    }

    pub(crate) fn make_room(&mut self) {
        self.ring_is_full = false;
        if let Some(message) = self.stuck.take() {
            self.ring.push_back(message);
            self.handle(Event::Sent);
        }
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
        self.handle(Event::Deadline);
    }

    pub(crate) fn state(&self) -> StateName {
        self.device.snapshot().state
    }

    pub(crate) fn actual(&self) -> u64 {
        self.device.snapshot().actual.get()
    }

    /// Takes the next message, a balloon request, and returns its number of pages.
    pub(crate) fn asked(&mut self) -> u64 {
        let message = self.ring.pop_front().expect("nothing was sent");
        match HostMessage::parse(&message).unwrap().body {
            HostBody::BalloonRequest(request) => request.pages.get(),
            other => panic!("not a balloon request: {other:?}"),
        }
    }

    /// Takes the next message, an unballoon request, and returns its ranges and whether more
    /// follow.
    pub(crate) fn returned(&mut self) -> (Vec<PageRange>, bool) {
        let message = self.ring.pop_front().expect("nothing was sent");
        match HostMessage::parse(&message).unwrap().body {
            HostBody::UnballoonRequest(request) => (
                request.ranges.iter().map(|word| word.range().unwrap()).collect(),
                request.more_pages,
            ),
            other => panic!("not an unballoon request: {other:?}"),
        }
    }
}

/// The hot-add window of these tests; its start is not a multiple of the alignment.
pub(crate) const WINDOW: PageRange = match Gpfn::new(0x2_0100) {
    Some(start) => match PageRange::new(start, PageCount::new(1 << 20)) {
        Ok(window) => window,
        Err(_) => panic!(),
    },
    None => panic!(),
};

/// Balloon, hot-add and an alignment of 2 MiB.
pub(crate) const CAN_GROW: Capabilities =
    Capabilities::BALLOON.union(Capabilities::HOT_ADD).with_hot_add_alignment(1);

pub(crate) fn version_request(version: Version) -> Vec<u8> {
    VersionRequest { version, is_last_attempt: version == Version::V0_3 }.emit(1)
}

pub(crate) fn capabilities_report(capabilities: Capabilities) -> Vec<u8> {
    CapabilitiesReport { capabilities, minimum_pages: PageCount::ZERO, highest_page: u64::MAX }
        .emit(2)
}

pub(crate) fn list(ranges: &[PageRange]) -> RangeList {
    let mut list = RangeList::new();
    ranges.iter().for_each(|&range| list.push(range).unwrap());
    list
}

pub(crate) fn stop(driver: &Driver) -> Option<hv_balloon::StopReason> {
    driver.device.snapshot().last_stop
}

/// A status report with these pages available and committed.
pub(crate) fn status(available: u64, committed: u64) -> Vec<u8> {
    let (available, committed) = (pages(available), pages(committed));
    StatusReport { available, committed, ..StatusReport::default() }.emit(99)
}
