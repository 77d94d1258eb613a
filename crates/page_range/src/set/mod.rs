//! An exact set of pages.

mod bits;
mod chunks;
mod leaf;
mod node;
mod part;
mod runs;
#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a sum that overflows fails its test")]
mod tests;

use core::fmt;

use crate::{Gpfn, PageCount, PageRange};
use chunks::Chunks;
use runs::Runs;

/// An exact set of pages, small and fast whatever a guest puts into it.
///
/// It is a tree of 64-ary nodes over the address space: chunks of 8 GiB, blocks of 128 MiB, leaves
/// of 2 MiB with a bit for each page. What is wholly in the set is one bit in the node above, what
/// is wholly out is not stored: a merged 1 TiB takes some KiB, and the worst that can be, a page
/// that is in and one that is out in each leaf, little more than a bit for each page. An operation
/// looks at a few words, however many ranges there are; one that covers many ranges costs no more
/// than to free them.
#[derive(Clone, PartialEq)]
pub struct PageRangeSet {
    chunks: Chunks,
    len: PageCount,
}

/// Why ranges are not those of a set: see [`PageRangeSet::try_from_ranges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsorted {
    /// The first range that does not lie above all those before it, with a gap.
    pub range: PageRange,
}

impl fmt::Display for Unsorted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page range {} does not lie above the one before it, with a gap", self.range)
    }
}

impl core::error::Error for Unsorted {}

