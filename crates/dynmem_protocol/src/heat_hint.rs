//! Free page reports: the input of the hypercall `HvExtCallMemoryHeatHint`.
//!
//! A guest that frees memory tells the host so, unasked: the pages stay its own, and it may use them
//! again at any time, but it no longer needs what is in them. No message on the channel is involved.
//! Linux reports since 5.13, and in blocks of 2 MiB or 4 MiB unless told otherwise (`hv_balloon.c`).
//!
//! Sources: TLFS, "Extended Hypercalls"; Linux `include/hyperv/hvgdk_ext.h` and `hvhdk.h`
//! (`hv_memory_hint`, `hv_gpa_page_range`).

use alloc::vec::Vec;

use page_range::{Gpfn, PageCount, PageRange};
use zerocopy::FromBytes;
use zerocopy::little_endian::U64;

/// Call code of `HvExtCallQueryCapabilities`, whose answer is a mask of what the host offers.
pub const QUERY_CAPABILITIES: u16 = 0x8001;

/// Call code of `HvExtCallMemoryHeatHint`, a rep hypercall with one [`HeatHint`] range for each rep.
pub const MEMORY_HEAT_HINT: u16 = 0x8003;

/// In the answer to [`QUERY_CAPABILITIES`]: the host takes hints of the type cold discard.
pub const CAN_DISCARD: u64 = 1 << 8;

/// Type of a hint: the content is not needed any more.
const COLD_DISCARD: u64 = 2;

/// Pages in a large unit of a range word: 2 MiB and 1 GiB.
const LARGE: u64 = 1 << 9;
const GIANT: u64 = 1 << 18;

const MORE_PAGES: u64 = (1 << 11) - 1;
const IS_LARGE: u64 = 1 << 11;
const IS_GIANT: u64 = 1 << 12;
const LARGE_RESERVED: u64 = 0xff << 13;
const PAGE_SHIFT: u32 = 12;
const LARGE_SHIFT: u32 = 21;

/// Pages in the form of a heat hint (`hv_gpa_page_range`): the number of units less one in bits 0 to
/// 10, and either the first page in bits 12 to 63, or with bit 11 set the first 2 MiB in bits 21 to
/// 63, and in bit 12 whether the units are of 1 GiB rather than of 2 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpaPageRange(u64);

impl GpaPageRange {
    /// The word for pages, in the largest units that they consist of; `None` for more than 2048
    /// units.
    #[must_use]
    pub fn new(range: PageRange) -> Option<Self> {
        let (start, count) = (range.start().get(), range.count().get());
        let (unit, form) = [(GIANT, IS_LARGE | IS_GIANT), (LARGE, IS_LARGE)]
            .into_iter()
            .find(|(unit, _)| range.is_whole(PageCount::new(*unit)))
            .unwrap_or((1, 0));
        let more = count.checked_div(unit)?.checked_sub(1)?;
        (more <= MORE_PAGES).then_some(Self(start << PAGE_SHIFT | form | more))
    }

    /// The word from the wire.
    #[must_use]
    pub const fn from_wire(word: u64) -> Self {
        Self(word)
    }

    /// The word for the wire.
    #[must_use]
    pub const fn to_wire(self) -> u64 {
        self.0
    }

    /// The pages it names; `None` if reserved bits are set, if units of 1 GiB do not begin at a
    /// multiple of 1 GiB, or if the range leaves the address space.
    #[must_use]
    pub fn range(self) -> Option<PageRange> {
        let Self(word) = self;
        let (first, unit) = match word {
            _ if word & IS_LARGE == 0 => (word >> PAGE_SHIFT, 1),
            _ if word & LARGE_RESERVED != 0 => return None,
            _ => {
                let first = word >> LARGE_SHIFT << (LARGE_SHIFT - PAGE_SHIFT);
                (first, if word & IS_GIANT == 0 { LARGE } else { GIANT })
            }
        };
        if !first.is_multiple_of(unit) {
            return None;
        }
        let count = (word & MORE_PAGES).checked_add(1)?.checked_mul(unit)?;
        PageRange::new(Gpfn::new(first)?, PageCount::new(count)).ok()
    }
}

/// The input of `HvExtCallMemoryHeatHint`, borrowed from a copy of the guest's.
#[derive(Clone, Copy, Debug)]
pub struct HeatHint<'a>(&'a [U64]);

