//! The guest's page allocator, as far as the balloon sees it.

use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};

const LARGE_PAGE: u64 = 512;
const PAGES_PER_MIB: u64 = 256;

/// The guest's RAM: each page is free, in use or ballooned.
#[derive(Clone, Debug)]
pub struct Memory {
    ram: PageRangeSet,
    free: PageRangeSet,
    ballooned: PageRangeSet,
}

impl Memory {
    /// RAM whose highest `in_use` pages are in use.
    #[must_use]
    pub fn new(ram: PageRangeSet, in_use: PageCount) -> Self {
        let mut memory = Self { free: ram.clone(), ram, ballooned: PageRangeSet::new() };
        memory.occupy(in_use);
        memory
    }

    /// Puts the highest `count` free pages to use, or all there are.
    pub fn occupy(&mut self, count: PageCount) {
        let mut left = count;
        while let Some(range) = self.free.take_last(left) {
            left = left.saturating_sub(range.count());
        }
    }

    /// Frees all pages that are in use.
    pub fn release(&mut self) {
        self.free = self.ram.clone();
        self.free.remove_set(&self.ballooned);
    }

    /// Puts one page of each 2 MiB to use, so that no large page is left.
    pub fn shatter(&mut self) {
        for range in self.ram.clone().iter() {
            let large_pages = (range.start().get()..range.end().get()).step_by(512);
            for page in large_pages.filter_map(Gpfn::new) {
                if let Ok(page) = PageRange::new(page, PageCount::new(1)) {
                    self.free.remove(page);
                }
            }
        }
    }

    /// The pages the host has.
    #[must_use]
    pub const fn ballooned(&self) -> &PageRangeSet {
        &self.ballooned
    }

    /// All pages.
    #[must_use]
    pub const fn ram(&self) -> &PageRangeSet {
        &self.ram
    }

    /// Pages the guest has, free or not: Linux's `MemTotal`.
    #[must_use]
    pub const fn managed(&self) -> PageCount {
        self.ram.len().saturating_sub(self.ballooned.len())
    }

    /// Pages nobody uses.
    #[must_use]
    pub const fn available(&self) -> PageCount {
        self.free.len()
    }

    /// Pages Linux keeps available, computed from what it has now (`hv_balloon.c`,
    /// `compute_balloon_floor`).
    #[must_use]
    pub const fn floor(&self) -> PageCount {
        let mib = self.managed().get() / PAGES_PER_MIB;
        let floor = match mib {
            0..128 => 8 + mib / 2,
            128..512 => 40 + mib / 4,
            512..2048 => 104 + mib / 8,
            2048..8192 => 232 + mib / 16,
            _ => 488 + mib / 32,
        };
        PageCount::new(floor * PAGES_PER_MIB)
    }

    /// Balloons an aligned run of 512 free pages.
    pub(super) fn take_large(&mut self) -> Option<PageRange> {
        let large = self.free.iter().find_map(|free| {
            let start = Gpfn::new(free.start().get().next_multiple_of(LARGE_PAGE))?;
            let large = PageRange::new(start, PageCount::new(LARGE_PAGE)).ok()?;
            (large.end() <= free.end()).then_some(large)
        })?;
        self.free.remove(large);
        self.ballooned.insert(large);
        Some(large)
    }

    /// Balloons one free page.
    pub(super) fn take_single(&mut self) -> Option<PageRange> {
        let single = self.free.take_last(PageCount::new(1))?;
        self.ballooned.insert(single);
        Some(single)
    }

    /// Frees ballooned pages; false where they are not ballooned.
    pub(super) fn take_back(&mut self, range: PageRange) -> bool {
        let is_ballooned = self.ballooned.contains_range(range);
        if is_ballooned {
            self.ballooned.remove(range);
            self.free.insert(range);
        }
        is_ballooned
    }

    /// The driver is gone and with it the knowledge of what is ballooned: the pages stay in use.
    pub(super) fn leak(&mut self) {
        for range in core::mem::take(&mut self.ballooned).iter() {
            self.ram.remove(range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
