//! The lowest level of the tree: a bit for each page of 2 MiB.

use super::bits::{from_on, highest, up_to};
use super::part::Part;

const WORDS: usize = 8;
const WORD_SHIFT: u32 = 6;
const WORD_PAGES: u32 = u64::BITS;
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
    fn is_all<const IN: bool>(&self, around: u32) -> bool {
        members::<IN>(self.word(around)) == u64::MAX
            && self.words.iter().all(|&word| members::<IN>(word) == u64::MAX)
    }

    #[inline]
    fn any<const IN: bool>(&self, start: u32, end: u32) -> bool {
        pieces(start, end).any(|(page, mask)| members::<IN>(self.word(page)) & mask != 0)
    }

    fn put<const IN: bool>(&mut self, start: u32, end: u32) -> u32 {
        pieces(start, end).fold(0, |sum, (page, mask)| {
            self.put_quickly::<IN, false>(page, mask).unwrap_or_default().wrapping_add(sum)
        })
    }

    #[inline]
    fn put_quickly<const IN: bool, const LEAF: bool>(
        &mut self,
        page: u32,
        mask: u64,
    ) -> Option<u32> {
        let word = self.words.get_mut(word_of(page)).filter(|_| !LEAF)?;
        let changed = mask & !members::<IN>(*word);
        *word ^= changed;
        // Counting bits takes long without an instruction for it, and one page is what comes most.
        Some(if mask.is_power_of_two() { u32::from(changed != 0) } else { changed.count_ones() })
    }

    #[inline]
    fn next<const IN: bool>(&self, from: u32) -> Option<(u32, u64)> {
        let mut from = from;
        while from < Self::PAGES {
            let word = members::<IN>(self.word(from));
            let rest = word & from_on(from & WORD_MASK);
            if rest != 0 {
                return Some((page(from, rest.trailing_zeros()), word));
            }
            from = (from | WORD_MASK).wrapping_add(1);
        }
        None
    }

    #[inline]
    fn prev<const IN: bool>(&self, below: u32) -> Option<(u32, u64)> {
        let mut last = below.wrapping_sub(1);
        loop {
            let word = members::<IN>(self.word(last));
            if let Some(highest) = highest(word & up_to(last & WORD_MASK)) {
                return Some((page(last, highest), word));
            }
            last = (last & !WORD_MASK).checked_sub(1)?;
        }
    }

    #[inline]
    fn take_in_word(&mut self, max: u32) -> Option<(u32, u32)> {
        let mut words = self.words.iter_mut().rev();
        let mut base = Self::PAGES;
        let (word, last) = words.find_map(|word| {
            base = base.wrapping_sub(WORD_PAGES);
            highest(*word).map(|last| (word, last))
        })?;
        let start = match highest(!*word & up_to(last)) {
            Some(before) => before.wrapping_add(1),
            // It may go on in the word below.
            None if words.next().is_none_or(|word| *word >> WORD_MASK != 0) => return None,
            None => 0,
        };
        let run = last.wrapping_sub(start);
        if run >= max {
            return None;
        }
        *word &= !from_on(start);
        Some((base | start, run.wrapping_add(1)))
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
    fn word(&self, page: u32) -> u64 {
        self.words.get(word_of(page)).copied().unwrap_or_default()
    }
}

/// The pages of a word that are in the set, or those that are not.
#[inline]
const fn members<const IN: bool>(word: u64) -> u64 {
    if IN { word } else { !word }
}

/// The words with a page from `start` up to `end`: a page of each, and a bit for each of those.
#[inline]
fn pieces(start: u32, end: u32) -> impl Iterator<Item = (u32, u64)> {
    let mut next = start;
    core::iter::from_fn(move || {
        (next < end).then(|| {
            let first = next;
            next = (first | WORD_MASK).wrapping_add(1).min(end);
            let last = next.wrapping_sub(1) & WORD_MASK;
            (first, from_on(first & WORD_MASK) & up_to(last))
        })
    })
}

/// The word that has `page`.
#[inline]
const fn word_of(page: u32) -> usize {
    (page >> WORD_SHIFT) as usize
}

/// The page that bit `i` stands for in the word that has page `around`.
#[inline]
const fn page(around: u32, i: u32) -> u32 {
    (around & !WORD_MASK) | i
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next<const IN: bool>(leaf: &Leaf, from: u32) -> Option<u32> {
        leaf.next::<IN>(from).map(|(page, _)| page)
    }

    fn prev<const IN: bool>(leaf: &Leaf, below: u32) -> Option<u32> {
        leaf.prev::<IN>(below).map(|(page, _)| page)
    }

    #[test]
    fn a_put_over_several_words_counts_each_page_once() {
        let mut leaf = Leaf::EMPTY;
        assert_eq!(leaf.put::<true>(60, 200), 140);
        assert_eq!(leaf.put::<true>(63, 65), 0);
        assert_eq!(leaf.put::<false>(0, 64), 4);
        assert_eq!((next::<true>(&leaf, 0), next::<false>(&leaf, 64)), (Some(64), Some(200)));
        assert_eq!((prev::<true>(&leaf, 512), prev::<false>(&leaf, 200)), (Some(199), Some(63)));
        assert_eq!(leaf.len(), 136);
    }

    #[test]
    fn the_whole_leaf_can_be_put() {
        let mut leaf = Leaf::EMPTY;
        assert_eq!(leaf.put::<true>(0, 512), 512);
        assert!(leaf.is_all::<true>(0) && !leaf.any::<false>(0, 512));
        assert_eq!(leaf.put::<false>(511, 512), 1);
        assert_eq!(leaf.prev::<false>(512), Some((511, 1 << 63)));
    }
}
