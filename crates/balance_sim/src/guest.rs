//! A guest: what it needs, and how it moves towards the size that it should have.
//!
//! The speeds are those measured with a real Linux (`docs/benchmarks.md`, "A real guest"). They are
//! those of an emulated machine, in which a guest gives memory slowly; all policies have the same.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use balancer::{Aged, Committed, GuestReport, Mode, Pool, ProcessSample, Vm, VmId, VmSample};

use crate::account::VmAccount;
use crate::dice::Dice;
use crate::load::Course;
use crate::policy::Unseen;
use crate::scenario::{Device, Group};

const MIB: u64 = 1 << 10;

/// From the start of a VM until its guest can report and be resized: 4.1 to 6.9 s were measured.
const BOOT_MS: u64 = 5000;
/// A rise of the need within a second by this much or more is one that waits for memory.
const RISE_KIB: u64 = 32 * MIB;
/// A Linux reads back so much from swap in a second at most.
const SWAP_IN_KIB: u64 = 100 * MIB;
/// What a Linux keeps free, as a part of its memory, when it has less than it needs.
const LAST_FREE: u64 = 128;
/// Below this no Linux goes, whatever the balloon wants.
const KERNEL_KIB: u64 = 128 * MIB;

/// KiB a second.
struct Speeds {
    /// The guest gives memory.
    give: u64,
    /// The guest gets back what it gave.
    take_back: u64,
    /// The guest gets memory that it never had.
    hot_add: u64,
}

const fn speeds(device: Device) -> Speeds {
    // 3 GiB in 8 s, 0.51 s and 0.94 s; in 118.6 s and 13.7 s, and no memory is added.
    match device {
        Device::HvBalloon => Speeds { give: 384 * MIB, take_back: 6035 * MIB, hot_add: 3254 * MIB },
        Device::VirtioBalloon => {
            Speeds { give: 26 * MIB, take_back: 224 * MIB, hot_add: 224 * MIB }
        }
    }
}

/// The floor of Linux's Dynamic Memory driver: it gives nothing that would leave less available
/// (`hv_balloon.c`, `compute_balloon_floor`).
fn linux_floor_kib(size_kib: u64) -> u64 {
    let (mib, shift) = match size_kib / MIB {
        0..128 => (8, 1),
        128..512 => (40, 2),
        512..2048 => (104, 3),
        2048..8192 => (232, 4),
        _ => (488, 5),
    };
    (size_kib >> shift).saturating_add(mib * MIB)
}

/// A guest and its VM.
#[derive(Clone, Debug)]
pub(crate) struct Guest<'a> {
    pub(crate) id: u32,
    group: &'a Group,
    starts_ms: u64,
    courses: Vec<Course>,
    need_kib: u64,
    pub(crate) actual_kib: u64,
    /// The most that it had.
    plugged_kib: u64,
    pub(crate) target_kib: u64,
    cached_kib: u64,
    /// What the host has behind it.
    pub(crate) touched_kib: u64,
    swapped_in_kib: u64,
    progress_permille: u64,
    /// Needs that there was no memory for, and since when.
    waits: VecDeque<(u64, u64)>,
    pub(crate) account: VmAccount,
}

impl<'a> Guest<'a> {
    /// The VM number `index` of a group that is number `place` of `seed`'s scenario.
    pub(crate) fn new(id: u32, group: &'a Group, seed: u64, place: u64, index: u64) -> Self {
        let spread_ms = group.starts_within.saturating_mul(1000).saturating_mul(index);
        let courses = (0..).zip(&group.loads);
        Self {
            id,
            group,
            starts_ms: (spread_ms / group.count.max(1))
                .saturating_add(group.starts_after.saturating_mul(1000)),
            courses: courses
                .map(|(n, load)| Course::new(*load, Dice::new(seed, [place, index, n])))
                .collect(),
            need_kib: 0,
            actual_kib: 0,
            plugged_kib: 0,
            target_kib: 0,
            cached_kib: 0,
            touched_kib: 0,
            swapped_in_kib: 0,
            progress_permille: 1000,
            waits: VecDeque::new(),
            account: VmAccount::new(&group.name),
        }
    }

    /// Whether it has started at this time.
    pub(crate) fn is_there(&self, now_ms: u64) -> bool {
        now_ms > self.starts_ms
    }

    /// A second passes in which the guest has what it needs; returns that.
    pub(crate) fn need_of_second(&mut self, now_ms: u64) -> u64 {
        if self.is_there(now_ms) { self.need(1000) } else { 0 }
    }

