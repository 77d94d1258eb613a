//! Words of 64 bits: one for each child of a node, or for each page.

/// The bits of a page's number that say where it is in its word.
pub(super) const WORD_MASK: u64 = 63;

/// The number of a page among the 64 aligned ones of its word.
#[inline]
pub(super) const fn low(page: u64) -> u32 {
    (page & WORD_MASK) as u32
}

/// Bit `i` alone; `i` is below 64.
#[inline]
pub(super) const fn bit(i: u32) -> u64 {
    1u64.wrapping_shl(i)
}

/// The bits from `from` up to, not including, `to`: `from < to <= 64`.
#[inline]
pub(super) const fn between(from: u32, to: u32) -> u64 {
    from_on(from) & up_to(to.wrapping_sub(1))
}

/// The bits up to `i`, which is below 64.
#[inline]
pub(super) const fn up_to(i: u32) -> u64 {
    u64::MAX.wrapping_shr(63u32.wrapping_sub(i))
}

/// The bits from `from` on; `from` is below 64.
#[inline]
pub(super) const fn from_on(from: u32) -> u64 {
    u64::MAX.wrapping_shl(from)
}

/// The bits above `i`, which is below 64.
#[inline]
pub(super) const fn above(i: u32) -> u64 {
    (u64::MAX ^ 1).wrapping_shl(i)
}

/// The number of the highest bit; `None` for an empty word.
#[inline]
pub(super) const fn highest(word: u64) -> Option<u32> {
    word.checked_ilog2()
}

/// The numbers of the bits, lowest first.
#[inline]
pub(super) fn ones(mut word: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let lowest = (word != 0).then_some(word.trailing_zeros())?;
        word &= word.wrapping_sub(1);
        Some(lowest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::vec::Vec;

    #[test]
    fn masks_reach_both_ends_of_a_word() {
        assert_eq!(between(0, 64), u64::MAX);
        assert_eq!(between(63, 64), 1 << 63);
        assert_eq!(between(4, 8), 0xf0);
        assert_eq!(above(63), 0);
        assert_eq!(above(0), u64::MAX - 1);
    }

    #[test]
    fn bits_are_listed_upwards() {
        assert_eq!(ones(bit(63) | 0b101).collect::<Vec<_>>(), [0, 2, 63]);
        assert_eq!(highest(bit(63) | 1), Some(63));
        assert_eq!(highest(0), None);
    }
}
