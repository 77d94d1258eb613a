//! An exact set of pages.
//!
//! The tree has four levels, each in a file: `chunks` of 8 GiB, `node` for the chunk and for its
//! blocks of 128 MiB, and `leaf` for 2 MiB. `part` has the operations that nodes and leaves share,
//! `children` the storage of a node, `counted` the page counter of a block, `bits` the masks,
//! `state` the types for which an operation is compiled, and `runs` the iterator.
//!
//! # Arithmetic
//!
//! The numbers in these modules are pages below [`Gpfn::MAX`], 2<sup>40</sup>, or their offsets,
//! counts and bit positions in a part of at most 2<sup>21</sup> pages; [`PageRange`] has checked
//! everything that a guest supplied. No sum or product of them comes near the limit of its type,
//! and a difference is taken only if the order of the two numbers is known. So these modules use
//! the plain operators and expect the lint against them. None of these operations wraps: if a
//! defect made a count wrong, a build with overflow checks, such as any test and this project's
//! release profile, would stop there instead of continuing with a huge number.

mod bits;
mod children;
mod chunks;
mod counted;
mod leaf;
mod node;
mod part;
mod runs;
mod state;
#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a sum that overflows fails its test")]
mod tests;

use core::fmt;

use crate::{Gpfn, PageCount, PageRange};
use chunks::Chunks;
use runs::Runs;
use state::{Held, Missing};

/// An exact set of pages, small and fast whatever a guest puts into it.
///
/// It is a tree over the address space whose nodes have 64 children: chunks of 8 GiB, blocks of 128
/// MiB, and leaves of 2 MiB with a bit for each page. A part whose pages are all in the set is one
/// bit in the node above, and a part without any is not stored: 1 TiB as one range takes a few KiB.
/// In the worst case, in which each leaf has pages in the set and pages that are not, the set takes
/// little more than a bit for each page. An operation reads a few words, however many ranges there
/// are; one that covers many ranges takes no longer than freeing them.
///
/// ```
/// use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let first = Gpfn::new(0x100).ok_or("too high")?;
/// let mut set = PageRangeSet::new();
/// set.insert(PageRange::new(first, PageCount::new(16))?);
/// assert_eq!(set.remove(PageRange::new(first, PageCount::new(4))?), PageCount::new(4));
/// assert_eq!(set.len(), PageCount::new(12));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
pub struct PageRangeSet {
    chunks: Chunks,
    len: PageCount,
}

/// The ranges are not in the order of a set: see [`PageRangeSet::try_from_ranges`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsorted {
    /// The first range that does not lie above all previous ones with a gap between.
    pub range: PageRange,
}

impl fmt::Display for Unsorted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page range {} overlaps, touches or lies below a previous one", self.range)
    }
}

impl core::error::Error for Unsorted {}

