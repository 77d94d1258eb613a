//! A part of the tree with a counter of its pages in the set.
#![expect(clippy::arithmetic_side_effects, reason = "pages of a part; see the set's module head")]

use super::part::{Part, Run, Span};
use super::state::{Missing, State};

/// A part and the number of its pages in the set.
///
/// Recounting a part takes time proportional to its stored parts, and each change of a counter
/// takes time as well. One level of counters is enough: see the type of the tree in `chunks`.
#[derive(Clone, PartialEq)]
pub(super) struct Counted<P> {
    part: P,
    held: u32,
}

impl<P: Part> Part for Counted<P> {
    const SHIFT: u32 = P::SHIFT;
    const EMPTY: Self = Self { part: P::EMPTY, held: 0 };
    const FULL: Self = Self { part: P::FULL, held: P::PAGES };

    #[inline]
    fn len(&self) -> u32 {
        self.held
    }

    #[inline]
    fn is_all<S: State>(&self, around: u32) -> bool {
        self.part.is_all::<S>(around)
    }

    #[inline]
    fn any<S: State>(&self, span: Span) -> bool {
        self.part.any::<S>(span)
    }

    #[inline]
    fn mark<S: State>(&mut self, span: Span) -> u32 {
        let changed = self.part.mark::<S>(span);
        self.count::<S>(changed)
    }

    #[inline]
    fn mark_in_word<S: State>(&mut self, page: u32, mask: u64) -> Option<u32> {
        let changed = self.part.mark_in_word::<S>(page, mask)?;
        Some(self.count::<S>(changed))
    }

    #[inline]
    fn mark_leaf<S: State>(&mut self, page: u32) -> Option<u32> {
        let changed = self.part.mark_leaf::<S>(page)?;
        Some(self.count::<S>(changed))
    }

    #[inline]
    fn next<S: State>(&self, from: u32) -> Option<(u32, u64)> {
        self.part.next::<S>(from)
    }

    #[inline]
    fn prev<S: State>(&self, from: u32) -> Option<(u32, u64)> {
        self.part.prev::<S>(from)
    }

    #[inline]
    fn take_in_word(&mut self, max: u32) -> Option<Run> {
        let taken = self.part.take_in_word(max)?;
        self.count::<Missing>(taken.count);
        Some(taken)
    }

    fn absorb(&mut self, other: Self) -> u32 {
        let added = self.part.absorb(other.part);
        self.held += added;
        added
    }

    fn subtract(&mut self, other: &Self) -> u32 {
        let removed = self.part.subtract(&other.part);
        self.held -= removed;
        removed
    }

    fn whole_leaves(&self) -> Self {
        let part = self.part.whole_leaves();
        let held = part.len();
        Self { part, held }
    }
}

impl<P: Part> Counted<P> {
    /// Counts `changed` pages that were put in state `S`.
    #[inline]
    fn count<S: State>(&mut self, changed: u32) -> u32 {
        self.held = if S::HELD { self.held + changed } else { self.held - changed };
        changed
    }
}
