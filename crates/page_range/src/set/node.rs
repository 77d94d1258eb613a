//! An inner level of the tree: 64 children, of which only those are stored that have some pages in
//! the set and some that are not.
#![expect(clippy::arithmetic_side_effects, reason = "pages of a node; see the set's module head")]

use super::bits::{Bit, highest, lowest, ones};
use super::children::Children;
use super::leaf::Leaf;
use super::part::{Part, Run, Span};
use super::state::{Held, Missing, State};

/// 64 parts. Each child is full, stored or empty.
#[derive(Clone, PartialEq)]
pub(super) struct Node<P: Part> {
    /// A bit for each child whose pages are all in the set. None of these is stored.
    full: u64,
    /// The children with pages in both states.
    children: Children<P>,
}

impl<P: Part> Part for Node<P> {
    const SHIFT: u32 = P::SHIFT + u64::BITS.trailing_zeros();
    const EMPTY: Self = Self { full: 0, children: Children::NONE };
    const FULL: Self = Self { full: u64::MAX, children: Children::NONE };

    #[inline]
    fn len(&self) -> u32 {
        // Most chunks of a large set are full.
        if self.full == u64::MAX { Self::PAGES } else { self.count() }
    }

    #[inline]
    fn is_all<S: State>(&self, _around: u32) -> bool {
        self.whole::<S>() == u64::MAX
    }

    #[inline]
    fn any<S: State>(&self, span: Span) -> bool {
        let (first, last) = (child::<P>(span.first), child::<P>(span.last));
        let (from, to) = ends::<P>(span);
        if first == last {
            return self.any_in_child::<S>(first, Span { first: from, last: to });
        }
        let between = first.above() & last.below();
        (self.whole::<S>() | self.children.stored()) & between != 0
            || self.any_in_child::<S>(first, Span { first: from, last: P::LAST })
            || self.any_in_child::<S>(last, Span { first: 0, last: to })
    }

    #[inline]
    fn mark<S: State>(&mut self, span: Span) -> u32 {
        let (first, last) = (child::<P>(span.first), child::<P>(span.last));
        if first == last {
            let (from, to) = ends::<P>(span);
            self.mark_in_child::<S>(first, Span { first: from, last: to })
        } else {
            self.mark_across::<S>(span)
        }
    }

    #[inline]
    fn mark_in_word<S: State>(&mut self, page: u32, mask: u64) -> Option<u32> {
        let i = child::<P>(page);
        let Some(part) = self.children.get_mut(i) else {
            return i.is_in(self.whole::<S>()).then_some(0);
        };
        let changed = part.mark_in_word::<S>(offset::<P>(page), mask)?;
        if part.is_all::<S>(offset::<P>(page)) {
            self.close::<S>(i);
        }
        Some(changed)
    }

    #[inline]
    fn mark_leaf<S: State>(&mut self, page: u32) -> Option<u32> {
        let i = child::<P>(page);
        let Some(part) = self.children.get_mut(i) else {
            if i.is_in(self.whole::<S>()) {
                return Some(0);
            }
            return (P::SHIFT == Leaf::SHIFT).then(|| {
                self.full ^= i.alone();
                P::PAGES
            });
        };
        let changed = part.mark_leaf::<S>(offset::<P>(page))?;
        if part.is_all::<S>(offset::<P>(page)) {
            self.close::<S>(i);
        }
        Some(changed)
    }

    #[inline]
    fn next<S: State>(&self, from: u32) -> Option<(u32, u64)> {
        let first = child::<P>(from);
        if first.is_in(self.whole::<S>()) {
            return Some((from, u64::MAX));
        }
        let in_first = self.children.get(first).and_then(|part| part.next::<S>(offset::<P>(from)));
        if let Some((found, word)) = in_first {
            return Some((page::<P>(first, found), word));
        }
        let next = lowest((self.whole::<S>() | self.children.stored()) & first.above())?;
        let found = self.children.get(next).and_then(|part| part.next::<S>(0));
        let (found, word) = found.unwrap_or((0, u64::MAX));
        Some((page::<P>(next, found), word))
    }

    #[inline]
    fn prev<S: State>(&self, from: u32) -> Option<(u32, u64)> {
        let last = child::<P>(from);
        if last.is_in(self.whole::<S>()) {
            return Some((from, u64::MAX));
        }
        let in_last = self.children.get(last).and_then(|part| part.prev::<S>(offset::<P>(from)));
        if let Some((found, word)) = in_last {
            return Some((page::<P>(last, found), word));
        }
        let prev = highest((self.whole::<S>() | self.children.stored()) & last.below())?;
        let found = self.children.get(prev).and_then(|part| part.prev::<S>(P::LAST));
        let (found, word) = found.unwrap_or((P::LAST, u64::MAX));
        Some((page::<P>(prev, found), word))
    }

    #[inline]
    fn take_in_word(&mut self, max: u32) -> Option<Run> {
        // No child is both full and stored, so the larger mask has the higher child; equal masks
        // are both zero.
        if self.full >= self.children.stored() {
            return None;
        }
        let (i, part) = self.children.last_mut()?;
        let taken = part.take_in_word(max)?;
        if part.is_all::<Missing>(taken.first) {
            self.close::<Missing>(i);
        }
        Some(Run { first: page::<P>(i, taken.first), count: taken.count })
    }

