//! An exact set of pages.

use alloc::collections::BTreeMap;
use core::fmt;

use crate::{Gpfn, PageCount, PageRange};

/// An exact set of pages, kept as ranges that neither overlap nor touch.
///
/// A merged 1 TiB is one entry. The worst case, every other page, costs one entry for two pages;
/// callers that take pages from a guest bound the set by the guest's RAM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PageRangeSet {
    /// Start → end (exclusive) of each maximal range.
    ranges: BTreeMap<Gpfn, Gpfn>,
    len: PageCount,
}

impl PageRangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { ranges: BTreeMap::new(), len: PageCount::ZERO }
    }

    /// Adds the pages of `range` and says how many of them were new.
    pub fn insert(&mut self, range: PageRange) -> PageCount {
        let (mut start, mut end) = (range.start(), range.end());
        let mut already = PageCount::ZERO;
        while let Some(neighbour) = self.last_touching(start, end) {
            self.ranges.remove(&neighbour.start());
            if let Some(common) = neighbour.intersection(range) {
                already = already.saturating_add(common.count());
            }
            start = start.min(neighbour.start());
            end = end.max(neighbour.end());
        }
        self.ranges.insert(start, end);
        let added = range.count().saturating_sub(already);
        self.len = self.len.saturating_add(added);
        added
    }

    /// Takes the pages of `range` out and says how many of them were in the set.
    pub fn remove(&mut self, range: PageRange) -> PageCount {
        let mut removed = PageCount::ZERO;
        while let Some(hit) = self.last_below(range.end()).filter(|r| r.end() > range.start()) {
            self.ranges.remove(&hit.start());
            let below = PageRange::between(hit.start(), range.start());
            let above = PageRange::between(range.end(), hit.end());
            for rest in below.into_iter().chain(above) {
                self.ranges.insert(rest.start(), rest.end());
            }
            if let Some(common) = hit.intersection(range) {
                removed = removed.saturating_add(common.count());
            }
        }
        self.len = self.len.saturating_sub(removed);
        removed
    }

    /// Whether `gpfn` is in the set.
    #[must_use]
    pub fn contains(&self, gpfn: Gpfn) -> bool {
        self.last_up_to(gpfn).is_some_and(|range| range.contains(gpfn))
    }

    /// Whether every page of `range` is in the set.
    #[must_use]
    pub fn contains_range(&self, range: PageRange) -> bool {
        self.last_up_to(range.start()).is_some_and(|held| range.end() <= held.end())
    }

    /// The number of pages; O(1).
    #[must_use]
    pub const fn len(&self) -> PageCount {
        self.len
    }

    /// Whether there are no pages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len.is_zero()
    }

    /// The maximal ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.ranges.iter().filter_map(|(&start, &end)| PageRange::between(start, end))
    }

    /// The number of maximal ranges.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.ranges.len()
    }

    /// Takes pages from the end of the set: the highest `max` pages of the highest range, or the
    /// whole range where it is smaller. `None` where the set is empty or `max` is zero.
    pub fn take_last(&mut self, max: PageCount) -> Option<PageRange> {
        let (&start, &end) = self.ranges.last_key_value()?;
        let last = PageRange::between(start, end)?;
        let keep = last.count().saturating_sub(max);
        let taken = PageRange::between(start.checked_add(keep)?, end)?;
        self.remove(taken);
        Some(taken)
    }

    /// The parts of `range` that are in the set, lowest first.
    pub fn intersection(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        self.overlapping(range).filter_map(move |held| held.intersection(range))
    }

    /// The parts of `range` that are not in the set, lowest first.
    pub fn difference(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let mut next = range.start();
        self.intersection(range).map(Some).chain(core::iter::once(None)).filter_map(move |held| {
            match held {
                Some(held) => {
                    let gap = PageRange::between(next, held.start());
                    next = held.end();
                    gap
                }
                None => PageRange::between(next, range.end()),
            }
        })
    }

    /// Adds all pages of `other` and says how many were new.
    pub fn insert_set(&mut self, other: &Self) -> PageCount {
        other.iter().fold(PageCount::ZERO, |added, range| added.saturating_add(self.insert(range)))
    }

    /// Takes all pages of `other` out and says how many were in the set.
    pub fn remove_set(&mut self, other: &Self) -> PageCount {
        other
            .iter()
            .fold(PageCount::ZERO, |removed, range| removed.saturating_add(self.remove(range)))
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// The held ranges that have a page in common with `range`, lowest first.
    fn overlapping(&self, range: PageRange) -> impl Iterator<Item = PageRange> + '_ {
        let first = self
            .last_up_to(range.start())
            .filter(|held| held.end() > range.start())
            .map_or(range.start(), PageRange::start);
        self.ranges
            .range(first..range.end())
            .filter_map(|(&start, &end)| PageRange::between(start, end))
    }

    /// The highest held range that overlaps or touches the pages from `start` to `end`.
    fn last_touching(&self, start: Gpfn, end: Gpfn) -> Option<PageRange> {
        self.last_up_to(end).filter(|held| held.end() >= start)
    }

    /// The highest held range that starts at or below `gpfn`.
    fn last_up_to(&self, gpfn: Gpfn) -> Option<PageRange> {
        let (&start, &end) = self.ranges.range(..=gpfn).next_back()?;
        PageRange::between(start, end)
    }

    /// The highest held range that starts below `gpfn`.
    fn last_below(&self, gpfn: Gpfn) -> Option<PageRange> {
        let (&start, &end) = self.ranges.range(..gpfn).next_back()?;
        PageRange::between(start, end)
    }
}