    /// The same guest when its need has gone on for a second.
    fn next(&self) -> Self {
        let mut next = self.clone();
        next.need_kib = next.need(self.progress_permille);
        next
    }

    fn need(&mut self, progress_permille: u64) -> u64 {
        let needs = self.courses.iter_mut().map(|course| course.advance(progress_permille));
        // More it cannot have, so more it cannot miss.
        let maximum_kib = self.group.settings.form().maximum_kib;
        needs.fold(0u64, u64::saturating_add).min(maximum_kib)
    }

    /// A second passes, which ends at `now_ms`.
    pub(crate) fn step(&mut self, now_ms: u64) {
        if self.plugged_kib == 0 {
            let form = self.group.settings.form();
            (self.actual_kib, self.target_kib) = (form.startup_kib, form.startup_kib);
            self.plugged_kib = match self.group.device {
                Device::HvBalloon => form.startup_kib,
                Device::VirtioBalloon => form.maximum_kib,
            };
        }
        let before = (self.need_kib, self.actual_kib);
        self.need_kib = self.need(self.progress_permille);
        let moved_ms = self.move_to_target();
        let used_kib = self.need_kib.min(self.actual_kib);
        let room_kib = self.actual_kib.saturating_sub(used_kib);
        self.cached_kib = self.cached_kib.saturating_add(self.group.reads_kib).min(room_kib);
        let touched_kib = used_kib.saturating_add(self.cached_kib);
        self.touched_kib = self.touched_kib.max(touched_kib).min(self.actual_kib);

        let missing_kib = self.missing_kib();
        if missing_kib > 0 {
            self.swapped_in_kib = self.swapped_in_kib.saturating_add(missing_kib.min(SWAP_IN_KIB));
        }
        // Work that lacks a quarter of its memory hardly advances, since what it lacks is what it
        // touches next.
        let lacks_permille = missing_kib.saturating_mul(4000) / self.need_kib.max(1);
        self.progress_permille = 1000u64.saturating_sub(lacks_permille).max(125);

        self.waits(now_ms, before, moved_ms);
        let missing_before_kib = before.0.saturating_sub(before.1);
        self.account.count(
            missing_kib.saturating_add(missing_before_kib) / 2,
            room_kib.saturating_sub(self.group.cache_kib),
            self.cache_use_permille(),
            self.group.settings.form().minimum_kib.saturating_sub(self.actual_kib),
        );
    }

    fn missing_kib(&self) -> u64 {
        self.need_kib.saturating_sub(self.actual_kib)
    }

    /// Moves towards the target for a second; returns how long it moved.
    fn move_to_target(&mut self) -> u64 {
        let speeds = speeds(self.group.device);
        let took_ms = |kib: u64, speed: u64| kib.saturating_mul(1000).div_ceil(speed);
        if self.target_kib < self.actual_kib {
            let least_kib = self.target_kib.max(self.least_kib());
            let kib = self.actual_kib.saturating_sub(least_kib);
            self.actual_kib = self.actual_kib.saturating_sub(kib);
            return took_ms(kib, speeds.give);
        }
        let wanted_kib = self.target_kib.saturating_sub(self.actual_kib);
        let given_kib = self.plugged_kib.saturating_sub(self.actual_kib);
        let back_kib = wanted_kib.min(given_kib).min(speeds.take_back);
        let back_ms = took_ms(back_kib, speeds.take_back).min(1000);
        let add_kib = speeds.hot_add.saturating_mul(1000u64.saturating_sub(back_ms)) / 1000;
        let add_kib = wanted_kib.saturating_sub(back_kib).min(add_kib);
        self.actual_kib = self.actual_kib.saturating_add(back_kib).saturating_add(add_kib);
        self.plugged_kib = self.plugged_kib.max(self.actual_kib);
        back_ms.saturating_add(took_ms(add_kib, speeds.hot_add)).min(1000)
    }

    /// The least that it can have after a second.
    fn least_kib(&self) -> u64 {
        let keeps_kib = match self.group.device {
            _ if self.group.refuses => self.actual_kib,
            Device::HvBalloon => self.need_kib.saturating_add(linux_floor_kib(self.actual_kib)),
            Device::VirtioBalloon => KERNEL_KIB,
        };
        let slowest_kib = self.actual_kib.saturating_sub(speeds(self.group.device).give);
        keeps_kib.max(slowest_kib).min(self.actual_kib)
    }

