//! The page set against a model: a set of numbers.

use std::collections::BTreeSet;

use arbitrary::{Arbitrary, Unstructured};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};

const MAX_STEPS: usize = 64;

/// The places where pages lie: around the ends of the set's leaves, nodes and chunks (512, 2^15 and
/// 2^21 pages), and at the end of the address space.
const PLACES: [u64; 4] = [0, 32_768 - 300, (1 << 21) - 300, (1 << 40) - 600];
/// Pages at each place.
const PLACE: u64 = 600;

#[derive(Arbitrary, Debug)]
struct Span {
    place: u8,
    start: u16,
    count: u16,
}

impl Span {
    fn range(&self) -> PageRange {
        let start = u64::from(self.start) % PLACE;
        let count = 1 + u64::from(self.count) % (PLACE - start);
        let place = PLACES[usize::from(self.place) % PLACES.len()];
        PageRange::new(Gpfn::new(place + start).unwrap(), PageCount::new(count)).unwrap()
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Insert(Span),
    Remove(Span),
    /// Every nth page.
    Comb(Span, u8, bool),
    /// Single pages in many leaves, or in many nodes.
    Scatter {
        place: u8,
        start: u16,
        count: u8,
        stride: u8,
        insert: bool,
    },
    TakeLast(u16),
    TakeLastRanges(u16, u8),
    TakeUnits(u8),
    InsertSet(Vec<Span>),
    RemoveSet(Vec<Span>),
    /// Changes nothing, and compares what the set says about the span.
    Look(Span),
    Clear,
}

/// Runs steps encoded in `data`.
pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut pair = Pair::default();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        pair.apply(step);
        pair.compare();
    }
}

fn numbers(range: PageRange) -> std::ops::Range<u64> {
    range.start().get()..range.end().get()
}

/// The maximal ranges of ascending page numbers.
fn runs(pages: impl IntoIterator<Item = u64>) -> Vec<PageRange> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for page in pages {
        match runs.last_mut() {
            Some((_, end)) if *end == page => *end += 1,
            _ => runs.push((page, page + 1)),
        }
    }
    let range = |(start, end)| PageRange::between(Gpfn::new(start)?, Gpfn::new(end)?);
    runs.into_iter().filter_map(range).collect()
}

#[derive(Default)]
struct Pair {
    set: PageRangeSet,
    model: BTreeSet<u64>,
}

