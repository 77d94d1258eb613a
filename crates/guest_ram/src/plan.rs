//! From a list of pages to system calls.
//!
//! A call costs as much as many pages, so adjacent ranges are merged, and the rest go into one
//! vector.
//!
//! A call must not become too large either. Linux 6.18 would need no limit: while one call discards
//! 1 GiB in 28 ms, a vCPU that touches new pages of the same memory waits no longer than beside
//! calls of 2 MiB (99 % within 17 us and 14 us; 15 us without any discard), and neither does a
//! thread of the host that touches or maps memory. Before 6.17, however, a call holds the address
//! space's lock for reading until it ends. A thread that maps memory waits for it, and all page
//! faults that need the lock queue up behind that thread.

use std::borrow::Cow;

use page_range::PageRange;

use crate::mapping::{MAX_SPANS, Span};

/// The most bytes that one call gives back, unless a single page is larger. For that much memory
/// the kernel takes 2.2 ms if it is anonymous and in 4 KiB pages, 0.2 ms in huge pages, and 6.5 ms
/// if it is a memfd. Calls of 1 GiB would be 2 % faster.
pub(crate) const MAX_BYTES: usize = 64 << 20;

/// The ranges in ascending order, with overlapping and adjacent ones merged. Ranges that arrive in
/// order, as guests send them, are not copied.
pub(crate) fn merged(ranges: &[PageRange]) -> impl Iterator<Item = PageRange> + '_ {
    let mut sorted = Cow::Borrowed(ranges);
    if !ranges.is_sorted() {
        sorted.to_mut().sort_unstable();
    }
    let mut next = 0;
    std::iter::from_fn(move || {
        let mut run = *sorted.get(next)?;
        next += 1;
        while let Some(range) = sorted.get(next).filter(|range| range.start() <= run.end()) {
            run = PageRange::between(run.start(), run.end().max(range.end()))?;
            next += 1;
        }
        Some(run)
    })
}

/// Collects spans and makes a call whenever there are enough for one.
pub(crate) struct Planner<T, F> {
    target: Option<T>,
    spans: Vec<Span>,
    bytes: usize,
    issue: F,
}

impl<T, E, F> Planner<T, F>
where
    T: Copy + PartialEq,
    F: FnMut(T, &[Span]) -> Result<(), E>,
{
    /// `issue` makes a call for at most [`MAX_SPANS`] spans of one target. `ranges` is the
    /// approximate number of spans to expect.
    pub(crate) fn new(ranges: usize, issue: F) -> Self {
        let spans = Vec::with_capacity(ranges.min(MAX_SPANS));
        Self { target: None, spans, bytes: 0, issue }
    }

    /// Adds a span of whole pages of `unit` bytes, in pieces if it is large. Pieces end at
    /// multiples of [`MAX_BYTES`], so that no huge page is split.
    ///
    /// # Errors
    /// The first call that failed; all others are made nevertheless.
    pub(crate) fn add(&mut self, target: T, span: Span, unit: usize) -> Result<(), E> {
        let mut result = Ok(());
        if self.target != Some(target) {
            result = self.flush();
            self.target = Some(target);
        }
        let most = unit.max(MAX_BYTES);
        let Span { mut offset, len: mut left } = span;
        while left > 0 {
            // Both are powers of two.
            let len = left.min(most - (offset & (most - 1)));
            if self.spans.len() == MAX_SPANS || self.bytes + len > most {
                result = result.and(self.flush());
            }
            self.spans.push(Span { offset, len });
            self.bytes += len;
            offset += len;
            left -= len;
        }
        result
    }

    /// Makes the call for the remaining spans.
    ///
    /// # Errors
    /// That of the call.
    pub(crate) fn flush(&mut self) -> Result<(), E> {
        let result = match self.target {
            Some(target) if !self.spans.is_empty() => (self.issue)(target, &self.spans),
            _ => Ok(()),
        };
        self.spans.clear();
        self.bytes = 0;
        result
    }
}

#[cfg(test)]
mod tests {
    use page_range::{Gpfn, PageCount, PageRangeSet};
    use proptest::prelude::*;

    use super::*;