    /// Keeps book of needs that rose, and of the time until there was memory for them.
    fn waits(&mut self, now_ms: u64, (need_before, actual_before): (u64, u64), moved_ms: u64) {
        let Self { need_kib, actual_kib, .. } = *self;
        let grew_kib = actual_kib.saturating_sub(actual_before);
        let waits = &mut self.account.waits_ms;
        self.waits.retain(|&(level_kib, since_ms)| {
            let waited_ms = now_ms.saturating_sub(since_ms);
            if actual_kib >= level_kib {
                let to_go_kib = level_kib.saturating_sub(actual_before);
                let ms = to_go_kib.saturating_mul(moved_ms) / grew_kib.max(1);
                waits.push(waited_ms.saturating_sub(1000u64.saturating_sub(ms.min(1000))));
            } else if need_kib < level_kib {
                waits.push(waited_ms);
            } else {
                return true;
            }
            false
        });
        if need_kib >= need_before.saturating_add(RISE_KIB) {
            if actual_kib >= need_kib {
                waits.push(0);
            } else {
                self.waits.push_back((need_kib, now_ms));
            }
        }
    }

    /// Ends the book.
    pub(crate) fn end(mut self, now_ms: u64) -> VmAccount {
        let left = self.waits.iter().map(|(_, since_ms)| now_ms.saturating_sub(*since_ms));
        self.account.waits_ms.extend(left);
        self.account.size_kib = self.actual_kib;
        self.account
    }

    /// How much of the use that cache can have it has: the last KiB of it is of none.
    fn cache_use_permille(&self) -> Option<u64> {
        let most = self.group.cache_kib;
        let lacks = most.saturating_sub(self.cached_kib);
        let lacks_permille = lacks.saturating_mul(1000).checked_div(most)?;
        Some(1000u64.saturating_sub(lacks_permille.saturating_mul(lacks_permille) / 1000))
    }

    /// What is known of the VM at the end of a second.
    pub(crate) fn sample(&self, now_ms: u64) -> Vm {
        let is_up = now_ms.saturating_sub(self.starts_ms) >= BOOT_MS;
        let process = ProcessSample { rss_kib: self.touched_kib, ..ProcessSample::default() };
        Vm {
            id: VmId(self.id),
            settings: self.group.settings,
            mode: Mode::Automatic,
            pool: Pool::Ordinary,
            sample: VmSample {
                actual_kib: Aged { value: self.actual_kib, age_ms: 0 },
                guest: is_up.then(|| Aged { value: self.report(), age_ms: 0 }),
                awaits_report: !is_up,
                process: Some(Aged { value: process, age_ms: 0 }),
            },
        }
    }

    fn report(&self) -> GuestReport {
        let ballooned_kib = self.plugged_kib.saturating_sub(self.actual_kib);
        let committed_kib = self.need_kib.saturating_mul(self.group.committed_percent) / 100;
        // Linux counts ballooned pages and its floor.
        let reported_kib = committed_kib
            .saturating_add(ballooned_kib)
            .saturating_add(linux_floor_kib(self.actual_kib));
        let is_virtio = self.group.device == Device::VirtioBalloon;
        GuestReport {
            actual_kib: self.actual_kib,
            available_kib: self.actual_kib.saturating_sub(self.used_kib()),
            committed: (!is_virtio).then_some(Committed { reported_kib, ballooned_kib }),
            swapped_in_kib: is_virtio.then_some(self.swapped_in_kib),
            oom_kills: is_virtio.then_some(0),
        }
    }

    fn used_kib(&self) -> u64 {
        self.need_kib.min(self.actual_kib.saturating_sub(self.actual_kib / LAST_FREE))
    }

    /// What the report has no place for.
    pub(crate) fn unseen(&self, foresees: bool) -> Unseen {
        let free_kib = self.actual_kib.saturating_sub(self.used_kib());
        let next = foresees.then(|| self.next());
        Unseen {
            free_kib: free_kib.saturating_sub(self.cached_kib),
            swapped_kib: self.missing_kib(),
            next_need_kib: next.as_ref().map_or(0, |next| next.need_kib),
            next_least_kib: next.as_ref().map_or(0, Self::least_kib),
        }
    }

    /// Tells it a size; it becomes one that it may have.
    pub(crate) fn tell(&mut self, target_kib: u64) {
        let form = self.group.settings.form();
        let target_kib = target_kib.clamp(form.minimum_kib, form.maximum_kib);
        if target_kib != self.target_kib {
            self.target_kib = target_kib;
            self.account.changes = self.account.changes.saturating_add(1);
        }
    }
}
