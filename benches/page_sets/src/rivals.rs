//! The competing sets from the standard library and other crates.

use std::collections::BTreeMap;

use range_set_blaze::RangeSetBlaze;
use rangemap::RangeSet;
use roaring::RoaringTreemap;

use crate::PageSet;

/// Maps the start of each range to its end; merged by hand.
pub(crate) struct BTree(BTreeMap<u64, u64>);

impl PageSet for BTree {
    fn empty(_pages: u64) -> Self {
        Self(BTreeMap::new())
    }

    fn insert(&mut self, start: u64, count: u64) -> u64 {
        let (mut from, mut to) = (start, start + count);
        let end = to;
        let mut held = 0;
        while let Some((&low, &high)) = self.0.range(..=to).next_back()
            && high >= from
        {
            self.0.remove(&low);
            held += high.min(end).saturating_sub(low.max(start));
            from = from.min(low);
            to = to.max(high);
        }
        self.0.insert(from, to);
        count - held
    }

    fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let mut last = self.0.last_entry()?;
        let (start, end) = (*last.key(), *last.get());
        if end - start <= max {
            last.remove();
            return Some((start, end - start));
        }
        *last.get_mut() = end - max;
        Some((end - max, max))
    }
}

/// The crate `rangemap`.
pub(crate) struct RangeMap(RangeSet<u64>);

impl PageSet for RangeMap {
    fn empty(_pages: u64) -> Self {
        Self(RangeSet::new())
    }

    fn insert(&mut self, start: u64, count: u64) -> u64 {
        let range = start..start + count;
        let overlap = |held: &std::ops::Range<u64>| {
            held.end.min(range.end).saturating_sub(held.start.max(range.start))
        };
        let held: u64 = self.0.overlapping(&range).map(overlap).sum();
        self.0.insert(range);
        count - held
    }

    fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let last = self.0.last()?.clone();
        let start = last.start.max(last.end.saturating_sub(max));
        self.0.remove(start..last.end);
        Some((start, last.end - start))
    }
}

/// The crate `range-set-blaze`.
pub(crate) struct Blaze(RangeSetBlaze<u64>);

impl PageSet for Blaze {
    fn empty(_pages: u64) -> Self {
        Self(RangeSetBlaze::new())
    }

    fn insert(&mut self, start: u64, count: u64) -> u64 {
        let before = self.0.len();
        self.0.ranges_insert(start..=start + count - 1);
        u64::try_from(self.0.len() - before).unwrap_or(u64::MAX)
    }

    fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let last = self.0.ranges().next_back()?;
        let end = last.end() + 1;
        let start = (*last.start()).max(end.saturating_sub(max));
        // The crate can remove only single values or another set's; this is its cheapest way.
        drop(self.0.split_off(start));
        Some((start, end - start))
    }
}

/// The crate `roaring`. Its 32-bit set would suffice for these guests, but not for all page
/// numbers.
pub(crate) struct Roaring(RoaringTreemap);

impl PageSet for Roaring {
    fn empty(_pages: u64) -> Self {
        Self(RoaringTreemap::new())
    }

    fn insert(&mut self, start: u64, count: u64) -> u64 {
        self.0.insert_range(start..start + count)
    }

    fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let (high, bitmap) = self.0.bitmaps().next_back()?;
        let last = bitmap.iter().next_range_back()?;
        let base = u64::from(high) << 32;
        let end = base + u64::from(*last.end()) + 1;
        let start = (base + u64::from(*last.start())).max(end.saturating_sub(max));
        self.0.remove_range(start..end);
        Some((start, end - start))
    }
}
