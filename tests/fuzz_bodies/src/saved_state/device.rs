//! A device in any state that can be restored, with a driver that does not know its history.

use std::collections::BTreeMap;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use dynmem_protocol::{HostBody, HostMessage, MAX_HOST_MESSAGE};
use hv_balloon::{
    Action, Config, Device, Event, HotAdd, Job, JobId, Prepare, RestoreError, SavedDevice,
    SavedState, Settle, StateName, Task,
};
use page_range::{PageCount, PageRange, PageRangeSet};

use crate::device::{Step, message};
use crate::world::{Op, range};

const MAX_STEPS: usize = 300;

/// Pages of boot RAM, in two equal parts: from address 0 and from [`UPPER_RAM`].
const RAM_PAGES: u64 = 8192;
const UPPER_RAM: u64 = 0x1_0000;
/// Where memory may be added, and how much of it.
const WINDOW: (u64, u64) = (0x2_0100, 1 << 20);
const CAPACITY: u64 = 4096;
const HUGE: u64 = 512;

/// `machine` selects the machine that the state is for: one of those of the golden files, or one
/// that has both hot-add and huge pages.
pub(super) fn run(machine: u8, saved: &[u8], steps: &[u8]) {
    let config = config(machine & 1 != 0, machine & 2 != 0);
    let now = Duration::from_secs(1000);
    let saved = match SavedDevice::from_bytes(saved) {
        Ok(saved) => saved,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let device = match Device::restore(config.clone(), &saved, now) {
        Ok(device) => device,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut driver = Driver::new(device, config, now);
    driver.act();
    let mut input = Unstructured::new(steps);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        for op in step.ops() {
            driver.apply(op);
        }
    }
    driver.apply(Op::Restore);
}

fn config(grows: bool, is_huge: bool) -> Config {
    let unit = PageCount::new(if is_huge { HUGE } else { 1 });
    let hot_add = HotAdd {
        window: range(if is_huge { WINDOW.0.next_multiple_of(HUGE) } else { WINDOW.0 }, WINDOW.1),
        capacity: PageCount::new(CAPACITY),
        least_alignment: unit,
    };
    Config {
        boot_ram: [range(0, RAM_PAGES / 2), range(UPPER_RAM, RAM_PAGES / 2)].into_iter().collect(),
        settle: Settle::Fixed(Duration::ZERO),
        status_reports: true,
        hot_add: grows.then_some(hot_add),
        discard_unit: unit,
        inhibited: false,
    }
}

struct Driver {
    device: Device,
    config: Config,
    now: Duration,
    /// The message that is not yet in the ring.
    message: Option<Vec<u8>>,
    discards: BTreeMap<JobId, PageRangeSet>,
    preparing: Option<JobId>,
    removing: BTreeMap<JobId, PageRange>,
    /// How many pages the guest was last asked for.
    asked: u64,
}

impl Driver {
    fn new(device: Device, config: Config, now: Duration) -> Self {
        let (message, discards, preparing, removing) = Default::default();
        Self { device, config, now, message, discards, preparing, removing, asked: 0 }
    }

    fn apply(&mut self, op: Op) {
        let op = self.of_all_ram(op);
        if let Some(message) = message(&op, self.asked.min(RAM_PAGES / 2)) {
            return self.event(Event::Packet(&message));
        }
        match op {
            Op::Open => self.event(Event::ChannelOpened { guest_os_id: 0, is_reopened: false }),
            Op::Close => self.close(Event::ChannelClosed),
            Op::Reset => self.close(Event::SystemReset),
            Op::Target(pages) => {
                let _ = self.device.set_target(self.now, PageCount::new(pages * 10));
                self.act();
            }
            Op::Removed(ok) => {
                if let Some((id, _)) = self.removing.pop_first() {
                    self.event(Event::JobDone { id, ok });
                }
            }
            Op::Inhibit(inhibited) => {
                self.config.inhibited = inhibited;
                self.device.set_inhibited(self.now, inhibited);
                self.act();
            }
            Op::Prepared(ok) => {
                if let Some(id) = self.preparing.take() {
                    self.event(Event::JobDone { id, ok });
                }
            }
            Op::Write => self.write(),
            Op::Discarded(ok) => {
                if let Some((id, _)) = self.discards.pop_first() {
                    self.event(Event::JobDone { id, ok });
                }
            }
            Op::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.event(Event::Deadline);
            }
            Op::Restore => self.save_and_restore(),
            // Messages were handled above.
            _ => {}
        }
    }

    /// A restored device takes over and requests all jobs again.
    fn save_and_restore(&mut self) {
        let saved = self.device.save(self.now);
        let restored = match Device::restore(self.config.clone(), &saved, self.now) {
            Ok(restored) => restored,
            // The made-up state was at the limit, and there has been another job since.
            Err(RestoreError::Impossible { reason: "the next job ID is too high" }) => return,
            Err(error) => panic!("{error}"),
        };
        let before = std::mem::replace(&mut self.device, restored).snapshot();
        if before.state != StateName::Closing && !self.config.inhibited {
            assert_eq!(self.device.snapshot(), before);
            assert!(self.device.save(self.now) == saved, "saved differently when restored");
        }
        (self.message, self.preparing) = (None, None);
        self.discards.clear();
        self.removing.clear();
        self.act();
    }

    fn event(&mut self, event: Event<'_>) {
        self.device.handle(self.now, event);
        self.act();
    }

    fn close(&mut self, event: Event<'_>) {
        self.message = None;
        self.event(event);
    }

    /// The same step, with its pages spread over all RAM.
    fn of_all_ram(&self, op: Op) -> Op {
        let Op::Give(ranges, more) = op else { return op };
        let unit = self.config.discard_unit.get().min(4);
        let spread = |pages: PageRange| {
            let (start, count) = (pages.start().get() * unit, pages.count().get() * unit);
            let start = match start / unit {
                0..400 => start,
                400..800 => UPPER_RAM + start - 400 * unit,
                _ => WINDOW.0 + start - 800 * unit,
            };
            range(start, count)
        };
        Op::Give(ranges.into_iter().map(spread).collect(), more)
    }

    fn write(&mut self) {
        let Some(message) = self.message.take() else { return };
        if let HostBody::BalloonRequest(request) = HostMessage::parse(&message).unwrap().body {
            self.asked = request.pages.get();
        }
        self.event(Event::Sent);
    }

    fn act(&mut self) {
        while let Some(action) = self.device.poll_action() {
            match action {
                Action::Send => {
                    assert_eq!(self.message, None, "a second message before the first was sent");
                    self.message = Some(self.device.message().expect("a message").to_vec());
                    self.check_message();
                }
                Action::Work(Job { id, task: Task::Discard(ranges) }) => {
                    self.begin_discard(id, &ranges)
                }
                Action::Work(Job { id, task: Task::Prepare(what) }) => {
                    if let Prepare::Add { range, offset, .. } = what {
                        self.assert_in_window(range);
                        assert!(offset.get() + range.count().get() <= CAPACITY, "too much memory");
                    }
                    assert_eq!(self.preparing.replace(id), None, "two preparations at a time");
                    assert!(self.removing.is_empty(), "memory is being removed");
                }
                Action::Work(Job { id, task: Task::Remove(range) }) => {
                    self.assert_in_window(range);
                    let mut discards = self.discards.values();
                    assert!(
                        discards.all(|pages| pages.is_disjoint(range)),
                        "it is still being discarded"
                    );
                    assert_eq!(self.preparing, None, "memory is being prepared");
                    assert_eq!(self.removing.insert(id, range), None, "two removals with one ID");
                }
                Action::CloseFinished => {
                    assert!(self.discards.is_empty(), "a discard is in flight");
                    assert_eq!(self.preparing, None, "a preparation is in flight");
                    assert!(self.removing.is_empty(), "a removal is in flight");
                }
                Action::Notify(_) => {}
            }
        }
        let snapshot = self.device.snapshot();
        assert_eq!(snapshot.boot.get(), RAM_PAGES);
        assert_eq!(snapshot.boot.get() + snapshot.hot_added.get(), snapshot.assigned.get());
        let known = snapshot.assigned.get() - snapshot.unconfirmed.get();
        assert_eq!(snapshot.actual.get() + snapshot.ballooned.get(), known);
    }

    fn check_message(&self) {
        let message = self.message.as_deref().unwrap_or_default();
        assert!(message.len() <= MAX_HOST_MESSAGE && message.len().is_multiple_of(8));
        HostMessage::parse(message).unwrap();
    }

    fn begin_discard(&mut self, id: JobId, ranges: &[PageRange]) {
        assert!(!ranges.is_empty());
        assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].start()), "not merged");
        let unit = self.config.discard_unit.get();
        for &range in ranges {
            assert!(range.start().get().is_multiple_of(unit), "a part of a unit");
            assert!(range.count().get().is_multiple_of(unit), "a part of a unit");
            if !self.config.boot_ram.contains_range(range) {
                self.assert_in_window(range);
            }
            let mut others = self.discards.values();
            assert!(others.all(|pages| pages.is_disjoint(range)), "being discarded already");
        }
        let before = self.discards.insert(id, ranges.iter().copied().collect());
        assert_eq!(before, None, "two discards with one ID");
    }

    fn assert_in_window(&self, range: PageRange) {
        let window = self.config.hot_add.map(|hot_add| hot_add.window);
        assert!(window.is_some_and(|window| window.contains_range(range)), "{range} is no RAM");
    }
}
