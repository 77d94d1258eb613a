//! The lowest level of the tree: a bit for each page of 2 MiB.
#![expect(clippy::arithmetic_side_effects, reason = "pages of a leaf; see the set's module head")]

use super::bits::{Bit, highest, highest_run, lowest};
use super::part::{Part, Run, Span};
use super::state::State;

const WORDS: usize = 8;
const WORD_SHIFT: u32 = 6;
const WORD_PAGES: u32 = u64::BITS;
const WORD_MASK: u32 = WORD_PAGES - 1;

/// 512 pages, the size of a huge page: a guest that gives up whole huge pages needs no leaves.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    words: [u64; WORDS],
}

impl Part for Leaf {
    const SHIFT: u32 = 9;
    const EMPTY: Self = Self { words: [0; WORDS] };
    const FULL: Self = Self { words: [u64::MAX; WORDS] };

    fn len(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    #[inline]
    fn is_all<S: State>(&self, around: u32) -> bool {
        S::of_word(self.word(around)) == u64::MAX
            && self.words.iter().all(|&word| S::of_word(word) == u64::MAX)
    }

    #[inline]
    fn any<S: State>(&self, span: Span) -> bool {
        pieces(span).any(|(page, mask)| S::of_word(self.word(page)) & mask != 0)
    }

    fn mark<S: State>(&mut self, span: Span) -> u32 {
        pieces(span)
            .map(|(page, mask)| self.mark_in_word::<S>(page, mask).unwrap_or_default())
            .sum()
    }

    #[inline]
    fn mark_in_word<S: State>(&mut self, page: u32, mask: u64) -> Option<u32> {
        let word = self.words.get_mut(word_of(page))?;
        let changed = mask & S::Opposite::of_word(*word);
        *word ^= changed;
        // Counting bits is slow without an instruction for it, and most changes concern one page.
        Some(if mask.is_power_of_two() { u32::from(changed != 0) } else { changed.count_ones() })
    }

    #[inline]
    fn mark_leaf<S: State>(&mut self, _page: u32) -> Option<u32> {
        None
    }

    #[inline]
    fn next<S: State>(&self, from: u32) -> Option<(u32, u64)> {
        let mut from = from;
        while from < Self::PAGES {
            let word = S::of_word(self.word(from));
            if let Some(found) = lowest(word & Bit::of(from).and_above()) {
                return Some((page(from, found), word));
            }
            from = (from | WORD_MASK) + 1;
        }
        None
    }

    #[inline]
    fn prev<S: State>(&self, from: u32) -> Option<(u32, u64)> {
        let mut from = from;
        loop {
            let word = S::of_word(self.word(from));
            if let Some(found) = highest(word & Bit::of(from).and_below()) {
                return Some((page(from, found), word));
            }
            from = (from & !WORD_MASK).checked_sub(1)?;
        }
    }

    #[inline]
    fn take_in_word(&mut self, max: u32) -> Option<Run> {
        let mut words = self.words.iter_mut().rev();
        let mut base = Self::PAGES;
        let (word, run) = words.find_map(|word| {
            base -= WORD_PAGES;
            highest_run(*word).map(|run| (word, run))
        })?;
        let first = match run.before {
            Some(before) => before.next(),
            // The run may continue in the word below.
            None if words.next().is_none_or(|word| *word >> WORD_MASK != 0) => return None,
            None => Bit::of(0),
        };
        if run.count > max {
            return None;
        }
        *word &= first.below();
        Some(Run { first: base | first.get(), count: run.count })
    }

    fn absorb(&mut self, other: Self) -> u32 {
        let words = self.words.iter_mut().zip(other.words);
        words
            .map(|(word, other)| {
                let new = other & !*word;
                *word |= other;
                new.count_ones()
            })
            .sum()
    }

    fn subtract(&mut self, other: &Self) -> u32 {
        let words = self.words.iter_mut().zip(other.words);
        words
            .map(|(word, other)| {
                let old = other & *word;
                *word &= !other;
                old.count_ones()
            })
            .sum()
    }

    fn whole_leaves(&self) -> Self {
        // A leaf with all pages in the set is not stored.
        Self::EMPTY
    }
}

impl Leaf {
    #[inline]
    fn word(&self, page: u32) -> u64 {
        self.words.get(word_of(page)).copied().unwrap_or_default()
    }
}

/// The words that `span` touches: for each a page of it, and a mask of its pages in the span.
#[inline]
fn pieces(span: Span) -> impl Iterator<Item = (u32, u64)> {
    let mut next = span.first;
    core::iter::from_fn(move || {
        (next <= span.last).then(|| {
            let first = next;
            let last = (first | WORD_MASK).min(span.last);
            next = last + 1;
            (first, Bit::of(first).and_above() & Bit::of(last).and_below())
        })
    })
}

/// The word that has `page`.
#[inline]
const fn word_of(page: u32) -> usize {
    (page >> WORD_SHIFT) as usize
}

/// The page at `bit` of the word that has page `around`.
#[inline]
const fn page(around: u32, bit: Bit) -> u32 {
    (around & !WORD_MASK) | bit.get()
}

#[cfg(test)]
mod tests {
    use super::super::state::{Held, Missing};
    use super::*;

    const fn span(first: u32, last: u32) -> Span {
        Span { first, last }
    }

    fn next<S: State>(leaf: &Leaf, from: u32) -> Option<u32> {
        leaf.next::<S>(from).map(|(page, _)| page)
    }

    fn prev<S: State>(leaf: &Leaf, from: u32) -> Option<u32> {
        leaf.prev::<S>(from).map(|(page, _)| page)
    }

    #[test]
    fn a_span_over_several_words_counts_each_page_once() {
        let mut leaf = Leaf::EMPTY;
        assert_eq!(leaf.mark::<Held>(span(60, 199)), 140);
        assert_eq!(leaf.mark::<Held>(span(63, 64)), 0);
        assert_eq!(leaf.mark::<Missing>(span(0, 63)), 4);
        assert_eq!((next::<Held>(&leaf, 0), next::<Missing>(&leaf, 64)), (Some(64), Some(200)));
        assert_eq!((prev::<Held>(&leaf, 511), prev::<Missing>(&leaf, 199)), (Some(199), Some(63)));
        assert_eq!(leaf.len(), 136);
    }

    #[test]
    fn the_whole_leaf_can_be_marked() {
        let mut leaf = Leaf::EMPTY;
        assert_eq!(leaf.mark::<Held>(Leaf::WHOLE), 512);
        assert!(leaf.is_all::<Held>(0) && !leaf.any::<Missing>(Leaf::WHOLE));
        assert_eq!(leaf.mark::<Missing>(span(511, 511)), 1);
        assert_eq!(leaf.prev::<Missing>(511), Some((511, 1 << 63)));
    }
}
