//! A device and a driver with a short ring between them, in virtual time.

use std::collections::VecDeque;
use std::time::Duration;

use guest_model::dynmem::{Client, HotAddAnswer, Memory, MemoryMap, Personality};
use hv_balloon::{
    Action, Config, Device, Event, HotAdd, Job, JobId, Notice, Prepare, Settle, Snapshot,
    StateName, Task,
};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};

/// Messages to the guest that fit the ring.
const RING_SLOTS: usize = 2;

pub(crate) const PAGES_PER_MIB: u64 = 256;

const HUGE_PAGE: PageCount = PageCount::new(512);

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

/// RAM without holes.
fn flat_ram(size_mib: u64) -> PageRangeSet {
    PageRange::new(Gpfn::default(), mib(size_mib)).into_iter().collect()
}

/// One thing that can happen next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// The guest reads a message.
    ToGuest,
    /// The host reads a message.
    ToHost,
    /// The host's oldest job ends.
    Job,
}

/// Work for the host.
enum Due {
    /// `is_present` says whether the discard belongs to the guest's current session.
    Discard {
        ranges: Vec<PageRange>,
        is_present: bool,
    },
    Add(PageRange),
    Remove(PageRange),
    Return(Vec<PageRange>),
}

/// When the host is saved and restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Saves {
    Never,
    /// After every step.
    Always,
    /// Once, after this many more steps.
    After(usize),
}

pub(crate) struct Pair {
    pub(crate) device: Device,
    /// The device's configuration.
    config: Config,
    pub(crate) saves: Saves,
    /// Whether the host was ever saved, so that a job may already have been done before.
    was_saved: bool,
    pub(crate) guest: Client,
    pub(crate) notices: Vec<Notice>,
    pub(crate) closes_finished: usize,
    pub(crate) now: Duration,
    /// Whether the running kernel has opened the channel before.
    is_reopened: bool,
    /// Whether the guest sends its status reports.
    pub(crate) reports: bool,
    /// Whether the host has no memory left to add.
    pub(crate) host_is_full: bool,
    /// The host's message that waits for room in the ring.
    unsent: Option<Vec<u8>>,
    ring: VecDeque<Vec<u8>>,
    jobs: VecDeque<(JobId, Due)>,
    /// Pages that the guest can access, discarded or not.
    mapped: PageRangeSet,
    /// Pages can only be discarded in multiples of this.
    unit: PageCount,
    /// Huge pages that went back to their pool; the guest has none of them until they are provided
    /// again.
    in_pool: PageRangeSet,
}

impl Pair {
    /// A guest of this size, with `in_use_mib` in use, that has not opened the channel. Hot-add can
    /// double its size.
    pub(crate) fn new(personality: Personality, size_mib: u64, in_use_mib: u64) -> Self {
        Self::with_capacity(personality, size_mib, in_use_mib, size_mib)
    }

    /// Like [`Pair::new`], but with `capacity_mib` to hot-add.
    pub(crate) fn with_capacity(
        personality: Personality,
        size_mib: u64,
        in_use_mib: u64,
        capacity_mib: u64,
    ) -> Self {
        let boot_ram = ram(size_mib);
        Self::make(personality, boot_ram, in_use_mib, capacity_mib, PageCount::new(1))
    }

    /// A guest on huge pages of 2 MiB from a pool.
    pub(crate) fn on_huge_pages(
        personality: Personality,
        size_mib: u64,
        in_use_mib: u64,
        capacity_mib: u64,
    ) -> Self {
        let boot_ram = flat_ram(size_mib);
        Self::make(personality, boot_ram, in_use_mib, capacity_mib, HUGE_PAGE)
    }

    fn make(
        personality: Personality,
        boot_ram: PageRangeSet,
        in_use_mib: u64,
        capacity_mib: u64,
        discard_unit: PageCount,
    ) -> Self {
        let memory = Memory::new(boot_ram.clone(), mib(in_use_mib));
        let end = boot_ram.iter().last().expect("there is RAM").end();
        let window = PageRange::between(end, personality.hot_add.address_limit).unwrap();
        let hot_add = HotAdd { window, capacity: mib(capacity_mib), least_alignment: HUGE_PAGE };
        let config = Config {
            boot_ram: boot_ram.clone(),
            settle: Settle::Auto,
            status_reports: true,
            hot_add: Some(hot_add),
            discard_unit,
            inhibited: false,
        };
        Self {
            device: Device::new(config.clone()).unwrap(),
            config,
            saves: Saves::Never,
            was_saved: false,
            guest: Client::new(personality, memory),
            notices: Vec::new(),
            closes_finished: 0,
            now: Duration::ZERO,
            is_reopened: false,
            reports: true,
            host_is_full: false,
            unsent: None,
            ring: VecDeque::new(),
            jobs: VecDeque::new(),
            mapped: boot_ram,
            unit: discard_unit,
            in_pool: PageRangeSet::new(),
        }
    }