    fn absorb(&mut self, other: Self) -> u32 {
        let mut added = self.mark_whole::<Held>(other.full);
        for (i, theirs) in other.children.into_iter() {
            if i.is_in(self.full) {
                continue;
            }
            added += match self.children.get_mut(i) {
                Some(ours) => ours.absorb(theirs),
                None => {
                    let new = theirs.len();
                    self.open(i, theirs);
                    new
                }
            };
            self.close_if_all::<Held>(i);
        }
        added
    }

    fn subtract(&mut self, other: &Self) -> u32 {
        let mut removed = self.mark_whole::<Missing>(other.full);
        for (i, theirs) in other.children.iter() {
            if i.is_in(self.full) {
                self.open(i, P::FULL);
            }
            removed += self.children.get_mut(i).map_or(0, |ours| ours.subtract(theirs));
            self.close_if_all::<Missing>(i);
        }
        removed
    }

    fn whole_leaves(&self) -> Self {
        let mut whole = Self { full: self.full, ..Self::EMPTY };
        for (i, part) in self.children.iter() {
            let leaves = part.whole_leaves();
            if !leaves.is_all::<Missing>(0) {
                whole.open(i, leaves);
            }
        }
        whole
    }
}

/// Changes.
impl<P: Part> Node<P> {
    #[inline]
    fn mark_in_child<S: State>(&mut self, i: Bit, span: Span) -> u32 {
        if !i.is_in(self.children.stored()) {
            if i.is_in(self.whole::<S>()) {
                return 0;
            }
            if span == P::WHOLE {
                self.full ^= i.alone();
                return P::PAGES;
            }
            self.open(i, if S::HELD { P::EMPTY } else { P::FULL });
        } else if span == P::WHOLE {
            return self.mark_whole::<S>(i.alone());
        }
        let Some(part) = self.children.get_mut(i) else { return 0 };
        let changed = part.mark::<S>(span);
        if part.is_all::<S>(span.first) {
            self.close::<S>(i);
        }
        changed
    }

    /// [`Node::mark_in_child`] for a span that touches several children.
    #[inline(never)]
    fn mark_across<S: State>(&mut self, span: Span) -> u32 {
        let (first, last) = (child::<P>(span.first), child::<P>(span.last));
        let (from, to) = ends::<P>(span);
        let mut whole = first.and_above() & last.and_below();
        let mut changed = 0;
        if from != 0 {
            whole &= !first.alone();
            changed += self.mark_in_child::<S>(first, Span { first: from, last: P::LAST });
        }
        if to != P::LAST {
            whole &= !last.alone();
            changed += self.mark_in_child::<S>(last, Span { first: 0, last: to });
        }
        if whole != 0 {
            changed += self.mark_whole::<S>(whole);
        }
        changed
    }

    /// Puts all pages of the children in `mask` in state `S`.
    fn mark_whole<S: State>(&mut self, mask: u64) -> u32 {
        let mask = mask & !self.whole::<S>();
        let mut changed = mask.count_ones() * P::PAGES;
        for i in ones(mask & self.children.stored()) {
            let held = self.children.get(i).map_or(0, P::len);
            changed -= if S::HELD { held } else { P::PAGES - held };
            self.close::<S>(i);
        }
        self.full = if S::HELD { self.full | mask } else { self.full & !mask };
        changed
    }

    /// Stores child `i`, which must not be stored yet.
    #[inline]
    fn open(&mut self, i: Bit, part: P) {
        self.children.insert(i, part);
        self.full &= !i.alone();
    }

    /// Drops the stored child `i`, whose pages are now all in state `S`.
    #[inline(never)]
    fn close<S: State>(&mut self, i: Bit) {
        self.children.remove(i);
        if S::HELD {
            self.full |= i.alone();
        }
    }

    fn close_if_all<S: State>(&mut self, i: Bit) {
        if self.children.get(i).is_some_and(|part| part.is_all::<S>(0)) {
            self.close::<S>(i);
        }
    }
}

/// Lookups.
impl<P: Part> Node<P> {
    /// The children whose pages are all in state `S`.
    #[inline]
    fn whole<S: State>(&self) -> u64 {
        if S::HELD { self.full } else { !(self.full | self.children.stored()) }
    }

    /// Counts the pages that are in the set.
    #[inline(never)]
    fn count(&self) -> u32 {
        let stored: u32 = self.children.iter().map(|(_, part)| part.len()).sum();
        self.full.count_ones() * P::PAGES + stored
    }

    #[inline]
    fn any_in_child<S: State>(&self, i: Bit, span: Span) -> bool {
        match self.children.get(i) {
            Some(part) => part.any::<S>(span),
            None => i.is_in(self.whole::<S>()),
        }
    }
}

/// The child that has `page`.
#[inline]
const fn child<P: Part>(page: u32) -> Bit {
    Bit::of(page >> P::SHIFT)
}

/// The number of `page` in its child.
#[inline]
const fn offset<P: Part>(page: u32) -> u32 {
    page & P::LAST
}

/// The numbers of the first and the last page of `span`, each in its own child.
#[inline]
const fn ends<P: Part>(span: Span) -> (u32, u32) {
    (offset::<P>(span.first), offset::<P>(span.last))
}

/// Page `offset` of child `i`.
#[inline]
const fn page<P: Part>(i: Bit, offset: u32) -> u32 {
    (i.get() << P::SHIFT) | offset
}
