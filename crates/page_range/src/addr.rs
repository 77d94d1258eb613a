//! Guest physical addresses, page frame numbers and page counts.

use core::fmt;

/// Bytes in a page, here and on the wire.
pub const PAGE_SIZE: u64 = 4096;

const PAGE_SHIFT: u32 = 12;

/// A guest physical address, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(u64);

impl Gpa {
    /// The address `bytes`.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The address in bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further up, or `None` on overflow.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Offset of the address inside its page, in bytes.
    #[must_use]
    pub const fn page_offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }

    /// The page that holds the address, or `None` above [`Gpfn::MAX`].
    #[must_use]
    pub const fn gpfn(self) -> Option<Gpfn> {
        Gpfn::new(self.0 >> PAGE_SHIFT)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A guest page frame number: the number of a 4 KiB page in guest physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpfn(u64);

impl Gpfn {
    /// The first number above all pages: x86-64 physical addresses have at most 52 bits, and the
    /// Dynamic Memory wire format has 40 bits for a page number. It occurs only as the exclusive
    /// end of a range.
    pub const MAX: Self = Self(1 << 40);

    /// Page `number`, or `None` above [`Gpfn::MAX`].
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// The page number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Address of the page's first byte.
    #[must_use]
    pub const fn gpa(self) -> Gpa {
        Gpa::new(self.0 << PAGE_SHIFT)
    }

    /// The page `count` further up, or `None` above [`Gpfn::MAX`].
    #[must_use]
    pub const fn checked_add(self, count: PageCount) -> Option<Self> {
        match self.0.checked_add(count.0) {
            Some(sum) => Self::new(sum),
            None => None,
        }
    }

    /// The first page at or above this one whose number is a multiple of `unit`, or `None` above
    /// [`Gpfn::MAX`]. A `unit` of zero pages counts as one page.
    #[must_use]
    pub const fn align_up(self, unit: PageCount) -> Option<Self> {
        match PageCount(self.0).align_up(unit) {
            Some(aligned) => Self::new(aligned.0),
            None => None,
        }
    }

    /// The last page at or below this one whose number is a multiple of `unit`. A `unit` of zero
    /// pages counts as one page.
    #[must_use]
    pub const fn align_down(self, unit: PageCount) -> Self {
        Self(PageCount(self.0).align_down(unit).0)
    }

    /// The number of pages from `other` up to this one; zero if `other` is above.
    #[must_use]
    pub const fn distance_from(self, other: Self) -> PageCount {
        PageCount(self.0.saturating_sub(other.0))
    }
}

impl fmt::Display for Gpfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A number of 4 KiB pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageCount(u64);

impl PageCount {
    /// No pages.
    pub const ZERO: Self = Self(0);

    /// `pages` pages.
    #[must_use]
    pub const fn new(pages: u64) -> Self {
        Self(pages)
    }

    /// The whole pages in `bytes`; a remainder is dropped.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes >> PAGE_SHIFT)
    }

    /// The number of pages.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whether there are no pages.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The pages in bytes, at most `u64::MAX`.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(PAGE_SIZE)
    }

    /// The sum, or `None` on overflow.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` if `other` is larger.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// The sum, at most `u64::MAX`.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or zero if `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The smallest multiple of `unit` that is not below this count, or `None` on overflow. A
    /// `unit` of zero pages counts as one page.
    #[must_use]
    pub const fn align_up(self, unit: Self) -> Option<Self> {
        match self.0.checked_next_multiple_of(unit.at_least_one()) {
            Some(aligned) => Some(Self(aligned)),
            None => None,
        }
    }

    /// The largest multiple of `unit` that is not above this count. A `unit` of zero pages counts
    /// as one page.
    #[must_use]
    pub const fn align_down(self, unit: Self) -> Self {
        match self.0.checked_rem(unit.at_least_one()) {
            Some(rest) => Self(self.0.saturating_sub(rest)),
            None => self,
        }
    }

    const fn at_least_one(self) -> u64 {
        if self.0 == 0 { 1 } else { self.0 }
    }
}

impl fmt::Display for PageCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_of_an_address_is_rounded_down() {
        assert_eq!(Gpa::new(0x1fff).gpfn(), Gpfn::new(1));
        assert_eq!(Gpa::new(0x1fff).page_offset(), 0xfff);
    }

    #[test]
    fn alignment_rounds_to_multiples_and_knows_the_end() {
        let unit = PageCount::new(512);
        let aligned = |page| {
            let page = Gpfn::new(page).unwrap();
            (page.align_down(unit).get(), page.align_up(unit).map(Gpfn::get))
        };
        assert_eq!(aligned(511), (0, Some(512)));
        assert_eq!(aligned(512), (512, Some(512)));
        assert_eq!(Gpfn::MAX.align_up(PageCount::new(3)), None);
        assert_eq!(PageCount::new(u64::MAX).align_up(unit), None);
        assert_eq!(PageCount::new(7).align_up(PageCount::ZERO), Some(PageCount::new(7)));
    }

    #[test]
    fn sums_and_differences_end_at_the_limits() {
        let pages = PageCount::new;
        assert_eq!(pages(5).checked_add(pages(7)), Some(pages(12)));
        assert_eq!(pages(u64::MAX).checked_add(pages(1)), None);
        assert_eq!(pages(7).checked_sub(pages(5)), Some(pages(2)));
        assert_eq!(pages(5).checked_sub(pages(7)), None);
        assert_eq!(pages(5).saturating_add(pages(7)), pages(12));
        assert_eq!(pages(u64::MAX).saturating_add(pages(7)), pages(u64::MAX));
        assert_eq!(pages(7).saturating_sub(pages(5)), pages(2));
        assert_eq!(pages(5).saturating_sub(pages(7)), PageCount::ZERO);
        assert_eq!(Gpa::new(0x1000).checked_add(0x234), Some(Gpa::new(0x1234)));
        assert_eq!(Gpa::new(u64::MAX).checked_add(1), None);
        let (low, high) = (Gpfn::new(3).unwrap(), Gpfn::new(10).unwrap());
        assert_eq!(low.checked_add(pages(7)), Some(high));
        assert_eq!((high.distance_from(low), low.distance_from(high)), (pages(7), pages(0)));
    }

    #[test]
    fn a_page_has_4096_bytes() {
        assert_eq!(PageCount::new(3).bytes(), 0x3000);
        assert_eq!(PageCount::new(u64::MAX).bytes(), u64::MAX);
        assert_eq!(PageCount::from_bytes(0x3fff), PageCount::new(3));
        assert!(PageCount::from_bytes(0xfff).is_zero() && !PageCount::from_bytes(0x1000).is_zero());
        assert_eq!(Gpfn::new(3).unwrap().gpa().get(), 0x3000);
    }

    #[test]
    fn addresses_and_pages_are_shown_in_hexadecimal_and_counts_in_decimal() {
        let shown =
            std::format!("{} {} {}", Gpa::new(31), Gpfn::new(31).unwrap(), PageCount::new(31));
        assert_eq!(shown, "0x1f 0x1f 31");
    }

    #[test]
    fn page_numbers_end_at_52_address_bits() {
        assert_eq!(Gpfn::MAX.gpa(), Gpa::new(1 << 52));
        assert_eq!(Gpfn::new((1 << 40) + 1), None);
        assert_eq!(Gpfn::MAX.checked_add(PageCount::new(1)), None);
        assert_eq!(Gpfn::MAX.checked_add(PageCount::new(u64::MAX)), None);
    }
}
