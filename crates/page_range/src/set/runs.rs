//! Iteration over the ranges of a set, or over the gaps between them.
#![expect(clippy::arithmetic_side_effects, reason = "pages up to 2^40; see the set's module head")]

use core::iter::FusedIterator;
use core::marker::PhantomData;

use super::bits::{Bit, WORD_MASK, highest_run, lowest_run};
use super::chunks::Chunks;
use super::state::State;
use crate::{Gpfn, PageRange};

/// The maximal ranges of pages in state `S` between two pages.
pub(super) struct Runs<'a, S> {
    chunks: &'a Chunks,
    /// The first page that has not been visited yet.
    front: u64,
    /// The page after the last one that has not been visited yet.
    back: u64,
    /// The pages in state `S` from `front` to the end of its word, where most ranges of a scattered
    /// set are found. Zero if the word has not been looked up.
    word: u64,
    /// The same from the start of the word before `back` up to `back`.
    back_word: u64,
    state: PhantomData<S>,
}

impl<'a, S: State> Runs<'a, S> {
    pub(super) const fn new(chunks: &'a Chunks, front: Gpfn, back: Gpfn) -> Self {
        let (front, back) = (front.get(), back.get());
        Self { chunks, front, back, word: 0, back_word: 0, state: PhantomData }
    }

    /// The next run, not cut at `back`: its first page and the page after it. Empty if there is
    /// none.
    #[inline]
    fn advance(&mut self) -> (u64, u64) {
        match self.advance_in_word() {
            Some(run) => run,
            None => self.advance_far(),
        }
    }

    /// The next run, if it ends in this word.
    #[inline]
    fn advance_in_word(&mut self) -> Option<(u64, u64)> {
        let run = lowest_run(self.word)?;
        let base = self.front & !WORD_MASK;
        let (start, end) = (base | u64::from(run.first.get()), base | u64::from(run.after.get()));
        self.word = run.rest;
        self.front = end;
        Some((start, end))
    }

    #[inline(never)]
    fn advance_far(&mut self) -> (u64, u64) {
        let Some((start, word)) = self.chunks.next::<S>(self.front) else {
            self.front = self.back;
            return (self.back, self.back);
        };
        self.front = start;
        self.word = word & Bit::of_page(start).and_above();
        if let Some(run) = self.advance_in_word() {
            return run;
        }
        let after = self.chunks.next::<S::Opposite>((start | WORD_MASK) + 1);
        let (end, others) = after.unwrap_or((Gpfn::MAX.get(), u64::MAX));
        self.front = end;
        self.word = !others & Bit::of_page(end).and_above();
        (start, end)
    }

    /// The last run, not cut at `front`: its first page and the page after it. Empty if there is
    /// none.
    #[inline]
    fn retreat(&mut self) -> (u64, u64) {
        // `back` is above `front` here, so it is not zero.
        let base = (self.back - 1) & !WORD_MASK;
        match self.retreat_in_word(base) {
            Some(run) => run,
            None => self.retreat_far(),
        }
    }

    /// The last run, if it begins in this word, whose first page is `base`.
    #[inline]
    fn retreat_in_word(&mut self, base: u64) -> Option<(u64, u64)> {
        let run = highest_run(self.back_word)?;
        let before = run.before?;
        self.back_word &= before.and_below();
        let start = base | u64::from(before.next().get());
        Some((start, start + u64::from(run.count)))
    }

    #[inline(never)]
    fn retreat_far(&mut self) -> (u64, u64) {
        let Some((last, word)) = self.chunks.prev::<S>(self.front, self.back) else {
            return (0, 0);
        };
        let base = last & !WORD_MASK;
        self.back_word = word & Bit::of_page(last).and_below();
        if let Some(run) = self.retreat_in_word(base) {
            return run;
        }
        let end = last + 1;
        let Some((before, others)) = self.chunks.prev::<S::Opposite>(self.front, base) else {
            return (0, end);
        };
        self.back_word = !others & Bit::of_page(before).and_below();
        (before + 1, end)
    }
}

impl<S: State> Iterator for Runs<'_, S> {
    type Item = PageRange;

    #[inline]
    fn next(&mut self) -> Option<PageRange> {
        if self.front >= self.back {
            return None;
        }
        let (start, end) = self.advance();
        range(start, end.min(self.back))
    }
}

impl<S: State> DoubleEndedIterator for Runs<'_, S> {
    #[inline]
    fn next_back(&mut self) -> Option<PageRange> {
        if self.front >= self.back {
            return None;
        }
        let (start, end) = self.retreat();
        self.back = start.max(self.front);
        range(self.back, end)
    }
}

impl<S: State> FusedIterator for Runs<'_, S> {}

fn range(start: u64, end: u64) -> Option<PageRange> {
    PageRange::between(Gpfn::new(start)?, Gpfn::new(end)?)
}
