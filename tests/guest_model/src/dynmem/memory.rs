//! The guest's page allocator, as the balloon sees it.

use dynmem_protocol::StatusReport;
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};

const LARGE_PAGE: u64 = 512;

/// The memory that a kernel started by kexec finds in its memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryMap {
    /// All of the machine's: `kexec -l`, called after the last growth.
    Machine,
    /// What the machine booted with: `kexec_file_load`, or `kexec -l` called before any growth.
    Boot,
}

/// The guest's RAM: each page is free, in use, ballooned, offline or leaked.
#[derive(Clone, Debug)]
pub struct Memory {
    /// The machine's initial memory.
    boot: PageRangeSet,
    /// The pages that the kernel uses for itself.
    in_use: PageCount,
    /// The machine's memory: boot RAM and added memory.
    machine: PageRangeSet,
    /// The memory that the running kernel considers its own.
    ram: PageRangeSet,
    free: PageRangeSet,
    /// No free large page begins below this; a multiple of the large page size.
    first_large: Gpfn,
    ballooned: PageRangeSet,
    /// Pages that were added but not brought online.
    offline: PageRangeSet,
    /// Pages ballooned by a driver that is gone.
    leaked: PageRangeSet,
}

impl Memory {
    /// RAM whose highest `in_use` pages are in use.
    #[must_use]
    pub fn new(ram: PageRangeSet, in_use: PageCount) -> Self {
        let mut memory = Self {
            boot: ram.clone(),
            in_use,
            machine: ram.clone(),
            ram,
            free: PageRangeSet::new(),
            first_large: Gpfn::default(),
            ballooned: PageRangeSet::new(),
            offline: PageRangeSet::new(),
            leaked: PageRangeSet::new(),
        };
        memory.start();
        memory
    }

    /// Puts the highest `count` free pages to use, or all if there are fewer.
    pub fn occupy(&mut self, count: PageCount) {
        let mut left = count;
        while let Some(range) = self.free.take_last(left) {
            left = left.saturating_sub(range.count());
        }
    }

    /// Frees all pages that are in use.
    pub fn release(&mut self) {
        self.first_large = Gpfn::default();
        self.free = self.ram.clone();
        for unusable in [&self.ballooned, &self.offline, &self.leaked] {
            self.free.remove_set(unusable);
        }
    }

    /// User space brings all added pages online.
    pub fn online(&mut self) {
        self.first_large = Gpfn::default();
        self.free.insert_set(&core::mem::take(&mut self.offline));
    }

    /// Puts one page of each 2 MiB to use, so that no large page is left.
    pub fn shatter(&mut self) {
        self.shatter_units(PageCount::new(LARGE_PAGE));
    }

    /// Puts the first of every `unit` pages of each range of RAM to use; a `unit` of zero pages
    /// counts as one.
    pub fn shatter_units(&mut self, unit: PageCount) {
        let step = usize::try_from(unit.get()).unwrap_or(usize::MAX).max(1);
        for range in self.ram.clone().iter() {
            let firsts = (range.start().get()..range.end().get()).step_by(step);
            for page in firsts.filter_map(Gpfn::new) {
                if let Ok(page) = PageRange::new(page, PageCount::new(1)) {
                    self.free.remove(page);
                }
            }
        }
    }

    /// The pages given to the host.
    #[must_use]
    pub const fn ballooned(&self) -> &PageRangeSet {
        &self.ballooned
    }

    /// All pages that the running kernel considers its own.
    #[must_use]
    pub const fn ram(&self) -> &PageRangeSet {
        &self.ram
    }

    /// Pages that were added but not brought online.
    #[must_use]
    pub const fn offline(&self) -> &PageRangeSet {
        &self.offline
    }

    /// Pages added since the machine started.
    #[must_use]
    pub const fn hot_added(&self) -> PageCount {
        self.machine.len().saturating_sub(self.boot.len())
    }

    /// The guest's pages, free or not: Linux's `MemTotal`.
    #[must_use]
    pub const fn managed(&self) -> PageCount {
        self.ram
            .len()
            .saturating_sub(self.ballooned.len())
            .saturating_sub(self.offline.len())
            .saturating_sub(self.leaked.len())
    }

    /// Pages that are in use.
    #[must_use]
    pub const fn in_use(&self) -> PageCount {
        self.managed().saturating_sub(self.free.len())
    }

    /// Free pages.
    #[must_use]
    pub const fn available(&self) -> PageCount {
        self.free.len()
    }

    /// Pages that Linux keeps available, computed from its current memory.
    #[must_use]
    pub const fn floor(&self) -> PageCount {
        StatusReport::linux_floor(self.managed())
    }

    /// Balloons an aligned run of 512 free pages.
    pub(super) fn take_large(&mut self) -> Option<PageRange> {
        let large = self.find_large()?;
        self.first_large = large.end();
        self.free.remove(large);
        self.ballooned.insert(large);
        Some(large)
    }

