//! The device with a driver and a guest that follow a script, and a model of each page.
//!
//! The model does not know the device's states: it follows each page by the messages and jobs that
//! name it. The random walks beside this file and a fuzzer (`tests/fuzz_bodies`) run it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dynmem_protocol::*;
use hv_balloon::{
    Action, Config, Device, Event, HotAdd, Job, JobId, Prepare, Settle, Snapshot, StateName, Task,
};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};

/// RAM at boot is 0 to 47 and 64 to 111; the rest up to 127 is not RAM.
pub(crate) const PAGES: u64 = 128;
/// Where memory may be added; the first block that is aligned begins at 512.
const WINDOW: (u64, u64) = (304, 2000);
const CAPACITY: u64 = 1000;
/// The smallest alignment a guest can have, 1 MiB.
pub(crate) const BLOCK: u64 = 256;

/// Pages of boot RAM.
const BOOT: u64 = 96;

fn is_boot_ram(page: u64) -> bool {
    page < 48 || (64..112).contains(&page)
}

fn ram() -> PageRangeSet {
    (0..PAGES).filter(|&page| is_boot_ram(page)).map(|page| range(page, 1)).collect()
}

pub(crate) fn range(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

fn numbers(range: PageRange) -> impl Iterator<Item = u64> {
    range.start().get()..range.end().get()
}

/// A step.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Open,
    Close,
    Reset,
    Version(u32),
    Capabilities(u64),
    Give(Vec<PageRange>, bool),
    /// Gives as many of the guest's pages as requested, plus or minus the number.
    Obey(i8),
    Confirm,
    Status,
    Garbage(Vec<u8>),
    Target(u64),
    /// The guest's answer to a hot-add request: a number of pages, right or wrong, and its result.
    Added(u64, u32),
    /// The oldest removal of memory ends.
    Removed(bool),
    /// Discards are forbidden, or allowed again.
    Inhibit(bool),
    /// The preparation ends.
    Prepared(bool),
    /// The driver writes the message it has.
    Write,
    /// The oldest discard ends.
    Discarded(bool),
    Wait(u64),
    /// The device is saved, and a restored one replaces it.
    Restore,
}

pub(crate) struct World {
    device: Device,
    /// The number of pages that the host can discard only together.
    unit: u64,
    now: Duration,
    /// The message with the driver, not in the ring yet.
    outgoing: Option<Vec<u8>>,
    discards: BTreeMap<JobId, BTreeSet<u64>>,
    /// Discards of earlier sessions.
    stale: BTreeSet<JobId>,
    /// Pages that the guest gave since it opened the channel and did not get back.
    out: BTreeSet<u64>,
    /// Those of them that are RAM and whose discard succeeded.
    discarded: BTreeSet<u64>,
    asked: Option<u64>,
    awaiting_close: bool,
    preparing: Option<(JobId, Prepare)>,
    removing: BTreeMap<JobId, PageRange>,
    /// Memory whose removal failed.
    stuck: BTreeSet<u64>,
    inhibited: bool,
    /// The page after the highest that was prepared since the last reset.
    reach: u64,
    /// Pages of a closed channel that the host must provide before the next kernel starts.
    absent: BTreeSet<u64>,
    /// Whether the preparation is for the next kernel.
    for_next: bool,
    /// Memory beyond boot RAM that the guest can access.
    mapped: BTreeSet<u64>,
    /// Memory that the guest has beyond its boot RAM.
    added: BTreeSet<u64>,
    /// The page at offset 0 of the hot-add memory, once any was prepared since the last reset.
    base: Option<u64>,
    /// The hot-add request the guest knows of and has not answered.
    offered: Option<PageRange>,
    /// The block size that memory was last prepared with.
    alignment: u64,
    /// The requests that a restored device has to repeat.
    again: Again,
}

/// The unanswered requests of the device that was saved.
#[derive(Debug, Default, PartialEq)]
struct Again {
    message: Option<Vec<u8>>,
    discards: BTreeMap<JobId, BTreeSet<u64>>,
    preparing: Option<(JobId, Prepare)>,
    removing: BTreeMap<JobId, PageRange>,
}

