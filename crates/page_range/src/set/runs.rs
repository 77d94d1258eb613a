//! The ranges of a set, or the gaps between them.

use core::iter::FusedIterator;

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
}

impl<'a, const IN: bool> Runs<'a, IN> {
    pub(super) const fn new(chunks: &'a Chunks, front: Gpfn, back: Gpfn) -> Self {
        Self { chunks, front: front.get(), back: back.get(), word: 0 }
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
    fn next_back(&mut self) -> Option<PageRange> {
        if self.front >= self.back {
            return None;
        }
        let last = self.chunks.prev::<IN>(self.front, self.back);
        let end = last.map_or(0, |last| last.wrapping_add(1)).max(self.front);
        let before = match IN {
            true => self.chunks.prev::<false>(self.front, end),
            false => self.chunks.prev::<true>(self.front, end),
        };
        let start = before.map_or(0, |before| before.wrapping_add(1)).max(self.front);
        self.back = start;
        range(start, end)
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
