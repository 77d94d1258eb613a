//! Page ranges, and sets of them, in a payload.

use alloc::vec::Vec;
use core::fmt;

use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use serde::de::{Error, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A page range: its first page and its number of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range(pub PageRange);

impl Serialize for Range {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.0.start().get(), self.0.count().get()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (start, count) = Deserialize::deserialize(deserializer)?;
        range(start, count).map(Self).ok_or_else(|| Error::custom("not a page range"))
    }
}

/// A page range set: for each range, the number of pages since the end of the previous one, and its
/// own number of pages. Reading accepts only ascending ranges with gaps between them.
///
/// It is a list and not a [`PageRangeSet`], because a set of pages that lie far apart needs far more
/// memory than its bytes. Check where the ranges lie before making a set of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet(pub Vec<PageRange>);

impl RangeSet {
    /// The ranges in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.0.iter().copied()
    }

    /// The number of ranges.
    #[must_use]
    pub const fn range_count(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no pages.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The set, if it lies entirely within `whole`.
    #[must_use]
    pub fn within(&self, whole: &PageRangeSet) -> Option<PageRangeSet> {
        self.iter().all(|range| whole.contains_range(range)).then(|| self.iter().collect())
    }
}

impl From<&PageRangeSet> for RangeSet {
    fn from(set: &PageRangeSet) -> Self {
        Self(set.iter().collect())
    }
}

impl Serialize for RangeSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.range_count()))?;
        let mut end = Gpfn::default();
        for range in self.iter() {
            let gap = range.start().distance_from(end);
            seq.serialize_element(&(gap.get(), range.count().get()))?;
            end = range.end();
        }
        seq.end()
    }
}

impl<'de> Deserialize<'de> for RangeSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Ranges).map(Self)
    }
}

struct Ranges;

impl<'de> Visitor<'de> for Ranges {
    type Value = Vec<PageRange>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("page ranges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<PageRange>, A::Error> {
        let mut ranges = Vec::<PageRange>::new();
        while let Some((gap, count)) = seq.next_element::<(u64, u64)>()? {
            let before = ranges.last().map(|range| range.end().get());
            let start =
                before.unwrap_or(0).checked_add(gap).filter(|_| before.is_none() || gap > 0);
            let Some(range) = start.and_then(|start| range(start, count)) else {
                return Err(Error::custom("ranges that do not form a set"));
            };
            ranges.push(range);
        }
        Ok(ranges)
    }
}

fn range(start: u64, count: u64) -> Option<PageRange> {
    PageRange::new(Gpfn::new(start)?, PageCount::new(count)).ok()
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[(u64, u64)]) -> PageRangeSet {
        ranges.iter().map(|&(start, count)| range(start, count).unwrap()).collect()
    }

    fn decode(ranges: &[(u64, u64)]) -> Option<PageRangeSet> {
        let bytes = postcard::to_allocvec(ranges).unwrap();
        let read = postcard::from_bytes::<RangeSet>(&bytes).ok()?;
        Some(read.iter().collect())
    }

    #[test]
    fn a_set_is_gaps_and_lengths() {
        let bytes = postcard::to_allocvec(&RangeSet::from(&set(&[(0, 5), (7, 1)]))).unwrap();
        assert_eq!(bytes, [2, 0, 5, 2, 1]);
        assert_eq!(decode(&[(0, 5), (2, 1)]), Some(set(&[(0, 5), (7, 1)])));
        assert_eq!(decode(&[]), Some(PageRangeSet::new()));
    }

    #[test]
    fn ranges_that_are_no_set_are_refused() {
        for ranges in [
            vec![(0, 0)],
            vec![(0, 1), (0, 1)],
            vec![(1 << 40, 1)],
            vec![(0, 1 << 41)],
            vec![(1, 1), (u64::MAX, 1)],
            vec![(1, u64::MAX)],
        ] {
            assert_eq!(decode(&ranges), None, "{ranges:?}");
        }
        assert!(postcard::from_bytes::<Range>(&[5, 0]).is_err());
    }

    #[test]
    fn a_count_without_ranges_takes_no_memory() {
        // Claims 2^63 ranges but has one.
        let bytes = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 3, 4];
        assert!(postcard::from_bytes::<RangeSet>(&bytes).is_err());
    }

    #[test]
    fn a_set_is_made_of_what_lies_within_only() {
        let ram = set(&[(0, 10), (20, 10)]);
        let read = |ranges: &[(u64, u64)]| RangeSet::from(&set(ranges)).within(&ram);
        assert_eq!(read(&[(1, 2), (29, 1)]), Some(set(&[(1, 2), (29, 1)])));
        assert_eq!(
            [read(&[(1, 2), (29, 2)]), read(&[(9, 2)]), read(&[(8, 13)])],
            [None, None, None]
        );
    }

    proptest! {
        #[test]
        fn sets_come_back_as_they_were(
            ranges in prop::collection::vec((0..1_u64 << 39, 1..10_000_u64), 0..50),
        ) {
            let set = set(&ranges);
            let bytes = postcard::to_allocvec(&RangeSet::from(&set)).unwrap();
            let again = postcard::from_bytes::<RangeSet>(&bytes).unwrap();
            prop_assert_eq!(&again, &RangeSet::from(&set));
            prop_assert_eq!(again.within(&set), Some(set));
            let each: Vec<Range> = ranges.iter().map(|&(s, c)| Range(range(s, c).unwrap())).collect();
            let bytes = postcard::to_allocvec(&each).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Vec<Range>>(&bytes).unwrap(), each);
        }
    }
}