impl World {
    pub(crate) fn config(unit: u64) -> Config {
        let hot_add = HotAdd {
            window: range(WINDOW.0, WINDOW.1 - WINDOW.0),
            capacity: PageCount::new(CAPACITY),
            least_alignment: PageCount::new(unit),
        };
        Config {
            boot_ram: ram(),
            settle: Settle::Fixed(Duration::ZERO),
            status_reports: true,
            hot_add: Some(hot_add),
            discard_unit: PageCount::new(unit),
            inhibited: false,
        }
    }

    pub(crate) fn new(unit: u64) -> Self {
        Self {
            device: Device::new(Self::config(unit)).unwrap(),
            unit,
            now: Duration::ZERO,
            outgoing: None,
            discards: BTreeMap::new(),
            stale: BTreeSet::new(),
            out: BTreeSet::new(),
            discarded: BTreeSet::new(),
            asked: None,
            awaiting_close: false,
            preparing: None,
            removing: BTreeMap::new(),
            stuck: BTreeSet::new(),
            inhibited: false,
            reach: 0,
            absent: BTreeSet::new(),
            for_next: false,
            mapped: BTreeSet::new(),
            added: BTreeSet::new(),
            base: None,
            offered: None,
            alignment: BLOCK,
            again: Again::default(),
        }
    }