impl PageRangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { chunks: Chunks::new(), len: PageCount::ZERO }
    }

    /// The set of `ranges`, as [`PageRangeSet::iter`] lists them: upwards, none empty, and a gap
    /// between any two. Meant for saved sets: what it accepts is listed the same again.
    ///
    /// # Errors
    /// [`Unsorted`] where a range overlaps, touches or lies below one before it.
    pub fn try_from_ranges(ranges: impl IntoIterator<Item = PageRange>) -> Result<Self, Unsorted> {
        let mut set = Self::new();
        let mut end = None;
        for range in ranges {
            if end.is_some_and(|end| range.start() <= end) {
                return Err(Unsorted { range });
            }
            end = Some(range.end());
            set.insert(range);
        }
        Ok(set)
    }

    /// Adds the pages of `range` and says how many of them were new.
    #[inline]
    pub fn insert(&mut self, range: PageRange) -> PageCount {
        let added = self.chunks.put::<true>(range.start().get(), range.end().get());
        self.added(added)
    }

    /// Takes the pages of `range` out and says how many of them were in the set.
    #[inline]
    pub fn remove(&mut self, range: PageRange) -> PageCount {
        let removed = self.chunks.put::<false>(range.start().get(), range.end().get());
        self.removed(removed)
    }

    /// Whether `gpfn` is in the set.
    #[must_use]
    #[inline]
    pub fn contains(&self, gpfn: Gpfn) -> bool {
        self.chunks.any::<true>(gpfn.get(), gpfn.get().saturating_add(1))
    }

    /// Whether every page of `range` is in the set.
    #[must_use]
    #[inline]
    pub fn contains_range(&self, range: PageRange) -> bool {
        !self.chunks.any::<false>(range.start().get(), range.end().get())
    }

    /// Whether no page of `range` is in the set.
    #[must_use]
    #[inline]
    pub fn is_disjoint(&self, range: PageRange) -> bool {
        !self.chunks.any::<true>(range.start().get(), range.end().get())
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
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = PageRange> + '_ {
        Runs::<true>::new(&self.chunks, Gpfn::default(), Gpfn::MAX)
    }

    /// The number of maximal ranges. They are counted: where only a bound is asked for,
    /// [`PageRangeSet::has_more_ranges_than`] looks no further than that.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.iter().count()
    }

    /// Whether there are more than `bound` maximal ranges.
    #[must_use]
    pub fn has_more_ranges_than(&self, bound: usize) -> bool {
        self.iter().nth(bound).is_some()
    }

    /// Takes pages from the end of the set: the highest `max` pages of the highest range, or the
    /// whole range where it is smaller. `None` where the set is empty or `max` is zero.
    pub fn take_last(&mut self, max: PageCount) -> Option<PageRange> {
        if max.is_zero() {
            return None;
        }
        let (start, end) = self.chunks.take_last(max.get())?;
        let taken = PageRange::between(Gpfn::new(start)?, Gpfn::new(end)?)?;
        self.removed(taken.count().get());
        Some(taken)
    }

    /// Takes what [`PageRangeSet::take_last`] would, called again and again until there are `most`
    /// ranges or `max` pages altogether; faster than that where ranges are small. Says how many
    /// pages they are.
    pub fn take_last_ranges(
        &mut self,
        max: PageCount,
        most: usize,
        mut take: impl FnMut(PageRange),
    ) -> PageCount {
        let mut left = max;
        let mut taken: Option<PageRange> = None;
        for range in self.iter().rev().take(most) {
            let start = range.end().get().saturating_sub(left.get());
            let start = Gpfn::new(start).map_or(range.start(), |start| start.max(range.start()));
            let Some(range) = PageRange::between(start, range.end()) else { break };
            left = left.saturating_sub(range.count());
            take(range);
            let end = taken.map_or(range.end(), PageRange::end);
            taken = PageRange::between(start, end);
        }
        taken.map_or(PageCount::ZERO, |taken| self.remove(taken))
    }

    /// The parts of `range` that are in the set, lowest first.
    pub fn intersection(
        &self,
        range: PageRange,
    ) -> impl DoubleEndedIterator<Item = PageRange> + '_ {
        Runs::<true>::new(&self.chunks, range.start(), range.end())
    }

    /// The parts of `range` that are not in the set, lowest first.
    pub fn difference(&self, range: PageRange) -> impl DoubleEndedIterator<Item = PageRange> + '_ {
        Runs::<false>::new(&self.chunks, range.start(), range.end())
    }

    /// Adds all pages of `other` and says how many were new.
    pub fn insert_set(&mut self, other: &Self) -> PageCount {
        self.append(other.clone())
    }

    /// Adds all pages of `other` and says how many were new. What only `other` has is moved.
    pub fn append(&mut self, other: Self) -> PageCount {
        if self.is_empty() {
            *self = other;
            return self.len;
        }
        let added = self.chunks.absorb(other.chunks);
        self.added(added)
    }

    /// Takes all pages of `other` out and says how many were in the set.
    pub fn remove_set(&mut self, other: &Self) -> PageCount {
        let removed = self.chunks.subtract(&other.chunks);
        self.removed(removed)
    }

    /// The whole, aligned `unit`s of the set, such as its huge pages. A `unit` of no pages counts as
    /// one page. Fast where `unit` is a multiple of 512 pages, the size of a huge page.
    #[must_use]
    pub fn units_within(&self, unit: PageCount) -> Self {
        let leaf = PageCount::new(chunks::LEAF);
        if unit <= PageCount::new(1) {
            return self.clone();
        }
        if unit.align_down(leaf) != unit {
            return self.iter().filter_map(|range| range.units_within(unit)).collect();
        }
        let chunks = self.chunks.whole_leaves();
        let len = PageCount::new(chunks.len());
        let whole = Self { chunks, len };
        if unit == leaf {
            return whole;
        }
        whole.iter().filter_map(|range| range.units_within(unit)).collect()
    }

    /// Takes the whole, aligned `unit`s out of the set: [`PageRangeSet::units_within`].
    #[must_use]
    pub fn take_units(&mut self, unit: PageCount) -> Self {
        if unit <= PageCount::new(1) {
            return core::mem::take(self);
        }
        let units = self.units_within(unit);
        self.remove_set(&units);
        units
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    #[inline]
    fn added(&mut self, pages: u64) -> PageCount {
        self.len = self.len.saturating_add(PageCount::new(pages));
        PageCount::new(pages)
    }

    #[inline]
    fn removed(&mut self, pages: u64) -> PageCount {
        self.len = self.len.saturating_sub(PageCount::new(pages));
        PageCount::new(pages)
    }
}

impl Default for PageRangeSet {
    fn default() -> Self {
        Self::new()
    }
}

impl Eq for PageRangeSet {}

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
