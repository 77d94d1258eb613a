//! Keeps ballooned pages out of memory with transparent huge pages.
//!
//! A huge page of which the guest gave only a part is *cut*: the rest of it is in small pages. Linux
//! would make it whole again, and take memory for the part that the guest gave: khugepaged puts a
//! huge page in the place of small ones even where only one of 512 is there (`max_ptes_none`, by
//! default 511; `always` and `madvise` alike). 64 MiB of which seven pages in eight were discarded
//! are back after a few seconds. So the advice for cut huge pages is MADV_NOHUGEPAGE, given before
//! the discard: a huge page that is being put together meanwhile is then given up.
//!
//! The advice changes nothing where a huge page is there, and huge pages that are discarded whole
//! keep the old one. Since the guest's return of a page is no event for its memory (the page comes
//! back on first touch), [`SmallPages::settle`] is told from time to time what is still out: huge
//! pages that are no longer cut get MADV_HUGEPAGE again. In the meantime too much memory has small
//! pages, never too little.
//!
//! # Limits
//!
//! Each change of advice begins a new mapping in the kernel's eyes, and a process can have 65,530 of
//! these (`vm.max_map_count`). Neighbours are one mapping. Where there would still be more than
//! [`MOST_RUNS`] runs of cut huge pages, the smallest gaps between them get small pages as well. A
//! guest of 32 GiB cannot have that many.
//!
//! A huge page that was discarded whole and is returned in part comes back whole if the guest
//! touches it before [`SmallPages::settle`]. Only one page in a return can be such a page: the one
//! in which the return ends.
//!
//! The same holds for a memfd, whose huge pages depend on `shmem_enabled`, except that a mapping of
//! it in another process has its own advice.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use page_range::{Gpfn, PAGE_SIZE, PageCount, PageRange, PageRangeSet};

use crate::mapping::{HUGE_PAGE, Mapping, Span};

/// Pages in a huge page.
const HUGE: PageCount = PageCount::from_bytes(HUGE_PAGE as u64);

/// The most runs of cut huge pages in all memory of the process, each of which makes two mappings: a
/// quarter of what a process can have.
const MOST_RUNS: usize = 8192;

/// How many runs there are, and may be.
#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    most: usize,
}

/// The limit of this process.
pub(crate) static OF_PROCESS: Budget = Budget::new(MOST_RUNS);

impl Budget {
    const fn new(most: usize) -> Self {
        Self { used: AtomicUsize::new(0), most }
    }

    /// What is left for runs that replace `own` others; one mapping may always have one.
    fn left_beside(&self, own: usize) -> usize {
        let others = self.used.load(Ordering::Relaxed).saturating_sub(own);
        self.most.saturating_sub(others).max(1)
    }

    fn replace(&self, before: usize, after: usize) {
        self.used.fetch_add(after, Ordering::Relaxed);
        self.used.fetch_sub(before, Ordering::Relaxed);
    }
}

/// The cut huge pages of one mapping.
///
/// Pages are counted from the host's huge page in which the mapping begins, so that huge pages
/// begin at multiples of [`HUGE`].
#[derive(Debug)]
pub(crate) struct SmallPages {
    /// All pages of the mapping.
    all: PageRange,
    state: Mutex<State>,
    budget: &'static Budget,
}

/// Where small pages are wanted.
#[derive(Debug, Default)]
struct State {
    /// Whole huge pages, but for the ends of the mapping.
    small: PageRangeSet,
    /// The number of ranges in it; counting takes time.
    runs: usize,
}

impl SmallPages {
    /// For a mapping that huge pages are wanted for. `None` if the pages cannot be counted.
    pub(crate) fn new(mapping: &Mapping, budget: &'static Budget) -> Option<Self> {
        let lead = Gpfn::new(mapping.lead(HUGE_PAGE) as u64 / PAGE_SIZE)?;
        let all = PageRange::new(lead, PageCount::from_bytes(mapping.len() as u64)).ok()?;
        Some(Self { all, state: Mutex::default(), budget })
    }

    /// Spans are about to be discarded, in ascending order.
    pub(crate) fn before_discard(&self, mapping: &Mapping, spans: &[Span]) {
        let pages = spans.iter().filter_map(|span| self.pages(*span));
        let mut cut = self.cut(pages).peekable();
        if cut.peek().is_none() {
            return;
        }
        let mut state = self.lock();
        for run in cut {
            if !state.small.contains_range(run) && self.advise(mapping, run, false) {
                let before = state.runs;
                state.insert(run);
                self.budget.replace(before, state.runs);
            }
        }
        let allowed = self.budget.left_beside(state.runs);
        if state.runs > allowed {
            // Half of them, so that it does not happen again soon.
            for gap in smallest_gaps(&state.small, state.runs - allowed / 2) {
                if self.advise(mapping, gap, false) {
                    let before = state.runs;
                    state.insert(gap);
                    self.budget.replace(before, state.runs);
                }
            }
        }
    }

