//! The sets to measure, behind one trait.

use clap::ValueEnum;
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use serde::{Deserialize, Serialize};

use crate::flat::Flat;
use crate::gtree::GTreeSet;
use crate::rivals::{BTree, Blaze, RangeMap, Roaring};

/// A set of pages with the operations that a balloon's accounting needs.
pub trait PageSet {
    /// The empty set; `pages` is the size of the guest, for sets that need to know it.
    fn empty(pages: u64) -> Self;

    /// Adds `count` pages from `start` and returns how many were new.
    fn insert(&mut self, start: u64, count: u64) -> u64;

    /// Takes the highest `max` pages of the highest range, or all of it if it is smaller. Returns
    /// their start and number.
    fn take_last(&mut self, max: u64) -> Option<(u64, u64)>;

    /// Calls [`take_last`](Self::take_last) up to `most` times, as for one message; returns false
    /// if nothing is left.
    fn take_some(&mut self, max: u64, most: usize, mut taken: impl FnMut(u64, u64)) -> bool {
        for _ in 0..most {
            let Some((start, count)) = self.take_last(max) else { return false };
            taken(start, count);
        }
        true
    }
}

/// The sets that are measured.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// `PageRangeSet`.
    Ours,
    /// The design of QEMU's hv-balloon: a `GTree` of allocated ranges, with glib's own allocator.
    Gtree,
    /// The same with `G_SLICE=always-malloc`; from 2.76 on, glib has no other allocator.
    GtreeMalloc,
    /// A `BTreeMap` from the start of each range to its end.
    Btree,
    /// The crate `rangemap`.
    Rangemap,
    /// The crate `range-set-blaze`.
    Rsblaze,
    /// The crate `roaring`, with 64-bit numbers.
    Roaring,
    /// A bit for each page of the guest.
    Flat,
}

/// An operation on the set of any peer.
pub trait Visit {
    /// Its result.
    type Output;

    /// Runs the operation.
    fn visit<S: PageSet>(self) -> Self::Output;
}

impl Peer {
    /// The name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Gtree => "gtree",
            Self::GtreeMalloc => "gtmalloc",
            Self::Btree => "btree",
            Self::Rangemap => "rangemap",
            Self::Rsblaze => "rsblaze",
            Self::Roaring => "roaring",
            Self::Flat => "flat",
        }
    }

    /// Whether it is a tree with a node for each range; such a tree takes minutes for a large
    /// guest.
    #[must_use]
    pub const fn is_slow(self) -> bool {
        !matches!(self, Self::Ours | Self::Roaring | Self::Flat)
    }

    /// The value that `G_SLICE` must have in a process that measures this peer.
    #[must_use]
    pub const fn g_slice(self) -> Option<&'static str> {
        if matches!(self, Self::GtreeMalloc) { Some("always-malloc") } else { None }
    }

    /// Whether glib allocates its memory, which the counting allocator does not see.
    #[must_use]
    pub const fn is_glib(self) -> bool {
        matches!(self, Self::Gtree | Self::GtreeMalloc)
    }

    /// Calls `visit` with the peer's set.
    pub fn with<V: Visit>(self, visit: V) -> V::Output {
        match self {
            Self::Ours => visit.visit::<PageRangeSet>(),
            Self::Gtree | Self::GtreeMalloc => visit.visit::<GTreeSet>(),
            Self::Btree => visit.visit::<BTree>(),
            Self::Rangemap => visit.visit::<RangeMap>(),
            Self::Rsblaze => visit.visit::<Blaze>(),
            Self::Roaring => visit.visit::<Roaring>(),
            Self::Flat => visit.visit::<Flat>(),
        }
    }
}

impl PageSet for PageRangeSet {
    fn empty(_pages: u64) -> Self {
        Self::new()
    }

    fn insert(&mut self, start: u64, count: u64) -> u64 {
        let range = Gpfn::new(start).map(|start| PageRange::new(start, PageCount::new(count)));
        let Some(Ok(range)) = range else { return 0 };
        Self::insert(self, range).get()
    }

    fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let taken = Self::take_last(self, PageCount::new(max))?;
        Some((taken.start().get(), taken.count().get()))
    }

    fn take_some(&mut self, max: u64, most: usize, mut taken: impl FnMut(u64, u64)) -> bool {
        let all = PageCount::new(u64::MAX);
        let pages = self.take_last_ranges(all, most, |range| {
            let (start, mut end) = (range.start().get(), range.end().get());
            while start < end {
                let from = start.max(end.saturating_sub(max));
                taken(from, end - from);
                end = from;
            }
        });
        !pages.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::{Answers, Size, Work};

    struct Answer<'a>(&'a Work);

    impl Visit for Answer<'_> {
        type Output = Answers;

        fn visit<S: PageSet>(self) -> Answers {
            let mut set = S::empty(self.0.pages());
            let mut answers = Answers::default();
            for phase in self.0.phases() {
                phase.run(&mut set, &mut answers);
            }
            answers
        }
    }

    #[test]
    fn all_peers_give_the_same_answers() {
        let size: Size = "2G".parse().unwrap();
        // The other workloads use 1 TiB.
        for name in ["linux", "altasc", "altrnd", "rnd50", "cover"] {
            let work = Work::new(name, size).unwrap();
            let ours = Peer::Ours.with(Answer(&work));
            for peer in [Peer::Btree, Peer::Rangemap, Peer::Rsblaze, Peer::Roaring, Peer::Flat] {
                assert_eq!(peer.with(Answer(&work)), ours, "{name} {peer:?}");
            }
            if crate::glib::Glib::get().is_ok() {
                assert_eq!(Peer::Gtree.with(Answer(&work)), ours, "{name} GTree");
            }
        }
    }
}
