//! `PageRangeSet` against the simplest correct version: a `BTreeSet` of page numbers.

use std::collections::BTreeSet;

use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use proptest::prelude::*;

const PAGES: u64 = 96;

#[derive(Clone, Debug)]
enum Op {
    Insert(PageRange),
    Remove(PageRange),
    TakeLast(u64),
    InsertSet(Vec<PageRange>),
    RemoveSet(Vec<PageRange>),
    Clear,
}

fn range() -> impl Strategy<Value = PageRange> {
    (0..PAGES, 1..24_u64).prop_map(|(start, count)| {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => range().prop_map(Op::Insert),
        6 => range().prop_map(Op::Remove),
        3 => (0..12_u64).prop_map(Op::TakeLast),
        1 => prop::collection::vec(range(), 0..4).prop_map(Op::InsertSet),
        1 => prop::collection::vec(range(), 0..4).prop_map(Op::RemoveSet),
        1 => Just(Op::Clear),
    ]
}

fn numbers(range: PageRange) -> impl Iterator<Item = u64> + Clone {
    range.start().get()..range.end().get()
}

/// The maximal runs of `model`.
fn runs(model: &BTreeSet<u64>) -> Vec<PageRange> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &page in model {
        match runs.last_mut() {
            Some((_, end)) if *end == page => *end += 1,
            _ => runs.push((page, page + 1)),
        }
    }
    runs.into_iter()
        .filter_map(|(start, end)| PageRange::between(Gpfn::new(start)?, Gpfn::new(end)?))
        .collect()
}

/// The expected result of `take_last`: the highest `max` pages of the highest run.
fn last_of(model: &BTreeSet<u64>, max: u64) -> Option<PageRange> {
    let last = *runs(model).last()?;
    let count = last.count().get().min(max);
    PageRange::between(Gpfn::new(last.end().get() - count)?, last.end())
}

fn insert_into(model: &mut BTreeSet<u64>, range: PageRange) -> u64 {
    numbers(range).filter(|&page| model.insert(page)).count() as u64
}

fn remove_from(model: &mut BTreeSet<u64>, range: PageRange) -> u64 {
    numbers(range).filter(|page| model.remove(page)).count() as u64
}

fn apply(set: &mut PageRangeSet, model: &mut BTreeSet<u64>, op: Op) {
    match op {
        Op::Insert(range) => assert_eq!(set.insert(range).get(), insert_into(model, range)),
        Op::Remove(range) => assert_eq!(set.remove(range).get(), remove_from(model, range)),
        Op::TakeLast(max) => {
            let expected = last_of(model, max);
            assert_eq!(set.take_last(PageCount::new(max)), expected);
            expected.map(|range| remove_from(model, range));
        }
        Op::InsertSet(ranges) => {
            let added: u64 = ranges.iter().map(|&range| insert_into(model, range)).sum();
            assert_eq!(set.insert_set(&ranges.into_iter().collect()).get(), added);
        }
        Op::RemoveSet(ranges) => {
            let removed: u64 = ranges.iter().map(|&range| remove_from(model, range)).sum();
            assert_eq!(set.remove_set(&ranges.into_iter().collect()).get(), removed);
        }
        Op::Clear => {
            set.clear();
            model.clear();
        }
    }
}

fn assert_same(set: &PageRangeSet, model: &BTreeSet<u64>, probe: PageRange) {
    let runs = runs(model);
    assert_eq!(set.len().get(), model.len() as u64);
    assert_eq!(set.is_empty(), model.is_empty());
    assert_eq!(set.range_count(), runs.len());
    assert_eq!(set.iter().collect::<Vec<_>>(), runs);
    assert_eq!(set, &runs.into_iter().collect::<PageRangeSet>());
    assert_eq!(set.contains(probe.start()), model.contains(&probe.start().get()));
    assert_eq!(set.contains_range(probe), numbers(probe).all(|page| model.contains(&page)));

    let (inside, outside): (BTreeSet<u64>, BTreeSet<u64>) =
        numbers(probe).partition(|page| model.contains(page));
    assert_eq!(set.intersection(probe).collect::<Vec<_>>(), self::runs(&inside));
    assert_eq!(set.difference(probe).collect::<Vec<_>>(), self::runs(&outside));
}

proptest! {
    #[test]
    fn every_operation_agrees_with_a_set_of_numbers(
        ops in prop::collection::vec((op(), range()), 1..60),
    ) {
        let mut set = PageRangeSet::new();
        let mut model = BTreeSet::new();
        for (op, probe) in ops {
            apply(&mut set, &mut model, op);
            assert_same(&set, &model, probe);
        }
    }
}
