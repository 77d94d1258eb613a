//! GPADLs: lists of guest pages, which arrive in several messages.

use alloc::vec::Vec;

use page_range::{Gpfn, PAGE_SIZE};

/// Size in bytes of a word of the range list: a range header or a page number.
const WORD: usize = 8;

/// The range list of one GPADL while its messages arrive. Bodies continue the stream of words where
/// the header left off (Linux `vmbus_establish_gpadl`).
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) ranges: u16,
    pub(super) wanted: usize,
    pub(super) words: Vec<u64>,
}

/// The pages of a complete GPADL.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GpadlPages {
    /// The pages of all ranges in order.
    pub(super) pages: Vec<Gpfn>,
    /// Whether it is one range of whole pages, as rings require.
    pub(super) is_plain: bool,
}

impl Assembly {
    /// A list of `range_buflen` bytes with `ranges` ranges, each with a header and at least one
    /// page; `None` if that is impossible.
    pub(super) fn new(range_buflen: u16, ranges: u16) -> Option<Self> {
        let len = usize::from(range_buflen);
        let wanted = len / WORD;
        let least = usize::from(ranges).saturating_mul(2);
        let possible = len.is_multiple_of(WORD) && ranges > 0 && wanted >= least;
        possible.then(|| Self { ranges, wanted, words: Vec::new() })
    }

    /// A list with `words` of the `wanted` words so far; `None` if that is impossible, or the list
    /// is complete.
    pub(super) fn restore(ranges: u16, wanted: usize, words: Vec<u64>) -> Option<Self> {
        let range_buflen = u16::try_from(wanted.checked_mul(WORD)?).ok()?;
        let list = Self::new(range_buflen, ranges).filter(|_| words.len() < wanted)?;
        Some(Self { words, ..list })
    }

    /// Number of words in the complete list; at most 8191.
    pub(super) const fn wanted(&self) -> usize {
        self.wanted
    }

    /// Appends the words in `bytes`, up to the number wanted, because firmware always posts
    /// full-length messages. Returns whether the list is complete.
    pub(super) fn add(&mut self, bytes: &[u8]) -> bool {
        let missing = self.wanted.saturating_sub(self.words.len());
        let (words, _) = bytes.as_chunks::<WORD>();
        self.words.extend(words.iter().take(missing).map(|word| u64::from_le_bytes(*word)));
        self.words.len() >= self.wanted
    }

    /// The pages of the list; `None` if a range is empty, ends early or has pages at or above
    /// `limit`.
    pub(super) fn finish(&self, limit: Gpfn) -> Option<GpadlPages> {
        let mut words = self.words.iter().copied();
        let mut pages = Vec::new();
        let mut is_plain = self.ranges == 1;
        for _ in 0..self.ranges {
            let header = words.next()?;
            let (len, offset) = (header & 0xffff_ffff, header >> 32);
            if len == 0 || offset >= PAGE_SIZE {
                return None;
            }
            is_plain &= offset == 0 && len.is_multiple_of(PAGE_SIZE);
            // At most 2^20 + 1, and the list has far fewer words.
            for _ in 0..len.saturating_add(offset).div_ceil(PAGE_SIZE) {
                pages.push(Gpfn::new(words.next()?).filter(|page| *page < limit)?);
            }
        }
        Some(GpadlPages { pages, is_plain })
    }
}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    const RAM: Gpfn = Gpfn::MAX;

    fn assemble(ranges: u16, words: &[u64], limit: Gpfn) -> Option<GpadlPages> {
        let len = u16::try_from(size_of_val(words)).unwrap();
        let mut assembly = Assembly::new(len, ranges)?;
        let mut complete = false;
        for word in words {
            assert!(!complete);
            complete = assembly.add(&word.to_le_bytes());
        }
        assert!(complete);
        assembly.finish(limit)
    }

    fn page(number: u64) -> Gpfn {
        Gpfn::new(number).unwrap()
    }

    #[test]
    fn one_range_of_whole_pages_is_plain() {
        let gpadl = assemble(1, &[0x3000, 7, 8, 7], RAM).unwrap();
        assert_eq!(gpadl, GpadlPages { pages: vec![page(7), page(8), page(7)], is_plain: true });
    }

    #[test]
    fn ranges_count_the_pages_they_touch() {
        let gpadl = assemble(2, &[0xfff_0000_0002, 1, 2, 0x1000, 3], RAM).unwrap();
        assert_eq!(gpadl, GpadlPages { pages: vec![page(1), page(2), page(3)], is_plain: false });
    }

    #[test]
    fn a_range_that_begins_or_ends_within_a_page_is_not_plain() {
        for words in [&[0x8_0000_1000, 1, 2][..], &[0x800, 1]] {
            assert!(!assemble(1, words, RAM).unwrap().is_plain, "{words:x?}");
        }
    }

    #[test]
    fn surplus_words_are_ignored() {
        let mut assembly = Assembly::new(16, 1).unwrap();
        assert!(!assembly.add(&[0, 16, 0, 0, 0, 0, 0, 0, 9]));
        let mut rest = vec![5, 0, 0, 0, 0, 0, 0, 0];
        rest.extend([0xff; 200]);
        assert!(assembly.add(&rest));
        assert_eq!(assembly.finish(RAM).unwrap().pages, [page(5)]);
    }

    #[test]
    fn a_list_is_restored_only_where_words_are_missing() {
        assert_eq!(Assembly::restore(1, 2, vec![0x1000]).unwrap().words, [0x1000]);
        assert!(Assembly::restore(1, 2, vec![0x1000, 7]).is_none());
    }

    #[test]
    fn impossible_lengths_are_refused_at_once() {
        for (len, ranges) in [(0, 0), (0, 1), (8, 1), (12, 1), (20, 1), (24, 2), (16, 0)] {
            assert!(Assembly::new(len, ranges).is_none(), "{len} {ranges}");
        }
    }

    #[test]
    fn impossible_ranges_are_refused() {
        assert_eq!(assemble(1, &[0, 1], RAM), None, "empty");
        assert_eq!(assemble(1, &[0x1000_0000_1000, 1, 2], RAM), None, "offset beyond a page");
        assert_eq!(assemble(1, &[0x2000, 1], RAM), None, "ends early");
        assert_eq!(assemble(1, &[0xffff_ffff, 1], RAM), None, "ends far too early");
        assert_eq!(assemble(1, &[0x1000, 1 << 40], RAM), None, "page beyond all memory");
        assert_eq!(assemble(1, &[0x1000, u64::MAX], RAM), None, "page beyond all numbers");
    }

    #[test]
    fn pages_must_be_below_the_limit() {
        assert!(assemble(1, &[0x1000, 99], page(100)).is_some());
        assert_eq!(assemble(1, &[0x1000, 100], page(100)), None);
    }
}