    /// Only `out`, ascending parts of the mapping that do not touch, are still with the host.
    pub(crate) fn settle(&self, mapping: &Mapping, out: impl Iterator<Item = Span>) {
        let mut state = self.lock();
        let mut wanted = State::default();
        for run in self.cut(out.filter_map(|span| self.pages(span))) {
            wanted.insert(run);
        }
        let allowed = self.budget.left_beside(state.runs);
        if wanted.runs > allowed {
            for gap in smallest_gaps(&wanted.small, wanted.runs - allowed / 2) {
                wanted.insert(gap);
            }
        }
        // Those that become huge first, since that gives mappings back.
        let mut small = wanted.small.clone();
        for run in state.small.iter().flat_map(|run| wanted.small.difference(run)) {
            if !self.advise(mapping, run, true) {
                small.insert(run);
            }
        }
        for run in wanted.small.iter().flat_map(|run| state.small.difference(run)) {
            if !self.advise(mapping, run, false) {
                small.remove(run);
            }
        }
        let before = state.runs;
        *state = State { runs: small.range_count(), small };
        self.budget.replace(before, state.runs);
    }

    /// The huge pages of which ascending ranges hold only a part, in runs.
    fn cut(&self, ranges: impl Iterator<Item = PageRange>) -> impl Iterator<Item = PageRange> {
        let mut pages = ranges.flat_map(|range| self.cut_by(range)).peekable();
        std::iter::from_fn(move || {
            let mut run = pages.next()?;
            while let Some(next) = pages.next_if(|next| next.start() <= run.end()) {
                run = PageRange::between(run.start().min(next.start()), run.end().max(next.end()))?;
            }
            Some(run)
        })
    }

    /// The huge pages that a range begins and ends in, unless it holds all that the mapping has of
    /// them.
    fn cut_by(&self, range: PageRange) -> impl Iterator<Item = PageRange> + use<> {
        let (start, end) = (range.start(), range.end());
        let begins = start != self.all.start() && start.align_down(HUGE) != start;
        let ends = end != self.all.end() && end.align_down(HUGE) != end;
        let around = |page: Gpfn| PageRange::new(page.align_down(HUGE), HUGE).ok();
        let first = begins.then(|| around(start)).flatten();
        let last = ends.then(|| around(end)).flatten().filter(|last| Some(*last) != first);
        first.into_iter().chain(last)
    }

    /// Whether the kernel took the advice. It refuses if the process has too many mappings, and is
    /// then asked again the next time.
    fn advise(&self, mapping: &Mapping, run: PageRange, huge: bool) -> bool {
        // There is nothing to do for huge pages that the mapping does not reach.
        self.span(run).is_none_or(|span| mapping.advise_huge_pages(span, huge).is_ok())
    }

    fn pages(&self, span: Span) -> Option<PageRange> {
        let start = self.all.start().checked_add(PageCount::from_bytes(span.offset as u64))?;
        PageRange::new(start, PageCount::from_bytes(span.len as u64)).ok()
    }

    fn span(&self, run: PageRange) -> Option<Span> {
        let run = run.intersection(self.all)?;
        let offset = run.start().distance_from(self.all.start()).bytes();
        let len = usize::try_from(run.count().bytes()).ok()?;
        Some(Span { offset: usize::try_from(offset).ok()?, len })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        self.budget.replace(self.lock().runs, 0);
    }
}

impl State {
    fn insert(&mut self, run: PageRange) {
        // The ranges that become one with the new one, neighbours included.
        let one = PageCount::new(1);
        let start = Gpfn::new(run.start().get().saturating_sub(1)).unwrap_or_default();
        let end = run.end().checked_add(one).unwrap_or(Gpfn::MAX);
        let joined = PageRange::between(start, end)
            .map_or(0, |around| self.small.intersection(around).count());
        self.small.insert(run);
        self.runs = self.runs.saturating_sub(joined) + 1;
    }
}

/// The `count` smallest gaps between the ranges of a set.
fn smallest_gaps(set: &PageRangeSet, count: usize) -> Vec<PageRange> {
    let starts = set.iter().skip(1).map(PageRange::start);
    let ends = set.iter().map(PageRange::end);
    let mut gaps: Vec<_> =
        ends.zip(starts).filter_map(|(end, start)| PageRange::between(end, start)).collect();
    gaps.sort_unstable_by_key(|gap| gap.count());
    gaps.truncate(count);
    gaps
}

#[cfg(test)]
mod tests;