/// What the host does for one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenHint {
    /// Discard these.
    pub ranges: Vec<PageRange>,
    /// The index of the first rep that is not done.
    pub completed: usize,
    /// Whether that is because its range is not the guest's RAM. The answer is
    /// `HV_STATUS_INVALID_PARAMETER` then.
    pub is_refused: bool,
}

impl<'a> HeatHint<'a> {
    /// The most ranges in a call, whose input must lie within a page.
    pub const MAX_RANGES: usize = 511;

    /// The size of an input with this many ranges, in bytes; `None` if they are more than
    /// [`HeatHint::MAX_RANGES`].
    #[must_use]
    pub const fn size(ranges: usize) -> Option<usize> {
        match ranges {
            0..=Self::MAX_RANGES => match ranges.checked_add(1) {
                Some(words) => words.checked_mul(size_of::<U64>()),
                None => None,
            },
            _ => None,
        }
    }

    /// The hint in `input`: as many ranges as it has room for. `None` if it is not a cold discard or
    /// has reserved bits set.
    #[must_use]
    pub fn parse(input: &'a [u8]) -> Option<Self> {
        let (words, _) = <[U64]>::ref_from_prefix(input).ok()?;
        let (kind, ranges) = words.split_first()?;
        (kind.get() == COLD_DISCARD).then_some(Self(ranges))
    }