    /// A Linux guest of 1 GiB, 64 MiB of it in use, ready for requests.
    pub(crate) fn linux() -> Self {
        Self::ready(Personality::linux_6_1())
    }

    /// A guest of 1 GiB, 64 MiB of it in use, ready for requests. 4 GiB can be hot-added.
    pub(crate) fn ready(personality: Personality) -> Self {
        Self::with_capacity(personality, 1024, 64, 4096).into_opened()
    }

    /// Like [`Pair::new`], but ready for requests.
    pub(crate) fn opened(personality: Personality, size_mib: u64, in_use_mib: u64) -> Self {
        Self::new(personality, size_mib, in_use_mib).into_opened()
    }

    pub(crate) fn into_opened(mut self) -> Self {
        self.open();
        self.run();
        self
    }

    pub(crate) fn open(&mut self) {
        self.guest.open();
        let guest_os_id = self.guest.personality().guest_os_id;
        let is_reopened = std::mem::replace(&mut self.is_reopened, true);
        self.handle(Event::ChannelOpened { guest_os_id, is_reopened });
    }

    pub(crate) fn close(&mut self) {
        self.guest.close();
        self.leave();
    }

    /// Another kernel takes over, with this memory map; it has not opened the channel.
    pub(crate) fn kexec(&mut self, map: MemoryMap) {
        self.guest.kexec(map);
        self.is_reopened = false;
        self.leave();
    }

    /// A crash kernel takes over in this memory; it has not opened the channel.
    pub(crate) fn crash(&mut self, reserved: &PageRangeSet) {
        self.guest.crash(reserved);
        self.is_reopened = false;
        self.leave();
    }

    /// The machine is reset.
    pub(crate) fn reset(&mut self) {
        self.guest.reset();
        self.is_reopened = false;
        self.hang_up();
        self.handle(Event::SystemReset);
    }

    fn leave(&mut self) {
        self.hang_up();
        self.handle(Event::ChannelClosed);
    }

    /// Opens the channel again once the host is ready for it.
    pub(crate) fn reopen(&mut self) {
        while self.step(Step::Job) {}
        assert_eq!(self.snapshot().state, StateName::Closed);
        // The next driver is told nothing of this: touching the pages takes them from the pool.
        self.in_pool.clear();
        self.open();
    }

    fn hang_up(&mut self) {
        self.ring.clear();
        self.unsent = None;
        for (_, job) in &mut self.jobs {
            if let Due::Discard { is_present, .. } = job {
                *is_present = false;
            }
        }
    }

    /// Sets a target; the device records a refused one as its last refusal.
    pub(crate) fn set_target(&mut self, target: PageCount) {
        let _ = self.device.set_target(self.now, target);
        self.act();
    }

    /// Sets a target and lets both sides work until nothing is left to do.
    pub(crate) fn resize(&mut self, target: PageCount) {
        self.set_target(target);
        self.run();
    }

    /// Steps until nothing is left to do, deadlines included.
    pub(crate) fn run(&mut self) {
        self.report_status();
        self.run_now();
        while self.wait() {
            self.run_now();
        }
    }

    /// Steps until nothing is left to do at the current time.
    pub(crate) fn run_now(&mut self) {
        while [Step::ToGuest, Step::ToHost, Step::Job].map(|step| self.step(step)) != [false; 3] {}
    }

    fn report_status(&mut self) {
        if self.reports {
            self.guest.report_status();
        }
    }

    /// Lets time pass until the next deadline; returns false if there is none.
    pub(crate) fn wait(&mut self) -> bool {
        let deadlines = [self.device.next_deadline(), self.guest.next_deadline()];
        let Some(deadline) = deadlines.into_iter().flatten().min() else { return false };
        self.now = self.now.max(deadline);
        self.guest.advance(self.now);
        // Linux reports every second.
        self.report_status();
        self.run_now();
        self.handle(Event::Deadline);
        self.may_save();
        true
    }

    /// Saves the host and continues with a restored one. Its unfinished jobs are void; with
    /// `is_done`, they are carried out, but nobody is told.
    pub(crate) fn save_and_restore(&mut self, is_done: bool) {
        let saved = self.device.save(self.now);
        self.was_saved = true;
        for (_, job) in std::mem::take(&mut self.jobs) {
            if is_done {
                self.work(job);
            }
        }
        self.unsent = None;
        self.device = Device::restore(self.config.clone(), &saved, self.now).unwrap();
        self.act();
    }

    fn may_save(&mut self) {
        match &mut self.saves {
            Saves::Never | Saves::After(0) => {}
            Saves::Always => self.save_and_restore(false),
            Saves::After(left) => {
                *left -= 1;
                if *left == 0 {
                    self.save_and_restore(false);
                }
            }
        }
    }

