//! The set against a flag for each piece of an address space, cut at the pages where something
//! could go wrong: a small model that still has whole chunks and the highest page.

use alloc::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{PageRangeSet, pages, range};
use crate::{Gpfn, PageRange};

const LEAF: u64 = 512;
const BLOCK: u64 = 64 * LEAF;
const CHUNK: u64 = 64 * BLOCK;
const END: u64 = Gpfn::MAX.get();

/// The pages where operations start and end, and the pieces between them.
fn cuts() -> Vec<u64> {
    let near = |page: u64| (page.saturating_sub(2)..=page + 2).filter(|&cut| cut <= END);
    let mut cuts: Vec<u64> = [0, 64, LEAF, 2 * LEAF, 3 * LEAF + 64, BLOCK, 2 * BLOCK, CHUNK]
        .into_iter()
        .chain([CHUNK + BLOCK, 2 * CHUNK, 2 * CHUNK + LEAF, 7 * CHUNK])
        .chain([END - 2 * CHUNK, END - CHUNK, END - BLOCK, END - LEAF, END - 64, END])
        .flat_map(near)
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

struct Model {
    cuts: Vec<u64>,
    /// Whether the piece from each cut to the next is in the set.
    held: Vec<bool>,
}

impl Model {
    fn new() -> Self {
        let cuts = cuts();
        let held = cuts.iter().skip(1).map(|_| false).collect();
        Self { cuts, held }
    }

    fn piece(&self, i: usize) -> PageRange {
        range(self.cuts[i], self.cuts[i + 1] - self.cuts[i])
    }

    fn put(&mut self, range: PageRange, put: bool) -> u64 {
        let mut changed = 0;
        for i in 0..self.held.len() {
            if self.piece(i).intersection(range).is_some() && self.held[i] != put {
                self.held[i] = put;
                changed += self.piece(i).count().get();
            }
        }
        changed
    }

    /// The runs of pieces in `range` that are held, or are not.
    fn runs(&self, range: PageRange, held: bool) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for i in (0..self.held.len()).filter(|&i| self.held[i] == held) {
            let Some(part) = self.piece(i).intersection(range) else { continue };
            match runs.last_mut() {
                Some(run) if run.end() == part.start() => {
                    *run = PageRange::between(run.start(), part.end()).unwrap();
                }
                _ => runs.push(part),
            }
        }
        runs
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(usize, usize),
    Remove(usize, usize),
    Look(usize, usize),
    TakeLast(usize),
}

fn op() -> impl Strategy<Value = Op> {
    // A range from the low cuts to the high ones would be half a million chunks.
    let high = cuts().iter().filter(|&&cut| cut < END / 2).count();
    let pair = prop_oneof![3 => Just(0..high), 1 => Just(high..cuts().len())]
        .prop_flat_map(|cuts| (cuts.clone(), cuts));
    prop_oneof![
        4 => pair.clone().prop_map(|(a, b)| Op::Insert(a, b)),
        3 => pair.clone().prop_map(|(a, b)| Op::Remove(a, b)),
        3 => pair.prop_map(|(a, b)| Op::Look(a, b)),
        1 => (0..cuts().len()).prop_map(Op::TakeLast),
    ]
}

/// Ranges from one cut to another; mostly small, as most cuts are close to the next.
fn between(cuts: &[u64], a: usize, b: usize) -> Option<PageRange> {
    let (a, b) = (a.min(b), a.max(b));
    (a != b).then(|| range(cuts[a], cuts[b] - cuts[a]))
}

fn look(set: &PageRangeSet, model: &Model, range: PageRange) {
    let (held, missing) = (model.runs(range, true), model.runs(range, false));
    assert_eq!(set.is_disjoint(range), held.is_empty());
    assert_eq!(set.contains_range(range), missing.is_empty());
    assert_eq!(
        set.contains(range.start()),
        held.first().is_some_and(|r| r.contains(range.start()))
    );
    assert_eq!(set.intersection(range).collect::<Vec<_>>(), held);
    assert_eq!(set.difference(range).collect::<Vec<_>>(), missing);
    let back: Vec<PageRange> = set.intersection(range).rev().collect();
    assert_eq!(back.into_iter().rev().collect::<Vec<_>>(), held);
    let back: Vec<PageRange> = set.difference(range).rev().collect();
    assert_eq!(back.into_iter().rev().collect::<Vec<_>>(), missing);
}

fn apply(set: &mut PageRangeSet, model: &mut Model, op: &Op) {
    match *op {
        Op::Insert(a, b) => {
            let Some(range) = between(&model.cuts, a, b) else { return };
            assert_eq!(set.insert(range), pages(model.put(range, true)));
        }
        Op::Remove(a, b) => {
            let Some(range) = between(&model.cuts, a, b) else { return };
            assert_eq!(set.remove(range), pages(model.put(range, false)));
        }
        Op::Look(a, b) => {
            let Some(range) = between(&model.cuts, a, b) else { return };
            look(set, model, range);
        }
        Op::TakeLast(cut) => {
            let last = model.runs(range(0, END), true).last().copied();
            // The model knows no places other than the cuts.
            let max = last.map_or(1, |last| last.end().get().saturating_sub(model.cuts[cut]));
            let expected = last.filter(|_| max > 0).map(|last| {
                let start = last.start().max(Gpfn::new(last.end().get() - max).unwrap());
                PageRange::between(start, last.end()).unwrap()
            });
            assert_eq!(set.take_last(pages(max)), expected);
            if let Some(taken) = expected {
                model.put(taken, false);
            }
        }
    }
}

fn check(set: &PageRangeSet, model: &Model) {
    let ranges = model.runs(range(0, END), true);
    assert_eq!(set.iter().collect::<Vec<_>>(), ranges);
    assert_eq!(set.len(), pages(ranges.iter().map(|range| range.count().get()).sum()));
    assert_eq!(set.range_count(), ranges.len());
    assert!(!set.has_more_ranges_than(ranges.len()));
    assert!(ranges.is_empty() || set.has_more_ranges_than(ranges.len() - 1));
    // Equality does not depend on a set's history.
    assert_eq!(*set, ranges.iter().copied().collect());
    assert_eq!(PageRangeSet::try_from_ranges(ranges).as_ref(), Ok(set));
}

fn build(ops: &[Op]) -> (PageRangeSet, Model) {
    let (mut set, mut model) = (PageRangeSet::new(), Model::new());
    for op in ops {
        apply(&mut set, &mut model, op);
    }
    (set, model)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_operation_does_what_it_does_to_flags(ops in vec(op(), 1..40)) {
        let (mut set, mut model) = (PageRangeSet::new(), Model::new());
        for op in &ops {
            apply(&mut set, &mut model, op);
            check(&set, &model);
        }
    }

    #[test]
    fn many_ranges_are_taken_as_one_after_another(
        ops in vec(op(), 1..20),
        max in prop_oneof![0u64..2000, 0..4 * CHUNK],
        most in 0usize..8,
    ) {
        let (mut set, _) = build(&ops);
        let mut single = set.clone();
        let (mut left, mut expected) = (max, Vec::new());
        while expected.len() < most && let Some(range) = single.take_last(pages(left)) {
            left -= range.count().get();
            expected.push(range);
        }
        let mut taken = Vec::new();
        let count = set.take_last_ranges(pages(max), most, |range| taken.push(range));
        prop_assert_eq!(taken, expected);
        prop_assert_eq!(count, pages(max - left));
        prop_assert_eq!(set, single);
    }

    #[test]
    fn sets_are_joined_and_subtracted_page_by_page(
        ours in vec(op(), 1..20),
        theirs in vec(op(), 1..20),
    ) {
        let (set, mut model) = build(&ours);
        let (other, other_model) = build(&theirs);
        let (mut joined, mut rest) = (set.clone(), set);
        let (mut added, mut removed) = (0, 0);
        let mut rest_model = Model { cuts: model.cuts.clone(), held: model.held.clone() };
        for range in other_model.runs(range(0, END), true) {
            added += model.put(range, true);
            removed += rest_model.put(range, false);
        }
        prop_assert_eq!(joined.insert_set(&other), pages(added));
        prop_assert_eq!(rest.remove_set(&other), pages(removed));
        check(&joined, &model);
        check(&rest, &rest_model);
        let missing = joined.len().saturating_sub(rest.len());
        prop_assert_eq!(rest.append(other), missing);
        check(&rest, &model);
    }

    #[test]
    fn units_are_those_within_the_ranges(ops in vec(op(), 1..20), unit in 0u64..1200) {
        let (mut set, _) = build(&ops);
        for unit in [unit, 512, 1024, 262_144].map(pages) {
            let units: PageRangeSet =
                set.iter().filter_map(|range| range.units_within(unit)).collect();
            prop_assert_eq!(set.units_within(unit), units);
        }
        let unit = pages(unit);
        let before = set.clone();
        let mut taken = set.take_units(unit);
        prop_assert!(set.iter().all(|range| range.units_within(unit).is_none()));
        taken.append(set);
        prop_assert_eq!(taken, before);
    }
}