impl FromIterator<PageRange> for PageRangeSet {
    fn from_iter<I: IntoIterator<Item = PageRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

impl Extend<PageRange> for PageRangeSet {
    fn extend<I: IntoIterator<Item = PageRange>>(&mut self, ranges: I) {
        for range in ranges {
            self.insert(range);
        }
    }
}

impl fmt::Debug for PageRangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use alloc::vec::Vec;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    }

    fn pages(count: u64) -> PageCount {
        PageCount::new(count)
    }

    fn set(ranges: &[(u64, u64)]) -> PageRangeSet {
        ranges.iter().map(|&(start, count)| range(start, count)).collect()
    }

    #[test]
    fn touching_ranges_become_one() {
        let joined = set(&[(0, 10), (20, 10), (10, 10)]);
        assert_eq!(joined.iter().collect::<Vec<_>>(), [range(0, 30)]);
    }

    #[test]
    fn a_page_inserted_twice_counts_once() {
        let mut held = set(&[(0, 10), (20, 10)]);
        assert_eq!(held.insert(range(5, 20)), pages(10));
        assert_eq!(held.insert(range(5, 20)), pages(0));
        assert_eq!(held.len(), pages(30));
    }

    #[test]
    fn removing_the_middle_splits_a_range() {
        let mut held = set(&[(0, 30)]);
        assert_eq!(held.remove(range(10, 10)), pages(10));
        assert_eq!(held, set(&[(0, 10), (20, 10)]));
    }

    #[test]
    fn taking_from_the_end_never_joins_two_ranges() {
        let mut held = set(&[(0, 10), (20, 10)]);
        assert_eq!(held.take_last(pages(4)), Some(range(26, 4)));
        assert_eq!(held.take_last(pages(100)), Some(range(20, 6)));
        assert_eq!(held.take_last(pages(0)), None);
        assert_eq!(held.len(), pages(10));
    }

    #[test]
    fn the_highest_page_can_be_held() {
        let top = Gpfn::MAX.get() - 1;
        let mut held = set(&[(top, 1)]);
        assert!(held.contains(Gpfn::new(top).unwrap()));
        assert!(!held.contains(Gpfn::MAX));
        assert_eq!(held.take_last(pages(1)), Some(range(top, 1)));
        assert!(held.is_empty());
    }
}
