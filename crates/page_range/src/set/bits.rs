//! Masks over a word of 64 bits: one bit for each child of a node, or for each page.
//!
//! A [`Bit`] is a position from 0 to 63 by construction, so no shift can exceed the word.
#![expect(clippy::arithmetic_side_effects, reason = "a Bit is below 64; see the set's module head")]

/// The bits of a page's number that give its position in its word.
pub(super) const WORD_MASK: u64 = MASK as u64;

const MASK: u32 = u64::BITS - 1;

/// A position in a word, from 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bit(u32);

impl Bit {
    /// The position of number `i` in its aligned word of 64.
    #[inline]
    pub(super) const fn of(i: u32) -> Self {
        Self(i & MASK)
    }

    /// The position of `page` in its aligned word of 64.
    #[inline]
    pub(super) const fn of_page(page: u64) -> Self {
        Self((page & WORD_MASK) as u32)
    }

    /// The position as a number, from 0 to 63.
    #[inline]
    pub(super) const fn get(self) -> u32 {
        // Masked again: the compiler then knows the bound wherever the position comes from.
        self.0 & MASK
    }

    /// This bit alone.
    #[inline]
    pub(super) const fn alone(self) -> u64 {
        1 << self.get()
    }

    /// This bit and all above it.
    #[inline]
    pub(super) const fn and_above(self) -> u64 {
        u64::MAX << self.get()
    }

    /// This bit and all below it.
    #[inline]
    pub(super) const fn and_below(self) -> u64 {
        u64::MAX >> (MASK - self.get())
    }

    /// The next bit up; after the highest comes the lowest.
    #[inline]
    pub(super) const fn next(self) -> Self {
        Self::of(self.get() + 1)
    }

    /// The bits above this one.
    #[inline]
    pub(super) const fn above(self) -> u64 {
        (u64::MAX ^ 1) << self.get()
    }

    /// The bits below this one.
    #[inline]
    pub(super) const fn below(self) -> u64 {
        !self.and_above()
    }

    /// Whether `word` has this bit.
    #[inline]
    pub(super) const fn is_in(self, word: u64) -> bool {
        word & self.alone() != 0
    }
}

/// The lowest bit of `word`; `None` if it is zero.
#[inline]
pub(super) fn lowest(word: u64) -> Option<Bit> {
    (word != 0).then(|| Bit(word.trailing_zeros()))
}

/// The highest bit of `word`; `None` if it is zero.
#[inline]
pub(super) fn highest(word: u64) -> Option<Bit> {
    word.checked_ilog2().map(Bit)
}

/// The bits of `word`, lowest first.
#[inline]
pub(super) fn ones(mut word: u64) -> impl Iterator<Item = Bit> {
    core::iter::from_fn(move || {
        let bit = lowest(word)?;
        word &= word - 1;
        Some(bit)
    })
}

/// The lowest run of ones in a word, with a zero above it.
pub(super) struct LowestRun {
    /// The lowest bit of the run.
    pub(super) first: Bit,
    /// The zero above the run.
    pub(super) after: Bit,
    /// The word without the run.
    pub(super) rest: u64,
}

/// The lowest run of ones; `None` if there is none, or if it reaches the top of the word and may
/// continue in the next one.
#[inline]
pub(super) fn lowest_run(word: u64) -> Option<LowestRun> {
    // Arithmetic modulo 2^64 is intended: adding its lowest bit to the word carries through the run
    // to the zero above it, or out of the word.
    let first = word & word.wrapping_neg();
    let carried = word.wrapping_add(first);
    let after = lowest(carried)?;
    Some(LowestRun { first: Bit(first.trailing_zeros()), after, rest: word & carried })
}

/// The highest run of ones in a word.
pub(super) struct HighestRun {
    /// The number of bits, from 1 to 64.
    pub(super) count: u32,
    /// The zero below the run; `None` if the run reaches the bottom of the word and may continue in
    /// the word before.
    pub(super) before: Option<Bit>,
}

/// The highest run of ones; `None` if there is none.
#[inline]
pub(super) fn highest_run(word: u64) -> Option<HighestRun> {
    let last = highest(word)?;
    let count = (word << (MASK - last.get())).leading_ones();
    let before = last.get().checked_sub(count).map(Bit);
    Some(HighestRun { count, before })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::vec::Vec;

    #[test]
    fn masks_reach_both_ends_of_a_word() {
        let (first, last) = (Bit::of(0), Bit::of(63));
        assert_eq!(first.and_above() & last.and_below(), u64::MAX);
        assert_eq!(last.alone(), 1 << 63);
        assert_eq!(Bit::of(4).and_above() & Bit::of(7).and_below(), 0xf0);
        assert_eq!((last.above(), last.below()), (0, u64::MAX >> 1));
        assert_eq!((first.above(), first.below()), (u64::MAX - 1, 0));
    }

    #[test]
    fn bits_are_listed_upwards() {
        assert_eq!(ones(1 << 63 | 0b101).map(Bit::get).collect::<Vec<_>>(), [0, 2, 63]);
        assert_eq!(highest(1 << 63 | 1), Some(Bit(63)));
        assert_eq!((lowest(0), highest(0)), (None, None));
    }

    #[test]
    fn runs_within_a_word_are_told_from_those_that_may_continue() {
        let run = lowest_run(0b1011_1000).unwrap();
        assert_eq!((run.first, run.after, run.rest), (Bit(3), Bit(6), 0b1000_0000));
        let run = highest_run(0b1011_1000).unwrap();
        assert_eq!((run.before, run.count), (Some(Bit(6)), 1));
        for word in [0, u64::MAX, Bit::of(63).alone(), Bit::of(5).and_above()] {
            assert!(lowest_run(word).is_none());
        }
        for (word, count) in [(u64::MAX, 64), (1, 1), (Bit::of(5).and_below(), 6)] {
            let run = highest_run(word).unwrap();
            assert_eq!((run.before, run.count), (None, count));
        }
        assert!(highest_run(0).is_none());
    }
}