impl PageRangeSet {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { chunks: Chunks::new(), len: PageCount::ZERO }
    }

    /// The set of `ranges` in the form in which [`PageRangeSet::iter`] lists them: in ascending
    /// order with a gap between any two. This is meant for saved sets: `iter` on the result returns
    /// the same list.
    ///
    /// # Errors
    /// [`Unsorted`] if a range overlaps, touches or lies below a previous one.
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

    /// Adds the pages of `range` and returns how many of them were new.
    #[inline]
    pub fn insert(&mut self, range: PageRange) -> PageCount {
        let added = self.chunks.insert(range);
        self.added(added)
    }

    /// Removes the pages of `range` and returns how many of them were in the set.
    #[inline]
    pub fn remove(&mut self, range: PageRange) -> PageCount {
        let removed = self.chunks.remove(range);
        self.removed(removed)
    }

    /// Whether `gpfn` is in the set.
    #[must_use]
    #[inline]
    pub fn contains(&self, gpfn: Gpfn) -> bool {
        self.chunks.contains(gpfn)
    }

    /// Whether every page of `range` is in the set.
    #[must_use]
    #[inline]
    pub fn contains_range(&self, range: PageRange) -> bool {
        !self.chunks.any::<Missing>(range)
    }

    /// Whether no page of `range` is in the set.
    #[must_use]
    #[inline]
    pub fn is_disjoint(&self, range: PageRange) -> bool {
        !self.chunks.any::<Held>(range)
    }

    /// The number of pages, in constant time.
    #[must_use]
    pub const fn len(&self) -> PageCount {
        self.len
    }

    /// Whether the set has no pages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len.is_zero()
    }

    /// The maximal ranges, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = PageRange> + '_ {
        Runs::<Held>::new(&self.chunks, Gpfn::default(), Gpfn::MAX)
    }

    /// The number of maximal ranges, in time proportional to it. To compare it with a bound, use
    /// [`PageRangeSet::has_more_ranges_than`], which stops at the bound.
    #[must_use]
    pub fn range_count(&self) -> usize {
        self.iter().count()
    }

    /// Whether there are more than `bound` maximal ranges.
    #[must_use]
    pub fn has_more_ranges_than(&self, bound: usize) -> bool {
        self.iter().nth(bound).is_some()
    }

    /// Removes and returns pages from the end of the set: the highest `max` pages of the highest
    /// range, or the whole range if it is smaller. `None` if the set is empty or `max` is zero.
    pub fn take_last(&mut self, max: PageCount) -> Option<PageRange> {
        if max.is_zero() {
            return None;
        }
        let taken = self.chunks.take_last(max.get())?;
        self.removed(taken.count().get());
        Some(taken)
    }

    /// Removes what repeated calls of [`PageRangeSet::take_last`] would remove, until that is
    /// `most` ranges or `max` pages in total, and calls `take` with each range. For small ranges
    /// this is faster than the single calls. Returns the number of pages.
    pub fn take_last_ranges(
        &mut self,
        max: PageCount,
        most: usize,
        mut take: impl FnMut(PageRange),
    ) -> PageCount {
        let mut left = max;
        let mut lowest = Gpfn::MAX;
        let mut end = None;
        for range in self.iter().rev().take(most) {
            let above = Gpfn::new(range.end().get().saturating_sub(left.get()));
            let start = above.map_or(range.start(), |above| above.max(range.start()));
            let Some(range) = PageRange::between(start, range.end()) else { break };
            left = left.saturating_sub(range.count());
            lowest = range.start();
            end.get_or_insert(range.end());
            take(range);
        }
        match end {
            Some(end) => self.remove_between(lowest, end),
            None => PageCount::ZERO,
        }
    }

    /// Keeps this out of each caller of [`PageRangeSet::take_last_ranges`].
    #[inline(never)]
    fn remove_between(&mut self, start: Gpfn, end: Gpfn) -> PageCount {
        PageRange::between(start, end).map_or(PageCount::ZERO, |range| self.remove(range))
    }

    /// The parts of `range` that are in the set, lowest first.
    pub fn intersection(
        &self,
        range: PageRange,
    ) -> impl DoubleEndedIterator<Item = PageRange> + '_ {
        Runs::<Held>::new(&self.chunks, range.start(), range.end())
    }

    /// The parts of `range` that are not in the set, lowest first.
    pub fn difference(&self, range: PageRange) -> impl DoubleEndedIterator<Item = PageRange> + '_ {
        Runs::<Missing>::new(&self.chunks, range.start(), range.end())
    }

    /// Adds all pages of `other` and returns how many were new.
    pub fn insert_set(&mut self, other: &Self) -> PageCount {
        self.append(other.clone())
    }

    /// Adds all pages of `other` and returns how many were new. Parts that only `other` has are
    /// moved, not copied.
    pub fn append(&mut self, other: Self) -> PageCount {
        if self.is_empty() {
            *self = other;
            return self.len;
        }
        let added = self.chunks.absorb(other.chunks);
        self.added(added)
    }

    /// Removes all pages of `other` and returns how many were in the set.
    pub fn remove_set(&mut self, other: &Self) -> PageCount {
        let removed = self.chunks.subtract(&other.chunks);
        self.removed(removed)
    }

    /// The aligned `unit`s whose pages are all in the set, such as its huge pages. A `unit` of zero
    /// pages counts as one page. This is fast if `unit` is a multiple of 512 pages, the size of a
    /// huge page.
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

    /// Removes the aligned `unit`s whose pages are all in the set and returns them: see
    /// [`PageRangeSet::units_within`].
    #[must_use]
    pub fn take_units(&mut self, unit: PageCount) -> Self {
        if unit <= PageCount::new(1) {
            return core::mem::take(self);
        }
        let units = self.units_within(unit);
        self.remove_set(&units);
        units
    }

    /// Removes all pages.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    #[inline]
    #[expect(clippy::arithmetic_side_effects, reason = "pages up to 2^40; see the module head")]
    fn added(&mut self, pages: u64) -> PageCount {
        self.len = PageCount::new(self.len.get() + pages);
        PageCount::new(pages)
    }

    #[inline]
    #[expect(clippy::arithmetic_side_effects, reason = "pages up to 2^40; see the module head")]
    fn removed(&mut self, pages: u64) -> PageCount {
        self.len = PageCount::new(self.len.get() - pages);
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
