//! Many single pages, so that nodes store few children, many, all, and few again.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{PageRangeSet, pages, range};

/// Pages that lie in 80 leaves of two blocks, or in 80 blocks of two chunks, a few in each.
fn page() -> impl Strategy<Value = u64> {
    let far = prop_oneof![Just(512u64), Just(64 * 512)];
    (far, 0u64..80, prop_oneof![4 => 0u64..3, 1 => 62u64..66])
        .prop_map(|(stride, i, page)| i * stride + page)
}

/// The ranges of a set of pages.
fn ranges(model: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &page in model {
        match ranges.last_mut() {
            Some((_, end)) if *end == page => *end += 1,
            _ => ranges.push((page, page + 1)),
        }
    }
    ranges
}

fn check(set: &PageRangeSet, model: &BTreeSet<u64>) {
    let expected = ranges(model);
    let listed = |range: crate::PageRange| (range.start().get(), range.end().get());
    assert_eq!(set.iter().map(listed).collect::<Vec<_>>(), expected);
    assert!(set.iter().rev().map(listed).eq(expected.into_iter().rev()));
    assert_eq!(set.len(), pages(model.len() as u64));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn single_pages_come_and_go(
        pages_in in vec(page(), 0..400),
        pages_out in vec(page(), 0..400),
        again in vec(page(), 0..50),
    ) {
        let (mut set, mut model) = (PageRangeSet::new(), BTreeSet::new());
        for (page, put) in pages_in.into_iter().map(|page| (page, true))
            .chain(pages_out.into_iter().map(|page| (page, false)))
            .chain(again.into_iter().map(|page| (page, true)))
        {
            let new = if put { model.insert(page) } else { model.remove(&page) };
            let one = range(page, 1);
            let changed = if put { set.insert(one) } else { set.remove(one) };
            prop_assert_eq!(changed, pages(u64::from(new)));
            prop_assert_eq!(set.is_disjoint(one), !put);
        }
        check(&set, &model);
        while let Some(&last) = model.last() {
            prop_assert_eq!(set.take_last(pages(1)), Some(range(last, 1)));
            model.remove(&last);
        }
        prop_assert_eq!(set, PageRangeSet::new());
    }

    #[test]
    fn scattered_sets_are_joined_and_subtracted(
        ours in vec(page(), 0..300),
        theirs in vec(page(), 0..300),
    ) {
        let of = |pages: &[u64]| pages.iter().map(|&page| range(page, 1)).collect();
        let (set, other): (PageRangeSet, PageRangeSet) = (of(&ours), of(&theirs));
        let ours: BTreeSet<u64> = ours.into_iter().collect();
        let theirs: BTreeSet<u64> = theirs.into_iter().collect();
        let mut joined = set.clone();
        joined.append(other.clone());
        check(&joined, &(&ours | &theirs));
        let mut rest = set;
        rest.remove_set(&other);
        check(&rest, &(&ours - &theirs));
    }
}

#[test]
fn a_block_filled_page_by_page_is_one_range() {
    let count = 64 * 512 + 1;
    let mut set = PageRangeSet::new();
    // A stride without a common factor visits every page, going around the leaves.
    for i in 0..count {
        set.insert(range(i * 641 % count, 1));
    }
    assert_eq!(set, [range(0, count)].into_iter().collect());
    for i in 0..count {
        assert_eq!(set.remove(range(i * 641 % count, 1)), pages(1));
    }
    assert_eq!(set, PageRangeSet::new());
}