impl Pair {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Insert(span) => self.insert(span.range()),
            Step::Remove(span) => self.remove(span.range()),
            Step::Comb(span, step, insert) => {
                let range = span.range();
                for page in numbers(range).step_by(1 + usize::from(step)) {
                    let page = PageRange::new(Gpfn::new(page).unwrap(), PageCount::new(1)).unwrap();
                    if insert { self.insert(page) } else { self.remove(page) }
                }
            }
            Step::Scatter { place, start, count, stride, insert } => {
                let base = PLACES[usize::from(place) % 3] + u64::from(start);
                let stride = [511, 512, 513, 1 << 15][usize::from(stride) % 4];
                for page in (0..u64::from(count)).map(|n| base + n * stride) {
                    let page = PageRange::new(Gpfn::new(page).unwrap(), PageCount::new(1)).unwrap();
                    if insert { self.insert(page) } else { self.remove(page) }
                }
            }
            Step::TakeLast(max) => {
                let expected = self.last(max.into());
                assert_eq!(self.set.take_last(PageCount::new(max.into())), expected);
            }
            Step::TakeLastRanges(max, most) => self.take_last_ranges(max.into(), most.into()),
            Step::TakeUnits(bits) => self.take_units(1 << (bits % 11)),
            Step::InsertSet(spans) => {
                let ranges: Vec<_> = spans.iter().map(Span::range).collect();
                let before = self.model.len();
                self.model.extend(ranges.iter().copied().flat_map(numbers));
                let added = self.set.append(ranges.into_iter().collect());
                assert_eq!(added.get(), (self.model.len() - before) as u64);
            }
            Step::RemoveSet(spans) => {
                let ranges: Vec<_> = spans.iter().map(Span::range).collect();
                let before = self.model.len();
                for page in ranges.iter().copied().flat_map(numbers) {
                    self.model.remove(&page);
                }
                let removed = self.set.remove_set(&ranges.into_iter().collect());
                assert_eq!(removed.get(), (before - self.model.len()) as u64);
            }
            Step::Look(span) => self.look(span.range()),
            Step::Clear => {
                self.set.clear();
                self.model.clear();
            }
        }
    }

    fn insert(&mut self, range: PageRange) {
        let added = numbers(range).filter(|page| self.model.insert(*page)).count();
        assert_eq!(self.set.insert(range).get(), added as u64);
    }

    fn remove(&mut self, range: PageRange) {
        let removed = numbers(range).filter(|page| self.model.remove(page)).count();
        assert_eq!(self.set.remove(range).get(), removed as u64);
    }

    /// Takes the highest `max` pages of the highest range out of the model.
    fn last(&mut self, max: u64) -> Option<PageRange> {
        let last = *runs(self.model.iter().copied()).last()?;
        let count = last.count().get().min(max);
        let taken = PageRange::between(Gpfn::new(last.end().get() - count)?, last.end())?;
        numbers(taken).for_each(|page| {
            self.model.remove(&page);
        });
        Some(taken)
    }

    fn take_last_ranges(&mut self, max: u64, most: usize) {
        let (mut left, mut expected) = (max, Vec::new());
        while left > 0 && expected.len() < most {
            let Some(range) = self.last(left) else { break };
            left -= range.count().get();
            expected.push(range);
        }
        let mut taken = Vec::new();
        let count = self.set.take_last_ranges(PageCount::new(max), most, |range| taken.push(range));
        assert_eq!((taken, count.get()), (expected, max - left));
    }

    fn take_units(&mut self, unit: u64) {
        let whole: BTreeSet<u64> = runs(self.model.iter().copied())
            .into_iter()
            .filter_map(|range| range.units_within(PageCount::new(unit)))
            .flat_map(numbers)
            .collect();
        let expected: PageRangeSet = runs(whole.iter().copied()).into_iter().collect();
        assert_eq!(self.set.units_within(PageCount::new(unit)), expected);
        assert_eq!(self.set.take_units(PageCount::new(unit)), expected);
        self.model.retain(|page| !whole.contains(page));
    }

    fn look(&self, range: PageRange) {
        let (inside, outside): (Vec<u64>, Vec<u64>) =
            numbers(range).partition(|page| self.model.contains(page));
        assert_eq!(self.set.contains_range(range), outside.is_empty());
        assert_eq!(self.set.is_disjoint(range), inside.is_empty());
        assert_eq!(self.set.contains(range.start()), inside.first() == Some(&range.start().get()));
        let forward = |parts: &mut dyn Iterator<Item = PageRange>| parts.collect::<Vec<_>>();
        assert_eq!(forward(&mut self.set.intersection(range)), runs(inside.iter().copied()));
        assert_eq!(forward(&mut self.set.difference(range)), runs(outside.iter().copied()));
        let mut backward = forward(&mut self.set.intersection(range).rev());
        backward.reverse();
        assert_eq!(backward, runs(inside));
    }

    fn compare(&self) {
        let runs = runs(self.model.iter().copied());
        assert_eq!(self.set.len().get(), self.model.len() as u64);
        assert_eq!(self.set.is_empty(), self.model.is_empty());
        assert!(self.set.iter().eq(runs.iter().copied()), "ranges differ");
        assert!(self.set.iter().rev().eq(runs.iter().rev().copied()), "ranges differ backwards");
        assert_eq!(self.set.range_count(), runs.len());
        assert!(!self.set.has_more_ranges_than(runs.len()));
        assert!(runs.is_empty() || self.set.has_more_ranges_than(runs.len() - 1));
        assert_eq!(PageRangeSet::try_from_ranges(runs), Ok(self.set.clone()));
    }
}