    const HUGE: usize = 2 << 20;

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    }

    fn bytes(range: PageRange) -> Span {
        let number = |value: u64| usize::try_from(value).unwrap();
        let offset = number(range.start().gpa().get());
        Span { offset, len: number(range.count().bytes()) }
    }

    /// The calls for ranges of one mapping.
    fn calls(ranges: &[PageRange], unit: usize) -> Vec<Vec<Span>> {
        let mut calls = Vec::new();
        let mut planner = Planner::new(ranges.len(), |(), spans: &[Span]| {
            calls.push(spans.to_vec());
            Ok::<(), ()>(())
        });
        for run in merged(ranges) {
            planner.add((), bytes(run), unit).unwrap();
        }
        planner.flush().unwrap();
        calls
    }

    fn set(spans: impl IntoIterator<Item = Span>) -> PageRangeSet {
        let range = |span: Span| pages(span.offset as u64 >> 12, span.len as u64 >> 12);
        spans.into_iter().map(range).collect()
    }

    fn any_range() -> impl Strategy<Value = PageRange> {
        let huge = (0_u64..256, 1_u64..80).prop_map(|(start, count)| pages(start << 9, count << 9));
        let small = (0_u64..131_072, 1_u64..40).prop_map(|(start, count)| pages(start, count));
        prop_oneof![huge, small]
    }

    proptest! {
        #[test]
        fn ranges_are_merged_like_a_set(ranges in prop::collection::vec(any_range(), 0..40)) {
            let expected: PageRangeSet = ranges.iter().copied().collect();
            prop_assert_eq!(
                merged(&ranges).collect::<Vec<_>>(),
                expected.iter().collect::<Vec<_>>()
            );
        }

        #[test]
        fn calls_cover_the_same_pages_once_and_cut_no_huge_page(
            ranges in prop::collection::vec(any_range(), 0..40),
            unit in prop::sample::select(vec![4096, HUGE, 1 << 30]),
        ) {
            let unit_pages = PageCount::from_bytes(unit as u64);
            let ranges: Vec<_> = ranges.iter().map(|range| range.units_around(unit_pages)).collect();
            let wanted: PageRangeSet = ranges.iter().copied().collect();
            let calls = calls(&ranges, unit);
            for call in &calls {
                prop_assert!(!call.is_empty() && call.len() <= MAX_SPANS);
                prop_assert!(call.iter().map(|span| span.len).sum::<usize>() <= MAX_BYTES.max(unit));
                for span in call {
                    let ends = [span.offset, span.offset + span.len];
                    // A piece ends where its range does, or between two huge pages.
                    for end in ends.into_iter().filter(|end| end % HUGE.max(unit) != 0) {
                        prop_assert!(wanted.iter().map(bytes).any(|range| {
                            end == range.offset || end == range.offset + range.len
                        }), "cut at {:#x}", end);
                    }
                }
            }
            let spans = calls.concat();
            prop_assert_eq!(spans.iter().map(|span| span.len as u64).sum::<u64>(),
                wanted.len().bytes());
            prop_assert_eq!(set(spans), wanted);
        }
    }

    #[test]
    fn a_call_has_no_more_ranges_than_the_kernel_takes() {
        let ranges: Vec<_> = (0..1200).map(|index| pages(index * 2, 1)).collect();
        let sizes: Vec<_> = calls(&ranges, 4096).iter().map(Vec::len).collect();
        assert_eq!(sizes, [512, 512, 176]);
    }

    #[test]
    fn a_call_has_one_target_and_failures_do_not_stop_the_others() {
        let mut calls = Vec::new();
        let mut planner = Planner::new(4, |target: char, spans: &[Span]| {
            calls.push((target, spans.len()));
            if target == 'c' { Ok(()) } else { Err(target) }
        });
        let page = |number| bytes(pages(number, 1));
        assert_eq!(planner.add('a', page(0), 4096), Ok(()));
        assert_eq!(planner.add('a', page(2), 4096), Ok(()));
        assert_eq!(planner.add('b', page(4), 4096), Err('a'));
        assert_eq!(planner.add('c', page(6), 4096), Err('b'));
        assert_eq!(planner.flush(), Ok(()));
        assert_eq!(calls, [('a', 2), ('b', 1), ('c', 1)]);
    }
}
