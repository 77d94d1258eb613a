//! The ranges of a set, or the gaps between them.

use core::iter::FusedIterator;

use super::bits::{highest, up_to};
use super::chunks::Chunks;
use crate::{Gpfn, PageRange};

const WORD_MASK: u64 = 63;

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

    /// The next run, cut at `back`.
    #[inline]
    fn advance(&mut self) -> Option<(u64, u64)> {
        if self.word != 0 {
            let base = self.front & !WORD_MASK;
            let start = base | u64::from(self.word.trailing_zeros());
            // Adding the lowest bit carries through the run and leaves what is above it.
            let lowest = self.word & self.word.wrapping_neg();
            let carried = self.word.wrapping_add(lowest);
            if carried != 0 {
                let end = base | u64::from(carried.trailing_zeros());
                self.word &= carried;
                self.front = end;
                return Some((start, end));
            }
        }
        let start = self.chunks.next::<IN>(self.front)?;
        let end = match IN {
            true => self.chunks.next::<false>(start),
            false => self.chunks.next::<true>(start),
        };
        let end = end.unwrap_or(Gpfn::MAX.get());
        self.front = end;
        if end < self.back {
            let word = self.chunks.word(end);
            let wanted = if IN { word } else { !word };
            self.word = wanted & u64::MAX.wrapping_shl(low(end));
        }
        Some((start, end))
    }

    /// The last run, not cut at `front`; an empty one where there is none.
    #[inline]
    fn retreat(&mut self) -> (u64, u64) {
        if let Some(last) = highest(self.back_word)
            && let Some(before) = highest(!self.back_word & up_to(last))
        {
            let base = self.back.wrapping_sub(1) & !WORD_MASK;
            self.back_word &= up_to(before);
            return (
                base | u64::from(before.wrapping_add(1)),
                base.wrapping_add(u64::from(last)).wrapping_add(1),
            );
        }
        self.retreat_far()
    }

    /// The same, looked up in the tree.
    #[inline(never)]
    fn retreat_far(&mut self) -> (u64, u64) {
        let after = |page: Option<u64>| page.map_or(0, |page| page.wrapping_add(1));
        let end = after(self.chunks.prev::<IN>(self.front, self.back)).max(self.front);
        let start = after(match IN {
            true => self.chunks.prev::<false>(self.front, end),
            false => self.chunks.prev::<true>(self.front, end),
        });
        self.back_word = 0;
        if let Some(last) = start.checked_sub(1) {
            let word = self.chunks.word(last);
            let wanted = if IN { word } else { !word };
            self.back_word = wanted & up_to(low(last));
        }
        (start, end)
    }
}

impl<const IN: bool> Iterator for Runs<'_, IN> {
    type Item = PageRange;

    #[inline]
    fn next(&mut self) -> Option<PageRange> {
        if self.front >= self.back {
            return None;
        }
        let run = self.advance();
        let (start, end) = run.unwrap_or((self.back, self.back));
        self.front = self.front.max(end);
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

/// The number of a page among 64 aligned ones.
const fn low(page: u64) -> u32 {
    (page & WORD_MASK) as u32
}
