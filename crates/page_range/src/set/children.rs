//! The stored children of a node.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "at most 64 children; see the set's module head"
)]

use alloc::vec::Vec;

use super::bits::{Bit, highest, ones};
use super::part::Part;

/// The children of a node.
const CHILDREN: usize = 64;

/// Up to this many children are kept in order and found by counting bits. More than that are each
/// kept at the index of their number, which is faster, and costs no more than a bit for each page
/// even if each child has only one page.
const ORDERED: usize = 16;

/// Once this few children are left, they are kept in order again. This is below [`ORDERED`] so that
/// a single page that comes and goes does not move all children each time.
const ORDERED_AGAIN: u32 = 8;

/// Those of 64 children that have to be stored.
#[derive(Clone)]
pub(super) struct Children<P> {
    /// A bit for each stored child.
    stored: u64,
    /// The stored children in order; or, when *spread*, all 64, with [`Part::EMPTY`] for those that
    /// are not stored.
    parts: Vec<P>,
}

impl<P: Part> Children<P> {
    pub(super) const NONE: Self = Self { stored: 0, parts: Vec::new() };

    /// A bit for each stored child.
    #[inline]
    pub(super) const fn stored(&self) -> u64 {
        self.stored
    }

    /// Child `i`, if it is stored.
    #[inline]
    pub(super) fn get(&self, i: Bit) -> Option<&P> {
        if i.is_in(self.stored) { self.parts.get(self.index(i)) } else { None }
    }

    /// Child `i`, if it is stored.
    #[inline]
    pub(super) fn get_mut(&mut self, i: Bit) -> Option<&mut P> {
        if !i.is_in(self.stored) {
            return None;
        }
        let index = self.index(i);
        self.parts.get_mut(index)
    }

    /// The stored child with the highest number.
    #[inline]
    pub(super) fn last_mut(&mut self) -> Option<(Bit, &mut P)> {
        let last = highest(self.stored)?;
        let part = if self.is_spread() {
            self.parts.get_mut(last.get() as usize)
        } else {
            // No need to count the children below it.
            self.parts.last_mut()
        };
        part.map(|part| (last, part))
    }

    /// The stored children, lowest number first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Bit, &P)> {
        ones(self.stored).filter_map(|i| Some((i, self.get(i)?)))
    }

    /// The stored children, lowest number first.
    pub(super) fn into_iter(self) -> impl Iterator<Item = (Bit, P)> {
        let spread = self.is_spread();
        let mut parts = self.parts.into_iter();
        let mut next = 0;
        ones(self.stored).filter_map(move |i| {
            let skipped = if spread { i.get() - next } else { 0 };
            next = i.get() + 1;
            Some((i, parts.nth(skipped as usize)?))
        })
    }

    /// Stores child `i`, which must not be stored yet.
    #[inline(never)]
    pub(super) fn insert(&mut self, i: Bit, part: P) {
        if self.parts.len() == ORDERED {
            self.spread();
        }
        let index = self.index(i);
        if self.is_spread() {
            if let Some(place) = self.parts.get_mut(index) {
                *place = part;
            }
        } else {
            // Most nodes store at most one child, but a vector would start with room for four.
            if self.parts.is_empty() {
                self.parts.reserve_exact(1);
            }
            self.parts.insert(index.min(self.parts.len()), part);
        }
        self.stored |= i.alone();
    }

    /// Drops child `i`, which must be stored.
    #[inline]
    pub(super) fn remove(&mut self, i: Bit) {
        let index = self.index(i);
        self.stored &= !i.alone();
        if self.stored == 0 {
            self.parts = Vec::new();
        } else if !self.is_spread() {
            self.parts.remove(index);
        } else if self.stored.count_ones() == ORDERED_AGAIN {
            self.gather();
        } else if let Some(place) = self.parts.get_mut(index) {
            *place = P::EMPTY;
        }
    }

    /// Moves each child to the index of its number.
    fn spread(&mut self) {
        let mut ordered = core::mem::take(&mut self.parts).into_iter();
        let mut spread = Vec::with_capacity(CHILDREN);
        for i in (0..).map(Bit::of).take(CHILDREN) {
            let part = if i.is_in(self.stored) { ordered.next() } else { None };
            spread.push(part.unwrap_or(P::EMPTY));
        }
        self.parts = spread;
    }

    /// Keeps only the stored children, in order.
    fn gather(&mut self) {
        let mut ordered = Vec::with_capacity(ORDERED_AGAIN as usize);
        let spread = core::mem::replace(self, Self::NONE);
        self.stored = spread.stored;
        ordered.extend(spread.into_iter().map(|(_, part)| part));
        self.parts = ordered;
    }

    /// Whether each child is at the index of its number.
    #[inline]
    const fn is_spread(&self) -> bool {
        self.parts.len() > ORDERED
    }

    /// The index of child `i`, or the one it would have.
    #[inline]
    const fn index(&self, i: Bit) -> usize {
        let index = if self.is_spread() { i.get() } else { (self.stored & i.below()).count_ones() };
        index as usize
    }
}

impl<P: Part> PartialEq for Children<P> {
    fn eq(&self, other: &Self) -> bool {
        // One may be spread and the other in order.
        self.stored == other.stored && self.iter().eq(other.iter())
    }
}
