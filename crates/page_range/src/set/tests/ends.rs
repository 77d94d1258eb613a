//! Ranges at the very ends of the address space, from page 0 and up to [`Gpfn::MAX`], against a
//! flag for each page near an end and one for all pages between.

use alloc::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{PageRangeSet, pages};
use crate::{Gpfn, PageCount, PageRange};

const END: u64 = Gpfn::MAX.get();

/// Pages near each end that have a flag of their own: more than a word, less than a leaf.
const NEAR: u64 = 70;

/// The pages between the ends, which are only ever inserted or removed together.
const FAR: u64 = END - 2 * NEAR;

/// The pieces of the address space: the pages of the low end, all between, those of the high end.
fn pieces() -> impl Iterator<Item = PageRange> {
    let cuts = (0..=NEAR).chain(END - NEAR..=END).filter_map(Gpfn::new);
    cuts.clone().zip(cuts.skip(1)).filter_map(|(start, end)| PageRange::between(start, end))
}

/// Numbers that a guest may send: starts and counts up to the maximum and beyond.
fn numbers() -> impl Strategy<Value = (u64, u64)> + Clone {
    let start = prop_oneof![4 => 0..=NEAR, 4 => END - NEAR..=END, 1 => END + 1..=u64::MAX];
    let count = prop_oneof![
        8 => 0..=NEAR,
        1 => FAR..=END,
        1 => END + 1..=u64::MAX,
        1 => Just(u64::MAX),
    ];
    (start, count)
}

/// A valid range that starts and ends near an end: never in the middle.
fn range((start, count): (u64, u64)) -> Option<PageRange> {
    let range = PageRange::new(Gpfn::new(start)?, PageCount::new(count)).ok()?;
    let end = range.end().get();
    (end <= NEAR || end >= END - NEAR).then_some(range)
}

#[derive(Clone, Debug)]
enum Op {
    Insert(PageRange),
    Remove(PageRange),
    TakeLast(u64),
    TakeMany(u64, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let range = numbers().prop_filter_map("no range", range);
    let max = prop_oneof![4 => 0..=NEAR, 1 => Just(END), 1 => Just(u64::MAX)];
    prop_oneof![
        4 => range.clone().prop_map(Op::Insert),
        3 => range.prop_map(Op::Remove),
        1 => max.clone().prop_map(Op::TakeLast),
        1 => (max, 0usize..4).prop_map(|(max, most)| Op::TakeMany(max, most)),
    ]
}

struct Model(Vec<(PageRange, bool)>);

impl Model {
    fn new() -> Self {
        Self(pieces().map(|piece| (piece, false)).collect())
    }

    fn mark(&mut self, range: PageRange, held: bool) -> PageCount {
        let mut changed = 0;
        for (piece, flag) in &mut self.0 {
            if *flag != held && piece.intersection(range).is_some() {
                *flag = held;
                changed += piece.count().get();
            }
        }
        pages(changed)
    }

    /// The runs of pages that are held, or are not.
    fn runs(&self, held: bool) -> Vec<PageRange> {
        let mut runs: Vec<PageRange> = Vec::new();
        for &(piece, _) in self.0.iter().filter(|(_, flag)| *flag == held) {
            match runs.last_mut() {
                Some(run) if run.end() == piece.start() => {
                    *run = PageRange::between(run.start(), piece.end()).unwrap();
                }
                _ => runs.push(piece),
            }
        }
        runs
    }

