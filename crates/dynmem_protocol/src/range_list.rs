//! The list of range words at the end of a message.

use alloc::vec::Vec;
use core::fmt;

use page_range::{PageCount, PageRange};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use crate::header::{HEADER_SIZE, MAX_HOST_MESSAGE};
use crate::{RangeTooLong, RangeWord};

/// The most ranges in a message of at most [`MAX_HOST_MESSAGE`] bytes. A guest may send more.
pub const MAX_RANGES: usize = (MAX_HOST_MESSAGE - HEADER_SIZE - 8) / size_of::<U64>();
const _: () = assert!(MAX_RANGES == 508);

/// The range words of a parsed message or of a [`RangeList`].
#[derive(Clone, Copy, Default)]
pub struct RangeWords<'a>(&'a [U64]);

impl<'a> RangeWords<'a> {
    pub(crate) const fn new(words: &'a [U64]) -> Self {
        Self(words)
    }

    pub(crate) fn as_bytes(self) -> &'a [u8] {
        self.0.as_bytes()
    }

    /// The words in wire order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = RangeWord> + 'a {
        self.0.iter().map(|word| RangeWord::from_wire(word.get()))
    }

    /// The number of words.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.len()
    }

    /// Whether there are no words.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for RangeWords<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for RangeWords<'_> {}

impl fmt::Debug for RangeWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Why a range cannot be added to a [`RangeList`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeListError {
    /// The list already has [`MAX_RANGES`] ranges.
    #[error("message is full with {MAX_RANGES} ranges")]
    Full,
    /// The range does not fit a range word.
    #[error(transparent)]
    TooLong(#[from] RangeTooLong),
}

/// Ranges to send: at most [`MAX_RANGES`], so that no message becomes too long.
#[derive(Clone, Debug, Default)]
pub struct RangeList {
    words: Vec<U64>,
    pages: PageCount,
}

impl RangeList {
    /// The empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: Vec::new(), pages: PageCount::ZERO }
    }

    /// Removes all ranges but keeps the memory for the next ones.
    pub fn clear(&mut self) {
        self.words.clear();
        self.pages = PageCount::ZERO;
    }

    /// Appends `range`.
    ///
    /// # Errors
    /// [`RangeListError`] if the list is full or the range too long; the list is unchanged.
    #[inline]
    pub fn push(&mut self, range: PageRange) -> Result<(), RangeListError> {
        if self.is_full() {
            return Err(RangeListError::Full);
        }
        self.words.push(U64::new(RangeWord::new(range)?.to_wire()));
        self.pages = self.pages.saturating_add(range.count());
        Ok(())
    }

    /// Whether another range would be refused.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.words.len() >= MAX_RANGES
    }

    /// The number of pages of all ranges together.
    #[must_use]
    pub const fn pages(&self) -> PageCount {
        self.pages
    }

    /// The ranges in wire form.
    #[must_use]
    pub fn words(&self) -> RangeWords<'_> {
        RangeWords::new(&self.words)
    }
}

#[cfg(test)]
mod tests {
    use page_range::Gpfn;

    use super::*;

    fn range(count: u64) -> PageRange {
        PageRange::new(Gpfn::default(), PageCount::new(count)).unwrap()
    }

    #[test]
    fn the_509th_range_is_refused() {
        let mut list = RangeList::new();
        let pushed = core::iter::repeat_with(|| list.push(range(2))).take_while(Result::is_ok);
        assert_eq!(pushed.count(), 508);
        assert_eq!(list.push(range(2)), Err(RangeListError::Full));
        assert_eq!(list.pages(), PageCount::new(1016));
    }

    #[test]
    fn a_cleared_list_is_empty_and_keeps_its_memory() {
        let mut list = RangeList::new();
        while !list.is_full() {
            list.push(range(3)).unwrap();
        }
        let capacity = list.words.capacity();
        list.clear();
        assert_eq!((list.words().len(), list.pages()), (0, PageCount::ZERO));
        assert_eq!(list.words.capacity(), capacity);
    }

    #[test]
    fn a_range_too_long_leaves_the_list_as_it_was() {
        let mut list = RangeList::new();
        let refused = list.push(range(1 << 24));
        assert_eq!(
            refused,
            Err(RangeListError::TooLong(RangeTooLong { count: PageCount::new(1 << 24) }))
        );
        assert!(list.words().is_empty());
    }
}