    fn find_large(&mut self) -> Option<PageRange> {
        let large = |start| PageRange::new(start, PageCount::new(LARGE_PAGE)).ok();
        if let Some(next) = large(self.first_large)
            && self.free.contains_range(next)
        {
            return Some(next);
        }
        let above = PageRange::between(self.first_large, Gpfn::MAX)?;
        let found = self.free.intersection(above).find_map(|free| {
            large(free.start().align_up(PageCount::new(LARGE_PAGE))?)
                .filter(|large| large.end() <= free.end())
        });
        if found.is_none() {
            self.first_large = Gpfn::MAX;
        }
        found
    }

    /// Marks pages as free.
    fn free(&mut self, range: PageRange) {
        self.first_large =
            self.first_large.min(range.start().align_down(PageCount::new(LARGE_PAGE)));
        self.free.insert(range);
    }

    /// Balloons a run of free pages, at most `max`.
    pub(super) fn take_run(&mut self, max: PageCount) -> Option<PageRange> {
        let run = self.free.take_last(max)?;
        self.ballooned.insert(run);
        Some(run)
    }

    /// Frees ballooned pages; false if they are not ballooned.
    pub(super) fn take_back(&mut self, range: PageRange) -> bool {
        let is_ballooned = self.ballooned.contains_range(range);
        if is_ballooned {
            self.ballooned.remove(range);
            self.free(range);
        }
        is_ballooned
    }

    /// Whether the machine has any page of `range`.
    pub(super) fn has_part_of(&self, range: PageRange) -> bool {
        self.machine.intersection(range).next().is_some()
    }

    /// Adds pages that the machine did not have.
    pub(super) fn add(&mut self, range: PageRange, online: bool) {
        self.machine.insert(range);
        self.ram.insert(range);
        if online {
            self.free(range);
        } else {
            self.offline.insert(range);
        }
    }

    /// The driver is gone, and with it the record of ballooned pages: they stay in use.
    pub(super) fn leak(&mut self) {
        self.leaked.insert_set(&core::mem::take(&mut self.ballooned));
    }

    /// A new kernel takes over and finds the memory that is in its map.
    pub(super) fn kexec(&mut self, map: MemoryMap) {
        self.ram = match map {
            MemoryMap::Machine => self.machine.clone(),
            MemoryMap::Boot => self.boot.clone(),
        };
        self.start();
    }

    /// A crash kernel takes over with only the `reserved` part of the memory.
    pub(super) fn crash(&mut self, reserved: &PageRangeSet) {
        self.ram = reserved.clone();
        self.start();
    }

    /// The machine returns to its initial state.
    pub(super) fn reset(&mut self) {
        self.machine = self.boot.clone();
        self.ram = self.boot.clone();
        self.start();
    }

    fn start(&mut self) {
        for of_old_kernel in [&mut self.ballooned, &mut self.offline, &mut self.leaked] {
            of_old_kernel.clear();
        }
        self.first_large = Gpfn::default();
        self.free = self.ram.clone();
        self.occupy(self.in_use);
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const PAGES_PER_MIB: u64 = 256;

    fn memory(mib: u64) -> Memory {
        let ram = PageRange::new(Gpfn::default(), PageCount::new(mib * PAGES_PER_MIB)).unwrap();
        Memory::new([ram].into_iter().collect(), PageCount::ZERO)
    }

    #[test]
    fn the_floor_is_that_of_linux() {
        let sizes = [512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
        let floors = sizes.map(|mib| memory(mib).floor().get() / PAGES_PER_MIB);
        assert_eq!(floors, [168, 232, 360, 488, 744, 1000, 1512, 2536]);
    }

    #[test]
    fn shattered_memory_has_no_large_page() {
        let mut memory = memory(4);
        memory.shatter();
        assert_eq!(memory.take_large(), None);
        assert_eq!(memory.available(), PageCount::new(4 * PAGES_PER_MIB - 2));
    }

    #[test]
    fn large_pages_are_given_from_the_start_and_found_again_when_they_come_back() {
        let mut memory = memory(8);
        let all: Vec<_> = core::iter::from_fn(|| memory.take_large()).collect();
        assert_eq!(
            all.iter().map(|range| range.start().get()).collect::<Vec<_>>(),
            [0, 512, 1024, 1536]
        );
        let half = PageRange::new(Gpfn::new(700).unwrap(), PageCount::new(400)).unwrap();
        assert!(memory.take_back(half));
        assert_eq!(memory.take_large(), None);
        let rest = PageRange::new(Gpfn::new(512).unwrap(), PageCount::new(188)).unwrap();
        assert!(memory.take_back(rest));
        assert_eq!(memory.take_large(), Some(all[1]));
    }
}
