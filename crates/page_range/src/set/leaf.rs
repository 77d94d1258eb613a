//! The lowest level of the tree: a bit for each page of 2 MiB.

use super::bits::{below, between, from_on, highest};
use super::part::Part;

const WORDS: usize = 8;
const WORD_SHIFT: u32 = 6;
const WORD_MASK: u32 = 63;

/// 512 pages, as many as a huge page has: where a guest gives whole huge pages there are no leaves.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    words: [u64; WORDS],
}

impl Part for Leaf {
    const SHIFT: u32 = 9;
    const EMPTY: Self = Self { words: [0; WORDS] };
    const FULL: Self = Self { words: [u64::MAX; WORDS] };

    fn len(&self) -> u32 {
        self.words.iter().fold(0, |sum, word| sum.wrapping_add(word.count_ones()))
    }

    #[inline]
    fn is_all<const IN: bool>(&self) -> bool {
        self.words.iter().all(|&word| members::<IN>(word) == u64::MAX)
    }

    #[inline]
    fn any<const IN: bool>(&self, start: u32, end: u32) -> bool {
        pieces(start, end).any(|(i, mask)| members::<IN>(self.get(i)) & mask != 0)
    }

    #[inline]
    fn put<const IN: bool>(&mut self, start: u32, end: u32) -> u32 {
        pieces(start, end).fold(0, |changed, (i, mask)| {
            let Some(word) = self.words.get_mut(i as usize) else { return changed };
            let old = mask & !members::<IN>(*word);
            *word = if IN { *word | mask } else { *word & !mask };
            changed.wrapping_add(count(old, mask))
        })
    }

    #[inline]
    fn next<const IN: bool>(&self, from: u32) -> Option<u32> {
        let first = from >> WORD_SHIFT;
        let word = members::<IN>(self.get(first)) & from_on(from & WORD_MASK);
        if word != 0 {
            return Some(page(first, word.trailing_zeros()));
        }
        let mut rest = (0u32..).zip(self.words.iter().map(|&word| members::<IN>(word)));
        rest.find(|&(i, word)| i > first && word != 0)
            .map(|(i, word)| page(i, word.trailing_zeros()))
    }

    #[inline]
    fn prev<const IN: bool>(&self, below_page: u32) -> Option<u32> {
        let last = below_page.wrapping_sub(1);
        let word = members::<IN>(self.get(last >> WORD_SHIFT)) & up_to(last & WORD_MASK);
        if let Some(highest) = highest(word) {
            return Some(page(last >> WORD_SHIFT, highest));
        }
        (0..last >> WORD_SHIFT)
            .rev()
            .find_map(|i| Some(page(i, highest(members::<IN>(self.get(i)))?)))
    }

    #[inline]
    fn word(&self, page: u32) -> u64 {
        self.get(page >> WORD_SHIFT)
    }

    fn absorb(&mut self, other: Self) -> u32 {
        self.words.iter_mut().zip(other.words).fold(0, |added, (word, other)| {
            let new = other & !*word;
            *word |= other;
            added.wrapping_add(new.count_ones())
        })
    }

    fn subtract(&mut self, other: &Self) -> u32 {
        self.words.iter_mut().zip(other.words).fold(0, |removed, (word, other)| {
            let old = other & *word;
            *word &= !other;
            removed.wrapping_add(old.count_ones())
        })
    }

    fn whole_leaves(&self) -> Self {
        // A leaf that is stored is not whole.
        Self::EMPTY
    }
}

impl Leaf {
    #[inline]
    fn get(&self, word: u32) -> u64 {
        self.words.get(word as usize).copied().unwrap_or_default()
    }
}

/// The pages of a word that are in the set, or those that are not.
#[inline]
const fn members<const IN: bool>(word: u64) -> u64 {
    if IN { word } else { !word }
}

/// The words with a page from `start` up to `end`, and those of their bits that are meant.
#[inline]
fn pieces(start: u32, end: u32) -> impl Iterator<Item = (u32, u64)> {
    let mut next = start;
    core::iter::from_fn(move || {
        (next < end).then(|| {
            let first = next;
            let word_end = (first | WORD_MASK).wrapping_add(1);
            next = word_end;
            let to = WORD_MASK.wrapping_add(1).wrapping_sub(word_end.saturating_sub(end));
            (first >> WORD_SHIFT, between(first & WORD_MASK, to))
        })
    })
}

/// The number of bits in `some`, which are among those of `all`.
///
/// Without an instruction that counts bits the two common cases are worth looking for.
#[inline]
const fn count(some: u64, all: u64) -> u32 {
    if some == 0 {
        0
    } else if some == all && all.wrapping_sub(1) & all == 0 {
        1
    } else {
        some.count_ones()
    }
}

/// The bits up to `i`, which is below 64.
const fn up_to(i: u32) -> u64 {
    below(i.wrapping_add(1))
}

/// The page that bit `i` of a word stands for.
const fn page(word: u32, i: u32) -> u32 {
    (word << WORD_SHIFT) | i
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_over_several_words_counts_each_page_once() {
        let mut leaf = Leaf::EMPTY;
        assert_eq!(leaf.put::<true>(60, 200), 140);
        assert_eq!(leaf.put::<true>(63, 65), 0);
        assert_eq!(leaf.put::<false>(0, 64), 4);
        assert_eq!((leaf.next::<true>(0), leaf.next::<false>(64)), (Some(64), Some(200)));
        assert_eq!((leaf.prev::<true>(512), leaf.prev::<false>(200)), (Some(199), Some(63)));
        assert_eq!(leaf.len(), 136);
    }

    #[test]
    fn the_whole_leaf_can_be_put() {
        let mut leaf = Leaf::EMPTY;
        assert_eq!(leaf.put::<true>(0, 512), 512);
        assert!(leaf.is_all::<true>() && !leaf.any::<false>(0, 512));
        assert_eq!(leaf.put::<false>(511, 512), 1);
        assert_eq!(leaf.prev::<false>(512), Some(511));
    }
}
