//! The ranges of a set, or the gaps between them.

use core::iter::FusedIterator;

use super::bits::{WORD_MASK, from_on, highest, low, up_to};
use super::chunks::Chunks;
use crate::{Gpfn, PageRange};

/// The maximal ranges between two pages whose pages are in the set, or are not.
pub(super) struct Runs<'a, const IN: bool> {
    chunks: &'a Chunks,
    /// What is left to look at.
    front: u64,
    back: u64,
    /// The pages wanted from `front` to the end of its 64 aligned pages: most ranges of a scattered
    /// set are found here. Empty where that was not looked up.
    word: u64,
    /// The same from the start of the 64 aligned pages before `back` up to there.
    back_word: u64,
}

impl<'a, const IN: bool> Runs<'a, IN> {
    pub(super) const fn new(chunks: &'a Chunks, front: Gpfn, back: Gpfn) -> Self {
        Self { chunks, front: front.get(), back: back.get(), word: 0, back_word: 0 }
    }

    /// The next run, not cut at `back`; an empty one where there is none.
    #[inline]
    fn advance(&mut self) -> (u64, u64) {
        match self.advance_in_word() {
            Some(run) => run,
            None => self.advance_far(),
        }
    }

    /// The next run if it ends in this word.
    #[inline]
    fn advance_in_word(&mut self) -> Option<(u64, u64)> {
        // Adding the lowest bit carries through the run and leaves what is above it.
        let lowest = self.word & self.word.wrapping_neg();
        let carried = self.word.wrapping_add(lowest);
        if carried == 0 {
            return None;
        }
        let base = self.front & !WORD_MASK;
        let start = base | u64::from(lowest.trailing_zeros());
        let end = base | u64::from(carried.trailing_zeros());
        self.word &= carried;
        self.front = end;
        Some((start, end))
    }

    #[inline(never)]
    fn advance_far(&mut self) -> (u64, u64) {
        let Some((start, word)) = self.chunks.next::<IN>(self.front) else {
            self.front = self.back;
            return (self.back, self.back);
        };
        self.front = start;
        self.word = word & from_on(low(start));
        if let Some(run) = self.advance_in_word() {
            return run;
        }
        let from = (start | WORD_MASK).wrapping_add(1);
        let after = match IN {
            true => self.chunks.next::<false>(from),
            false => self.chunks.next::<true>(from),
        };
        let (end, others) = after.unwrap_or((Gpfn::MAX.get(), u64::MAX));
        self.front = end;
        self.word = !others & from_on(low(end));
        (start, end)
    }

    /// The last run, not cut at `front`; an empty one where there is none.
    #[inline]
    fn retreat(&mut self) -> (u64, u64) {
        let base = self.back.wrapping_sub(1) & !WORD_MASK;
        match self.retreat_in_word(base) {
            Some(run) => run,
            None => self.retreat_far(),
        }
    }

    /// The last run if it begins in this word, whose first page is `base`.
    #[inline]
    fn retreat_in_word(&mut self, base: u64) -> Option<(u64, u64)> {
        let last = highest(self.back_word)?;
        let before = highest(!self.back_word & up_to(last))?;
        self.back_word &= up_to(before);
        let after = |page| base.wrapping_add(u64::from(page)).wrapping_add(1);
        Some((after(before), after(last)))
    }

    #[inline(never)]
    fn retreat_far(&mut self) -> (u64, u64) {
        let Some((last, word)) = self.chunks.prev::<IN>(self.front, self.back) else {
            return (0, 0);
        };
        let base = last & !WORD_MASK;
        self.back_word = word & up_to(low(last));
        if let Some(run) = self.retreat_in_word(base) {
            return run;
        }
        let before = match IN {
            true => self.chunks.prev::<false>(self.front, base),
            false => self.chunks.prev::<true>(self.front, base),
        };
        let end = last.wrapping_add(1);
        let Some((before, others)) = before else {
            return (0, end);
        };
        self.back_word = !others & up_to(low(before));
        (before.wrapping_add(1), end)
    }
}

impl<const IN: bool> Iterator for Runs<'_, IN> {
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

impl<const IN: bool> DoubleEndedIterator for Runs<'_, IN> {
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

impl<const IN: bool> FusedIterator for Runs<'_, IN> {}

fn range(start: u64, end: u64) -> Option<PageRange> {
    PageRange::between(Gpfn::new(start)?, Gpfn::new(end)?)
}
