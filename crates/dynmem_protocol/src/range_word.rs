//! Page ranges encoded in 64 bits.

use page_range::{Gpfn, PageCount, PageRange, RangeError};

const START_BITS: u32 = 40;
const START_MASK: u64 = (1 << START_BITS) - 1;

/// The most pages that one range word can name: 64 GiB less one page.
pub const MAX_RANGE_PAGES: PageCount = PageCount::new((1 << (u64::BITS - START_BITS)) - 1);

/// A range has more pages than a range word can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("range of {count} pages does not fit into the 24 bits of a range word")]
pub struct RangeTooLong {
    /// Pages in the range.
    pub count: PageCount,
}

/// A page range in wire form: the first page in bits 0 to 39, the count in bits 40 to 63. Linux
/// `union dm_mem_page_range`.
///
/// Any word is possible on the wire; [`RangeWord::range`] checks whether it names pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeWord(u64);

impl RangeWord {
    /// The word for `range`.
    ///
    /// # Errors
    /// [`RangeTooLong`] above [`MAX_RANGE_PAGES`].
    #[inline]
    pub fn new(range: PageRange) -> Result<Self, RangeTooLong> {
        let count = range.count();
        if count > MAX_RANGE_PAGES {
            return Err(RangeTooLong { count });
        }
        Ok(Self(count.get() << START_BITS | range.start().get()))
    }

    /// The word from the wire.
    #[must_use]
    #[inline]
    pub const fn from_wire(word: u64) -> Self {
        Self(word)
    }

    /// The word for the wire.
    #[must_use]
    #[inline]
    pub const fn to_wire(self) -> u64 {
        self.0
    }

    /// The pages it names.
    ///
    /// # Errors
    /// [`RangeError`] if the count is zero or the range leaves the address space.
    #[inline]
    pub fn range(self) -> Result<PageRange, RangeError> {
        let start = Gpfn::new(self.0 & START_MASK).ok_or(RangeError::TooHigh)?;
        PageRange::new(start, PageCount::new(self.0 >> START_BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    }

    fn word(start: u64, count: u64) -> u64 {
        RangeWord::new(range(start, count)).unwrap().to_wire()
    }

    #[test]
    fn words_are_start_and_count() {
        assert_eq!(word(0x10_0000, 512), 0x0002_0000_0010_0000);
        assert_eq!(word(0x44_0000, 524_288), 0x0800_0000_0044_0000);
        assert_eq!(word(0x1_2345, 1), 0x0000_0100_0001_2345);
    }

    #[test]
    fn sixty_four_gib_do_not_fit() {
        assert_eq!(
            RangeWord::new(range(0, 1 << 24)),
            Err(RangeTooLong { count: PageCount::new(1 << 24) })
        );
        assert_eq!(word(0, (1 << 24) - 1), 0xffff_ff00_0000_0000);
    }

    #[test]
    fn a_word_that_names_no_pages_is_refused() {
        assert_eq!(RangeWord::from_wire(5).range(), Err(RangeError::Empty));
        assert_eq!(RangeWord::from_wire(u64::MAX).range(), Err(RangeError::TooHigh));
    }
}
