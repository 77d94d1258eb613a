//! Ranges of consecutive pages.

use core::fmt;

use crate::{Gpfn, PageCount};

/// Why two numbers do not form a [`PageRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeError {
    /// The count is zero.
    Empty,
    /// The range would end above [`Gpfn::MAX`].
    TooHigh,
}

impl fmt::Display for RangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "page range is empty",
            Self::TooHigh => "page range ends above the 52-bit address space",
        })
    }
}

impl core::error::Error for RangeError {}

/// Consecutive pages: at least one, and all below [`Gpfn::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageRange {
    start: Gpfn,
    end: Gpfn,
}

impl PageRange {
    /// The `count` pages from `start` up.
    ///
    /// # Errors
    /// [`RangeError`] for an empty range and for one that leaves the address space.
    pub const fn new(start: Gpfn, count: PageCount) -> Result<Self, RangeError> {
        if count.is_zero() {
            return Err(RangeError::Empty);
        }
        match start.checked_add(count) {
            Some(end) => Ok(Self { start, end }),
            None => Err(RangeError::TooHigh),
        }
    }

    /// The pages from `start` up to, but not including, `end`; `None` if there are none.
    #[must_use]
    pub fn between(start: Gpfn, end: Gpfn) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// The first page.
    #[must_use]
    pub const fn start(self) -> Gpfn {
        self.start
    }

    /// The page after the last one.
    #[must_use]
    pub const fn end(self) -> Gpfn {
        self.end
    }

    /// The number of pages, at least one.
    #[must_use]
    pub const fn count(self) -> PageCount {
        PageCount::new(self.end.get().saturating_sub(self.start.get()))
    }

    /// The pages that are in both ranges.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::between(self.start.max(other.start), self.end.min(other.end))
    }

    /// The smallest range of whole, aligned `unit`s that holds all pages; it ends at [`Gpfn::MAX`]
    /// if the last unit would end above that.
    #[must_use]
    pub fn units_around(self, unit: PageCount) -> Self {
        let end = self.end.align_up(unit).unwrap_or(Gpfn::MAX);
        Self { start: self.start.align_down(unit), end }
    }

    /// The whole, aligned `unit`s among the pages.
    #[must_use]
    pub fn units_within(self, unit: PageCount) -> Option<Self> {
        Self::between(self.start.align_up(unit)?, self.end.align_down(unit))
    }

    /// Whether the pages are whole, aligned `unit`s.
    #[must_use]
    pub fn is_whole(self, unit: PageCount) -> bool {
        self.units_within(unit) == Some(self)
    }

    /// Whether all pages of `other` are among these.
    #[must_use]
    pub fn contains_range(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether `gpfn` is one of the pages.
    #[must_use]
    pub fn contains(self, gpfn: Gpfn) -> bool {
        self.start <= gpfn && gpfn < self.end
    }
}

impl fmt::Display for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

impl fmt::Debug for PageRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, count: u64) -> Result<PageRange, RangeError> {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count))
    }

    #[test]
    fn a_range_is_never_empty_and_never_too_high() {
        assert_eq!(range(5, 0), Err(RangeError::Empty));
        assert_eq!(range(1 << 40, 1), Err(RangeError::TooHigh));
        assert_eq!(range((1 << 40) - 1, 1).unwrap().end(), Gpfn::MAX);
    }

    #[test]
    fn units_are_cut_at_their_multiples() {
        let unit = PageCount::new(8);
        let pages = range(5, 20).unwrap();
        assert_eq!(pages.units_around(unit), range(0, 32).unwrap());
        assert_eq!(pages.units_within(unit), Some(range(8, 16).unwrap()));
        assert_eq!(range(5, 5).unwrap().units_within(unit), None);
        assert!(range(8, 16).unwrap().is_whole(unit));
        assert!(!pages.is_whole(unit) && !range(5, 5).unwrap().is_whole(unit));
        let top = range((1 << 40) - 1, 1).unwrap();
        assert_eq!(top.units_around(PageCount::new(3)).end(), Gpfn::MAX);
    }

    #[test]
    fn a_range_contains_its_pages_and_the_ranges_of_them() {
        let pages = range(10, 5).unwrap();
        let held = [9, 10, 14, 15].map(|page| pages.contains(Gpfn::new(page).unwrap()));
        assert_eq!(held, [false, true, true, false]);
        let others = [(10, 5), (11, 3), (9, 3), (13, 3), (9, 7)];
        let held = others.map(|(start, count)| pages.contains_range(range(start, count).unwrap()));
        assert_eq!(held, [true, true, false, false, false]);
    }

    #[test]
    fn a_range_is_shown_with_its_exclusive_end() {
        assert_eq!(std::format!("{}", range(10, 5).unwrap()), "[0xa, 0xf)");
        let errors = [RangeError::Empty, RangeError::TooHigh].map(|error| std::format!("{error}"));
        assert!(errors[0].contains("empty") && errors[1].contains("52-bit"), "{errors:?}");
    }

    #[test]
    fn intersection_is_the_common_part() {
        let both = range(10, 10).unwrap().intersection(range(15, 10).unwrap()).unwrap();
        assert_eq!((both.start().get(), both.count().get()), (15, 5));
        assert_eq!(range(10, 10).unwrap().intersection(range(20, 1).unwrap()), None);
    }
}