    /// What to do for a call that begins with rep `start`: at most `most` pages are discarded, so
    /// that a call takes a limited time.
    ///
    /// Where the ranges have more, the call ends before the first that does not fit, with success and
    /// fewer reps than asked for; Linux then calls again for the rest (`hv_do_rep_hypercall`). At
    /// least one rep is done in each call, since Linux would call for ever otherwise: of a range that
    /// is larger than `most` on its own the end stays, which a host is free to do with a hint.
    ///
    /// A range of which any page is not `is_ram` is refused, with all ranges after it.
    #[must_use]
    pub fn take(
        self,
        start: usize,
        most: PageCount,
        mut is_ram: impl FnMut(PageRange) -> bool,
    ) -> TakenHint {
        let mut free = TakenHint { ranges: Vec::new(), completed: start, is_refused: false };
        let mut left = most;
        for word in self.0.iter().skip(start) {
            let range = GpaPageRange::from_wire(word.get()).range().filter(|range| is_ram(*range));
            let Some(range) = range else {
                free.is_refused = true;
                break;
            };
            let count = range.count().min(left);
            if count < range.count() && !free.ranges.is_empty() {
                break;
            }
            // Empty only if the caller wants nothing discarded.
            free.ranges.extend(PageRange::new(range.start(), count));
            free.completed = free.completed.saturating_add(1);
            left = left.saturating_sub(count);
        }
        free
    }
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "small figures")]
mod tests {
    use std::collections::BTreeSet;
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    const ALL: PageCount = PageCount::new(u64::MAX);

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    }

    fn range(word: u64) -> Option<PageRange> {
        GpaPageRange::from_wire(word).range()
    }

    fn input(kind: u64, words: &[u64]) -> Vec<u8> {
        core::iter::once(&kind).chain(words).flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn words_are_those_that_linux_writes() {
        // `hv_free_page_report` for 4 MiB at 1 GiB, and for 12 KiB.
        assert_eq!(range(0x4000_0801), Some(pages(0x4_0000, 1024)));
        assert_eq!(range(0x0001_2002), Some(pages(0x12, 3)));
        assert_eq!(range(0x4000_1800), Some(pages(0x4_0000, 1 << 18)));
        // The largest ranges of each form.
        assert_eq!(range(0x07ff), Some(pages(0, 2048)));
        assert_eq!(range(0x1fff), Some(pages(0, 2048 << 18)));
    }

    #[test]
    fn words_without_a_meaning_name_no_pages() {
        for bit in 13..21 {
            assert_eq!(range(0x0800 | 1 << bit), None, "{bit}");
            assert!(range(1 << bit).is_some());
        }
        // 1 GiB that begins at 2 MiB, and ranges beyond the address space.
        assert_eq!(range(0x0020_1800), None);
        for word in [u64::MAX, !LARGE_RESERVED, !0xfff, !0xfff | 1] {
            assert_eq!(range(word).filter(|range| range.end() > Gpfn::MAX), None);
        }
    }

    #[test]
    fn only_a_cold_discard_is_a_report() {
        assert!(HeatHint::parse(&input(2, &[0])).is_some());
        for kind in [0, 1, 3, 4, 6, 2 | 1 << 63] {
            assert!(HeatHint::parse(&input(kind, &[0])).is_none(), "{kind}");
        }
        for len in 0..8 {
            assert!(HeatHint::parse(&input(2, &[])[..len]).is_none());
        }
    }

    #[test]
    fn the_largest_input_is_a_page() {
        assert_eq!(HeatHint::size(HeatHint::MAX_RANGES), Some(4096));
        assert_eq!(HeatHint::size(512), None);
        assert_eq!(HeatHint::size(1), Some(16));
    }

    #[test]
    fn a_range_too_large_for_a_call_is_cut_and_the_next_one_waits() {
        let bytes = input(2, &[0x1801, 0x0801]);
        let hint = HeatHint::parse(&bytes).unwrap();
        let first = hint.take(0, PageCount::new(GIANT), |_| true);
        let expected = TakenHint { ranges: vec![pages(0, GIANT)], completed: 1, is_refused: false };
        assert_eq!(first, expected);
        let second = hint.take(1, PageCount::new(GIANT), |_| true);
        let expected = TakenHint { ranges: vec![pages(0, 1024)], completed: 2, is_refused: false };
        assert_eq!(second, expected);
    }

    fn word() -> impl Strategy<Value = u64> {
        let named = (0_u64..64, 1_u64..20, prop::sample::select(vec![1, LARGE]));
        let named = named.prop_map(|(start, count, unit)| {
            GpaPageRange::new(pages(start * unit, count * unit)).unwrap().to_wire()
        });
        prop_oneof![9 => named, 1 => any::<u64>()]
    }

    proptest! {
        #[test]
        fn words_come_back_as_the_pages_they_were_made_of(
            start in 0_u64..1 << 30,
            units in 1_u64..=2048,
            unit in prop::sample::select(vec![1, LARGE, GIANT]),
        ) {
            let all = pages(start / unit * unit, units * unit);
            // Odd pages in large numbers have no word.
            if let Some(word) = GpaPageRange::new(all) {
                prop_assert_eq!(word.range(), Some(all));
            } else {
                prop_assert!(units > 2048 || all.count().get() > 2048);
            }
        }

        /// Against the simplest host, which looks at one page after the other and has no limit.
        #[test]
        fn calls_in_turn_discard_what_one_without_a_limit_does(
            words in prop::collection::vec(word(), 1..40),
            ram in 1_u64..60_000,
            most in 1_u64..30_000,
        ) {
            let bytes = input(2, &words);
            let hint = HeatHint::parse(&bytes).unwrap();
            let is_ram = |range: PageRange| range.end().get() <= ram;
            let mut expected = BTreeSet::new();
            let mut good = 0;
            for word in &words {
                let Some(range) = range(*word).filter(|range| is_ram(*range)) else { break };
                let cut = range.count().get().min(most);
                expected.extend(range.start().get()..range.start().get() + cut);
                good += 1;
            }
            let mut discarded = BTreeSet::new();
            let mut start = 0;
            let refused = loop {
                let free = hint.take(start, PageCount::new(most), is_ram);
                let count: u64 = free.ranges.iter().map(|range| range.count().get()).sum();
                prop_assert!(count <= most);
                for range in free.ranges {
                    discarded.extend(range.start().get()..range.end().get());
                }
                // Progress, so that a guest that calls again comes to an end.
                prop_assert!(free.completed > start || free.is_refused);
                start = free.completed;
                if free.is_refused || start == words.len() {
                    break free.is_refused;
                }
            };
            prop_assert_eq!((start, refused), (good, good < words.len()));
            // What is cut off where depends on the order of the calls only for ranges above `most`,
            // which begin a call of their own.
            prop_assert_eq!(discarded, expected);
        }

        #[test]
        fn any_input_is_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(hint) = HeatHint::parse(&bytes) {
                let free = hint.take(0, ALL, |range| range.end() < Gpfn::MAX);
                prop_assert_eq!(free.completed, free.ranges.len());
            }
        }
    }
}