    pub(crate) fn apply(&mut self, op: Op) {
        match op {
            Op::Open => self.event(Event::ChannelOpened { guest_os_id: 0, is_reopened: false }),
            Op::Close => {
                if let Some(range) = self.offered.take() {
                    self.added.extend(numbers(range));
                }
                if self.unit > 1 {
                    self.absent.append(&mut self.discarded.clone());
                    let of_session =
                        self.discards.iter().filter(|(id, _)| !self.stale.contains(id));
                    self.absent.extend(of_session.flat_map(|(_, pages)| pages));
                }
                self.close(Event::ChannelClosed);
            }
            Op::Reset => {
                self.offered = None;
                self.added.clear();
                self.base = None;
                self.absent.clear();
                self.close(Event::SystemReset);
            }
            Op::Version(version) => {
                let version = Version::from_wire(version);
                self.packet(VersionRequest { version, is_last_attempt: false }.emit(1));
            }
            Op::Capabilities(bits) => self.packet(
                CapabilitiesReport {
                    capabilities: Capabilities::from_wire(bits),
                    minimum_pages: PageCount::ZERO,
                    highest_page: 0,
                }
                .emit(2),
            ),
            Op::Give(ranges, more) => self.give(&ranges, more),
            Op::Obey(extra) => self.obey(extra),
            Op::Confirm => {
                self.packet(UnballoonResponse.emit(3));
            }
            Op::Status => self.packet(StatusReport::default().emit(4)),
            Op::Garbage(bytes) => self.garbage(&bytes),
            Op::Target(target) => {
                let target = PageCount::new(target);
                let taken = self.device.set_target(self.now, target);
                let snapshot = self.device.snapshot();
                match taken {
                    Ok(taken) => assert_eq!(snapshot.target, Some(taken)),
                    Err(_) => assert_eq!(snapshot.last_refusal.unwrap().0, target),
                }
                self.act();
            }
            Op::Removed(ok) => self.finish_removal(ok),
            Op::Inhibit(inhibited) => {
                self.inhibited = inhibited;
                self.device.set_inhibited(self.now, inhibited);
                assert_eq!(self.device.snapshot().inhibited, inhibited);
                self.act();
            }
            Op::Added(pages, verdict) => self.answer_offer(pages, verdict),
            Op::Prepared(ok) => self.finish_preparing(ok),
            Op::Write => self.write(),
            Op::Discarded(ok) => self.finish_discard(ok),
            Op::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.event(Event::Deadline);
            }
            Op::Restore => self.restore(),
        }
    }

    /// Forgets all unanswered requests; the restored device must repeat those that are still
    /// needed.
    fn restore(&mut self) {
        let saved = self.device.save(self.now);
        let config = Config { inhibited: self.inhibited, ..Self::config(self.unit) };
        let restored = Device::restore(config, &saved, self.now).unwrap();
        let before = std::mem::replace(&mut self.device, restored).snapshot();
        let mut discards = std::mem::take(&mut self.discards);
        for id in std::mem::take(&mut self.stale) {
            discards.remove(&id);
        }
        let preparing = self.preparing.take().filter(|_| !self.awaiting_close);
        if self.inhibited {
            discards.clear();
        }
        let removing = std::mem::take(&mut self.removing);
        self.again = Again { message: self.outgoing.take(), discards, preparing, removing };
        if before.state == StateName::Closing {
        } else if self.inhibited {
            // Pages of discards in flight wait again and may be returned at once, which may reach a
            // target.
            let after = self.device.snapshot();
            let pages = |at: &Snapshot| (at.assigned, at.hot_added, at.target);
            assert_eq!(pages(&after), pages(&before));
            assert_eq!((after.version, after.faults), (before.version, before.faults));
        } else {
            assert_eq!(self.device.snapshot(), before);
            assert!(self.device.save(self.now) == saved, "saved differently when restored");
        }
        self.act();
        assert_eq!(self.again, Again::default(), "not asked for again");
    }

    fn event(&mut self, event: Event<'_>) {
        self.device.handle(self.now, event);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.device.poll_action() {
            match action {
                Action::Send => {
                    let message = self.device.message().expect("a message").to_vec();
                    assert!(message.len() <= MAX_HOST_MESSAGE && message.len().is_multiple_of(8));
                    assert_eq!(self.outgoing, None, "a second message before the first was sent");
                    if let Some(before) = self.again.message.take() {
                        assert_eq!(message, before);
                    } else {
                        self.take_back(&message);
                    }
                    self.outgoing = Some(message);
                }
                Action::Work(Job { id, task: Task::Discard(ranges) }) => {
                    self.begin_discard(id, &ranges)
                }
                Action::Work(Job { id, task: Task::Prepare(what) }) => {
                    self.begin_preparing(id, what)
                }
                Action::Work(Job { id, task: Task::Remove(range) }) => self.remove(id, range),
                Action::CloseFinished => {
                    assert!(self.awaiting_close, "no close to finish");
                    assert!(self.discards.is_empty(), "a discard is in flight");
                    assert_eq!(self.preparing, None, "a preparation is in flight");
                    assert!(self.removing.is_empty(), "a removal is in flight");
                    assert!(self.absent.is_empty(), "pages are not there for the next kernel");
                    self.awaiting_close = false;
                }
                Action::Notify(_) => {}
            }
        }
        self.check();
    }

    fn packet(&mut self, packet: Vec<u8>) {
        self.event(Event::Packet(&packet));
    }

    fn close(&mut self, event: Event<'_>) {
        self.outgoing = None;
        self.stale = self.discards.keys().copied().collect();
        self.out.clear();
        self.discarded.clear();
        self.asked = None;
        self.awaiting_close = true;
        self.event(event);
    }

    fn give(&mut self, ranges: &[PageRange], more: bool) {
        let ranges = ranges.get(..MAX_RANGES).unwrap_or(ranges);
        let counts = !matches!(
            self.device.snapshot().state,
            StateName::Closed | StateName::Closing | StateName::AwaitVersion | StateName::AwaitCaps
        );
        if counts {
            for page in ranges.iter().copied().flat_map(numbers) {
                self.out.insert(page);
            }
            if !more {
                self.asked = None;
            }
        }
        let mut list = RangeList::new();
        ranges.iter().for_each(|&range| list.push(range).unwrap());
        self.packet(BalloonResponse::emit(5, more, &list));
    }

    fn obey(&mut self, extra: i8) {
        let Some(asked) = self.asked else { return };
        let count = asked.saturating_add_signed(extra.into());
        // One message holds no more ranges.
        let count = usize::try_from(count).unwrap().min(510);
        let pages: Vec<PageRange> = (0..PAGES)
            .chain(self.added.iter().copied())
            .filter(|page| self.is_ram(*page) && !self.out.contains(page))
            .take(count)
            .map(|page| range(page, 1))
            .collect();
        self.give(&pages, false);
    }

    /// Garbage must not be a valid answer, or the model would miss what it gives.
    fn garbage(&mut self, bytes: &[u8]) {
        if GuestMessage::parse(bytes).is_err() {
            self.event(Event::Packet(bytes));
        }
    }

    fn write(&mut self) {
        if let Some(message) = self.outgoing.take() {
            match HostMessage::parse(&message).unwrap().body {
                HostBody::BalloonRequest(request) => {
                    self.asked = Some(request.pages.get());
                }
                HostBody::HotAddRequest(request) => {
                    let range = request.range.range().unwrap();
                    assert_eq!(self.offered.replace(range), None, "two offers at a time");
                }
                _ => {}
            }
            self.event(Event::Sent);
        }
    }

    fn begin_discard(&mut self, id: JobId, ranges: &[PageRange]) {
        assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()), "not merged");
        let pages: BTreeSet<u64> = ranges.iter().copied().flat_map(numbers).collect();
        for page in &pages {
            assert!(self.is_ram(*page), "{page} is not RAM");
            assert!(self.out.contains(page), "the guest uses {page}");
            assert!(!self.discarded.contains(page), "{page} is discarded already");
            assert!(!self.in_flight(*page), "{page} is being discarded already");
        }
        assert!(!pages.is_empty());
        assert!(!self.inhibited, "discards are forbidden");
        if let Some(before) = self.again.discards.remove(&id) {
            assert_eq!(pages, before);
        }
        for range in ranges {
            assert!(
                range.start().get().is_multiple_of(self.unit)
                    && range.count().get().is_multiple_of(self.unit),
                "a part of a unit is discarded"
            );
        }
        assert!(self.discards.insert(id, pages).is_none(), "id used twice");
    }

    fn in_flight(&self, page: u64) -> bool {
        self.discards.iter().any(|(id, pages)| !self.stale.contains(id) && pages.contains(&page))
    }

    fn finish_discard(&mut self, ok: bool) {
        if let Some((id, pages)) = self.discards.pop_first() {
            if ok && !self.stale.remove(&id) {
                self.discarded.extend(pages);
            }
            self.event(Event::JobDone { id, ok });
        }
    }

    fn is_ram(&self, page: u64) -> bool {
        is_boot_ram(page) || self.added.contains(&page)
    }

    fn begin_preparing(&mut self, id: JobId, what: Prepare) {
        if let Some(before) = self.again.preparing.take() {
            assert_eq!((id, what), before);
            self.preparing = Some(before);
            return;
        }
        match &what {
            Prepare::Add { range, offset, alignment } => {
                let (start, block) = (range.start().get(), alignment.get());
                assert!(self.stuck.is_empty(), "some memory could not be removed");
                self.reach = self.reach.max(range.end().get());
                self.alignment = block;
                assert!(start.is_multiple_of(block) && range.count().get().is_multiple_of(block));
                assert!(WINDOW.0 <= start && range.end().get() <= WINDOW.1, "outside the window");
                assert!(offset.get() + range.count().get() <= CAPACITY, "beyond the capacity");
                assert!(numbers(*range).all(|page| !self.is_ram(page)), "is RAM already");
                let base = start - offset.get();
                if !self.added.is_empty() {
                    assert_eq!(self.base, Some(base), "memory moved");
                }
                self.base = Some(base);
            }
            Prepare::Return(ranges) => {
                assert!(self.unit > 1, "single pages come back by themselves");
                for page in ranges.iter().copied().flat_map(numbers) {
                    let is_absent = self.discarded.contains(&page) || self.absent.contains(&page);
                    assert!(is_absent, "{page} is not discarded");
                }
            }
        }
        assert!(self.removing.is_empty(), "memory is being removed");
        self.for_next = self.awaiting_close;
        assert_eq!(self.preparing.replace((id, what)), None, "two preparations at a time");
    }

    fn finish_preparing(&mut self, ok: bool) {
        let Some((id, what)) = self.preparing.take() else { return };
        match what {
            Prepare::Add { range, .. } if ok => self.mapped.extend(numbers(range)),
            Prepare::Return(ranges) => {
                for page in ranges.into_iter().flat_map(numbers) {
                    // Nothing more can be done for a guest whose pages the host cannot provide.
                    if self.for_next {
                        self.absent.remove(&page);
                    }
                    if ok {
                        self.discarded.remove(&page);
                    }
                }
            }
            _ => {}
        }
        self.event(Event::JobDone { id, ok });
    }

    fn remove(&mut self, id: JobId, range: PageRange) {
        assert_eq!(self.preparing, None, "memory is being prepared");
        if let Some(before) = self.again.removing.remove(&id) {
            assert_eq!(range, before);
        }
        assert!(WINDOW.0 <= range.start().get() && range.end().get() <= self.reach, "never added");
        for page in numbers(range) {
            assert!(!self.added.contains(&page), "{page} is the guest's");
            assert!(
                !self.discards.values().any(|pages| pages.contains(&page)),
                "{page} is being discarded"
            );
        }
        assert_eq!(self.removing.insert(id, range), None, "id used twice");
    }

    fn finish_removal(&mut self, ok: bool) {
        let Some((id, range)) = self.removing.pop_first() else { return };
        for page in numbers(range) {
            if ok {
                self.mapped.remove(&page);
                self.stuck.remove(&page);
            } else {
                self.stuck.insert(page);
            }
        }
        self.event(Event::JobDone { id, ok });
    }

    fn answer_offer(&mut self, pages: u64, verdict: u32) {
        let counts = !matches!(
            self.device.snapshot().state,
            StateName::Closed | StateName::Closing | StateName::AwaitVersion | StateName::AwaitCaps
        );
        if counts && let Some(range) = self.offered.take() {
            let blocks = pages.next_multiple_of(self.alignment);
            self.added.extend(numbers(range).take(usize::try_from(blocks).unwrap()));
        }
        let result = HotAddResult::from_wire(verdict);
        self.packet(HotAddResponse { pages: PageCount::new(pages), result }.emit(6));
    }

    /// Pages in an unballoon request must be out, and no discard may still run on them.
    fn take_back(&mut self, message: &[u8]) {
        let body = HostMessage::parse(message).unwrap().body;
        if let HostBody::HotAddRequest(request) = &body {
            for page in numbers(request.range.range().unwrap()) {
                assert!(self.mapped.contains(&page), "{page} was offered before it is there");
                // If the guest named the page before, that meant nothing.
                self.out.remove(&page);
            }
        }
        let asks = matches!(body, HostBody::BalloonRequest(_));
        assert!(!asks || !self.inhibited, "pages are asked for while none may be discarded");
        if let HostBody::UnballoonRequest(request) = body {
            for page in request.ranges.iter().flat_map(|word| numbers(word.range().unwrap())) {
                assert!(self.out.remove(&page), "{page} was returned but is not out");
                assert!(!self.in_flight(page), "{page} was returned while being discarded");
                if self.discarded.remove(&page) {
                    assert_eq!(self.unit, 1, "{page} was returned while the host has it");
                }
            }
        }
    }

    fn check(&self) {
        let snapshot = self.device.snapshot();
        let assigned = BOOT + self.added.len() as u64;
        let provided = assigned - self.discarded.len() as u64;
        let has = provided - snapshot.unconfirmed.get();
        assert_eq!((snapshot.boot.get(), snapshot.actual.get()), (BOOT, has));
        let known = snapshot.assigned.get() - snapshot.unconfirmed.get();
        assert_eq!(snapshot.actual.get() + snapshot.ballooned.get(), known);
        assert_eq!(
            snapshot.foreign.get(),
            self.out.iter().filter(|&&page| !self.is_ram(page)).count() as u64
        );
        assert_eq!(snapshot.hot_added.get(), self.added.len() as u64);
        assert!(self.added.is_subset(&self.mapped), "the guest has memory that is not there");
    }
}