    /// The highest `max` pages of the highest run. Also `None` if that would cut the middle.
    fn last(&self, max: u64) -> Option<PageRange> {
        let run = *self.runs(true).last()?;
        let start = Gpfn::new(run.end().get().saturating_sub(max))?.max(run.start());
        self.0.iter().find(|(piece, _)| piece.start() == start)?;
        PageRange::between(start, run.end())
    }
}

fn apply(set: &mut PageRangeSet, model: &mut Model, op: &Op) {
    match *op {
        Op::Insert(range) => assert_eq!(set.insert(range), model.mark(range, true)),
        Op::Remove(range) => assert_eq!(set.remove(range), model.mark(range, false)),
        Op::TakeLast(max) => {
            let Some(last) = model.last(max) else {
                let nothing = max == 0 || set.is_empty();
                assert!(!nothing || set.take_last(pages(max)).is_none());
                return;
            };
            assert_eq!(set.take_last(pages(max)), Some(last));
            model.mark(last, false);
        }
        Op::TakeMany(max, most) => {
            let (mut left, mut expected) = (max, Vec::new());
            let before = Model(model.0.clone());
            while expected.len() < most && left > 0 && !model.runs(true).is_empty() {
                let Some(last) = model.last(left) else {
                    *model = before;
                    return;
                };
                left -= last.count().get();
                model.mark(last, false);
                expected.push(last);
            }
            let mut taken = Vec::new();
            let count = set.take_last_ranges(pages(max), most, |range| taken.push(range));
            assert_eq!((taken, count), (expected, pages(max - left)));
        }
    }
}

fn check(set: &PageRangeSet, model: &Model) {
    let whole = PageRange::between(Gpfn::default(), Gpfn::MAX).unwrap();
    let (held, missing) = (model.runs(true), model.runs(false));
    assert_eq!(set.iter().collect::<Vec<_>>(), held);
    assert!(set.iter().rev().eq(held.iter().rev().copied()));
    assert_eq!(set.difference(whole).collect::<Vec<_>>(), missing);
    assert!(set.difference(whole).rev().eq(missing.iter().rev().copied()));
    assert_eq!(set.len(), pages(held.iter().map(|range| range.count().get()).sum()));
    assert_eq!(set.contains_range(whole), missing.is_empty());
    assert_eq!(set.is_disjoint(whole), held.is_empty());
    for &(piece, flag) in &model.0 {
        assert_eq!(set.contains(piece.start()), flag);
        assert_eq!((set.contains_range(piece), set.is_disjoint(piece)), (flag, !flag));
    }
    assert!(!set.contains(Gpfn::MAX));
}

fn build(ops: &[Op]) -> (PageRangeSet, Model) {
    let (mut set, mut model) = (PageRangeSet::new(), Model::new());
    for op in ops {
        apply(&mut set, &mut model, op);
        check(&set, &model);
    }
    (set, model)
}

proptest! {
    // A range from one end to the other is half a million chunks.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn ranges_at_the_ends_are_those_of_flags(ops in vec(op(), 1..24)) {
        build(&ops);
    }

    #[test]
    fn units_of_any_size_are_found_at_the_ends(
        ops in vec(op(), 1..6),
        unit in prop_oneof![0..=NEAR, Just(512), Just(END), Just(END + 1), Just(u64::MAX)],
    ) {
        let (mut set, model) = build(&ops);
        let unit = pages(unit);
        let units: PageRangeSet =
            model.runs(true).iter().filter_map(|range| range.units_within(unit)).collect();
        prop_assert_eq!(&set.units_within(unit), &units);
        let rest = set.len().saturating_sub(units.len());
        prop_assert_eq!(&set.take_units(unit), &units);
        prop_assert_eq!(set.len(), rest);
        set.append(units);
        check(&set, &model);
    }

    #[test]
    fn sets_are_joined_and_subtracted_at_the_ends(
        ours in vec(op(), 1..6),
        theirs in vec(op(), 1..6),
    ) {
        let (mut set, mut model) = build(&ours);
        let (other, other_model) = build(&theirs);
        let mut rest = set.clone();
        let mut rest_model = Model(model.0.clone());
        for range in other_model.runs(true) {
            model.mark(range, true);
            rest_model.mark(range, false);
        }
        set.insert_set(&other);
        rest.remove_set(&other);
        check(&set, &model);
        check(&rest, &rest_model);
    }

    #[test]
    fn no_number_a_guest_may_send_makes_a_range_beyond_the_end((start, count) in numbers()) {
        if let Some(start) = Gpfn::new(start)
            && let Ok(range) = PageRange::new(start, PageCount::new(count))
        {
            prop_assert!(range.start() < range.end() && range.end() <= Gpfn::MAX);
            prop_assert_eq!(range.count(), pages(count));
        }
    }
}
