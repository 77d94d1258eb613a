//! A bit for each page of the guest: the smallest possible scattered set, and the largest possible
//! empty one.

use crate::PageSet;

const BITS: u64 = 64;

pub(crate) struct Flat {
    words: Vec<u64>,
    /// No word from this index on has a bit set.
    end: usize,
}

impl PageSet for Flat {
    fn empty(pages: u64) -> Self {
        Self { words: vec![0; index(pages.div_ceil(BITS))], end: 0 }
    }

    fn insert(&mut self, start: u64, count: u64) -> u64 {
        let end = start + count;
        self.end = self.end.max(index(end.div_ceil(BITS)));
        let mut new = 0;
        for_words(&mut self.words, start, end, |word, mask| {
            new += u64::from((mask & !*word).count_ones());
            *word |= mask;
        });
        new
    }

    fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let top = self.words[..self.end].iter().rposition(|&word| word != 0);
        self.end = top.map_or(0, |top| top + 1);
        let top = top?;
        let end = (top as u64 + 1) * BITS - u64::from(self.words[top].leading_zeros());
        let least = end.saturating_sub(max);
        let below_end = u64::MAX >> (BITS - 1 - (end - 1) % BITS);
        let mut gaps = !self.words[top] & below_end;
        let mut at = top;
        while gaps == 0 && at > index(least / BITS) {
            at -= 1;
            gaps = !self.words[at];
        }
        let start = ((at as u64 + 1) * BITS - u64::from(gaps.leading_zeros())).max(least);
        for_words(&mut self.words, start, end, |word, mask| *word &= !mask);
        (start < end).then_some((start, end - start))
    }
}

/// Calls `change` with each word that has pages from `start` up to `end`, and a mask of their bits.
fn for_words(words: &mut [u64], start: u64, end: u64, mut change: impl FnMut(&mut u64, u64)) {
    let (low, high) = (u64::MAX << (start % BITS), u64::MAX >> (BITS - 1 - (end - 1) % BITS));
    match &mut words[index(start / BITS)..index(end.div_ceil(BITS))] {
        [] => {}
        [word] => change(word, low & high),
        [first, between @ .., last] => {
            change(first, low);
            between.iter_mut().for_each(|word| change(word, u64::MAX));
            change(last, high);
        }
    }
}

/// The index of a word; any word in memory has an index that fits.
fn index(word: u64) -> usize {
    usize::try_from(word).unwrap_or(usize::MAX)
}