    /// Makes a step; returns false if there is nothing of that kind to do.
    pub(crate) fn step(&mut self, step: Step) -> bool {
        let is_done = self.try_step(step);
        if is_done {
            self.may_save();
        }
        is_done
    }

    fn try_step(&mut self, step: Step) -> bool {
        match step {
            Step::ToGuest => {
                let Some(message) = self.ring.pop_front() else { return false };
                self.guest.receive(&message).unwrap_or_else(|rule| panic!("rule broken: {rule}"));
                self.write();
            }
            Step::ToHost => {
                let Some(message) = self.guest.poll_send() else { return false };
                self.assert_there();
                self.handle(Event::Packet(&message));
            }
            Step::Job => {
                let Some((id, job)) = self.jobs.pop_front() else { return false };
                let ok = self.work(job);
                self.handle(Event::JobDone { id, ok });
            }
        }
        true
    }

    /// Does a job; returns false if it fails.
    fn work(&mut self, job: Due) -> bool {
        match job {
            Due::Discard { ranges, is_present } => {
                if is_present {
                    self.assert_out(&ranges);
                    self.discarded(&ranges);
                }
            }
            Due::Add(_) | Due::Return(_) if self.host_is_full => return false,
            Due::Add(range) => {
                let new = self.mapped.insert(range);
                assert!(new == range.count() || self.was_saved, "{range} was mapped already");
            }
            Due::Remove(range) => self.unmap(range),
            Due::Return(ranges) => {
                for range in ranges {
                    self.in_pool.remove(range);
                }
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
                Action::Send => {
                    let message = self.device.message().expect("a message").to_vec();
                    assert_eq!(self.unsent.replace(message), None, "two messages at a time");
                    self.write();
                }
                Action::Work(Job { id, task: Task::Discard(ranges) }) => {
                    self.assert_out(&ranges);
                    self.jobs.push_back((id, Due::Discard { ranges, is_present: true }));
                }
                Action::Work(Job { id, task: Task::Prepare(what) }) => {
                    let job = match what {
                        Prepare::Add { range, .. } => Due::Add(range),
                        Prepare::Return(ranges) => Due::Return(ranges),
                    };
                    self.jobs.push_back((id, job));
                }
                Action::Work(Job { id, task: Task::Remove(range) }) => {
                    self.jobs.push_back((id, Due::Remove(range)));
                }
                Action::CloseFinished => {
                    assert!(self.jobs.is_empty(), "closed with jobs in flight");
                    self.closes_finished += 1;
                }
                Action::Notify(notice) => self.notices.push(notice),
            }
        }
    }

    /// Removes memory, which an honest guest must not be using.
    fn unmap(&mut self, range: PageRange) {
        let used = self.guest.memory().ram().intersection(range).next();
        let is_honest = !matches!(
            self.guest.personality().hot_add.answer,
            HotAddAnswer::ClaimsMore(_) | HotAddAnswer::ClaimsOdd
        );
        assert!(used.is_none() || !is_honest, "{range} is in use");
        self.mapped.remove(range);
    }

    /// Writes the waiting message if the ring has room.
    fn write(&mut self) {
        if self.ring.len() < RING_SLOTS
            && let Some(message) = self.unsent.take()
        {
            self.ring.push_back(message);
            self.handle(Event::Sent);
        }
    }

    fn discarded(&mut self, ranges: &[PageRange]) {
        if self.unit == PageCount::new(1) {
            return;
        }
        for &range in ranges {
            let is_whole = |pages: u64| pages.is_multiple_of(self.unit.get());
            assert!(is_whole(range.start().get()) && is_whole(range.count().get()), "{range}");
            self.in_pool.insert(range);
        }
    }

    /// Asserts that the guest can access all memory that it may use.
    fn assert_there(&self) {
        let memory = self.guest.memory();
        let mut missing = memory.ram().clone();
        missing.remove_set(&self.mapped);
        assert!(missing.is_empty(), "{missing:?} is not mapped");
        for range in self.in_pool.iter() {
            let used = memory
                .ram()
                .intersection(range)
                .find(|used| !memory.ballooned().contains_range(*used));
            assert_eq!(used, None, "in use, but in the pool");
        }
    }

    /// Asserts that the guest cannot use these pages: discarding a page in use loses data.
    fn assert_out(&self, ranges: &[PageRange]) {
        for &range in ranges {
            assert!(self.guest.memory().ballooned().contains_range(range), "{range} is in use");
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.device.snapshot()
    }

    /// Asserts that both sides agree that this is the guest's size.
    #[track_caller]
    pub(crate) fn assert_size(&self, size: PageCount) {
        assert_eq!(self.snapshot().actual, size);
        assert_eq!(self.guest.memory().managed(), size);
    }
}
