//! The set against the simplest correct models.

mod ends;
mod model;
mod scattered;

use alloc::vec::Vec;

use super::*;

pub(super) fn range(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

pub(super) fn pages(count: u64) -> PageCount {
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
fn sets_of_as_many_other_pages_are_not_equal() {
    // Another page, leaf, block and chunk; then all of these beside the same pages.
    let places = [1, 512, 64 * 512, 64 * 64 * 512];
    for place in places {
        assert_ne!(set(&[(0, 10)]), set(&[(place, 10)]));
        assert_ne!(set(&[(0, 10), (20, 1)]), set(&[(0, 10), (20 + place, 1)]));
        assert_ne!(set(&[(20, 1), (place + 40, 7)]), set(&[(20, 1), (place + 41, 7)]));
    }
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

#[test]
fn the_whole_address_space_can_be_held() {
    let all = range(0, Gpfn::MAX.get());
    let mut held = set(&[(0, Gpfn::MAX.get())]);
    assert_eq!(held.insert(range(5, 5)), pages(0));
    assert!(held.contains_range(all) && !held.contains(Gpfn::MAX));
    assert_eq!(held.iter().collect::<Vec<_>>(), [all]);
    assert_eq!(held.difference(all).next(), None);
    assert_eq!(held.remove(all), pages(Gpfn::MAX.get()));
    assert_eq!(held, PageRangeSet::new());
}

#[test]
fn only_ranges_as_a_set_lists_them_are_restored() {
    let ranges = [range(0, 10), range(11, 10), range(1 << 30, 1)];
    let restored = PageRangeSet::try_from_ranges(ranges).unwrap();
    assert_eq!(restored.iter().collect::<Vec<_>>(), ranges);
    for bad in [range(11, 10), range(20, 10), range(21, 10), range(0, 1)] {
        let refused = PageRangeSet::try_from_ranges([range(11, 10), bad]);
        assert_eq!(refused, Err(Unsorted { range: bad }));
        let text = alloc::format!("{}", Unsorted { range: bad });
        assert!(text.contains(&alloc::format!("{bad}")), "{text}");
    }
}

#[test]
fn whole_units_are_found_at_their_multiples_only() {
    let gib = 262_144;
    let mut held = set(&[(5, 3 * gib), (5 * gib, gib), (7 * gib, 512), (8 * gib + 1, 512)]);
    assert_eq!(held.units_within(pages(gib)), set(&[(gib, 2 * gib), (5 * gib, gib)]));
    let huge = set(&[(512, 3 * gib - 512), (5 * gib, gib), (7 * gib, 512)]);
    assert_eq!(held.units_within(pages(512)), huge);
    assert_eq!(held.units_within(pages(1)), held);
    assert_eq!(held.units_within(pages(0)), held);
    assert_eq!(held.take_units(pages(512)), huge);
    assert_eq!(held, set(&[(5, 507), (3 * gib, 5), (8 * gib + 1, 512)]));
}
