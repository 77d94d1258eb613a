//! An inner level of the tree: 64 children, of which only those that need it are stored.

use alloc::vec::Vec;

use super::bits::{above, between, bit, from_on, highest, ones};
use super::leaf::Leaf;
use super::part::Part;

/// The children of a node.
const CHILDREN: u32 = 64;

/// Up to this many stored children are kept in order, and found by counting bits. More of them are
/// kept each at its own number, which is faster and costs no more than a bit a page even where one
/// page in each child is all there is.
const ORDERED: usize = 16;

/// With this many stored children left they are kept in order again: less than before, as one
/// page that comes and goes must not move all others each time.
const ORDERED_AGAIN: u32 = 8;

/// A part of 64 parts. Children are empty, full or partial, and only partial ones are stored.
#[derive(Clone)]
pub(super) struct Node<P> {
    full: u64,
    partial: u64,
    /// The partial children; of 64, those that are not partial are [`Part::EMPTY`].
    parts: Vec<P>,
    len: u32,
}

impl<P: Part> Part for Node<P> {
    const SHIFT: u32 = P::SHIFT.wrapping_add(CHILDREN.trailing_zeros());
    const EMPTY: Self = Self { full: 0, partial: 0, parts: Vec::new(), len: 0 };
    const FULL: Self = Self { full: u64::MAX, partial: 0, parts: Vec::new(), len: Self::PAGES };

    #[inline]
    fn len(&self) -> u32 {
        self.len
    }

    #[inline]
    fn is_all<const IN: bool>(&self, _around: u32) -> bool {
        self.whole::<IN>() == u64::MAX
    }

    #[inline]
    fn any<const IN: bool>(&self, start: u32, end: u32) -> bool {
        let (first, last) = (child::<P>(start), child::<P>(end.wrapping_sub(1)));
        if first == last {
            return self.any_in_child::<IN>(first, offset::<P>(start), end_in::<P>(end));
        }
        let between = above(first) & !from_on(last);
        (self.whole::<IN>() | self.partial) & between != 0
            || self.any_in_child::<IN>(first, offset::<P>(start), P::PAGES)
            || self.any_in_child::<IN>(last, 0, end_in::<P>(end))
    }

    #[inline]
    fn put<const IN: bool>(&mut self, start: u32, end: u32) -> u32 {
        let (first, last) = (child::<P>(start), child::<P>(end.wrapping_sub(1)));
        let changed = if first == last {
            self.put_in_child::<IN>(first, offset::<P>(start), end_in::<P>(end))
        } else {
            self.put_over::<IN>(start, end)
        };
        self.count::<IN>(changed)
    }

    #[inline]
    fn put_quickly<const IN: bool, const LEAF: bool>(
        &mut self,
        page: u32,
        mask: u64,
    ) -> Option<u32> {
        let i = child::<P>(page);
        let Some(part) = self.part_mut(i) else {
            if self.whole::<IN>() & bit(i) != 0 {
                return Some(0);
            }
            return (LEAF && P::SHIFT == Leaf::SHIFT).then(|| {
                self.full ^= bit(i);
                self.count::<IN>(P::PAGES)
            });
        };
        let changed = part.put_quickly::<IN, LEAF>(offset::<P>(page), mask)?;
        if part.is_all::<IN>(offset::<P>(page)) {
            self.close::<IN>(i);
        }
        Some(self.count::<IN>(changed))
    }

    #[inline]
    fn next<const IN: bool>(&self, from: u32) -> Option<(u32, u64)> {
        let first = child::<P>(from);
        if self.whole::<IN>() & bit(first) != 0 {
            return Some((from, u64::MAX));
        }
        let in_first = self.part(first).and_then(|part| part.next::<IN>(offset::<P>(from)));
        if let Some((found, word)) = in_first {
            return Some((page::<P>(first, found), word));
        }
        let next = ones((self.whole::<IN>() | self.partial) & above(first)).next()?;
        let found = self.part(next).and_then(|part| part.next::<IN>(0));
        let (found, word) = found.unwrap_or((0, u64::MAX));
        Some((page::<P>(next, found), word))
    }

    #[inline]
    fn prev<const IN: bool>(&self, below: u32) -> Option<(u32, u64)> {
        let last = child::<P>(below.wrapping_sub(1));
        if self.whole::<IN>() & bit(last) != 0 {
            return Some((below.wrapping_sub(1), u64::MAX));
        }
        let in_last = self.part(last).and_then(|part| part.prev::<IN>(end_in::<P>(below)));
        if let Some((found, word)) = in_last {
            return Some((page::<P>(last, found), word));
        }
        let prev = highest((self.whole::<IN>() | self.partial) & !from_on(last))?;
        let found = self.part(prev).and_then(|part| part.prev::<IN>(P::PAGES));
        let (found, word) = found.unwrap_or((P::PAGES.wrapping_sub(1), u64::MAX));
        Some((page::<P>(prev, found), word))
    }

    #[inline]
    fn take_in_word(&mut self, max: u32) -> Option<(u32, u32)> {
        let last = highest(self.full | self.partial)?;
        let part = if self.partial & bit(last) == 0 {
            None
        } else if self.is_spread() {
            self.parts.get_mut(last as usize)
        } else {
            // No need to count the others below it.
            self.parts.last_mut()
        };
        let part = part?;
        let (start, taken) = part.take_in_word(max)?;
        if part.is_all::<false>(start) {
            self.close::<false>(last);
        }
        Some((page::<P>(last, start), self.count::<false>(taken)))
    }

    fn absorb(&mut self, mut other: Self) -> u32 {
        let mut added = self.put_whole::<true>(other.full);
        for i in ones(other.partial & !self.full) {
            let Some(theirs) = other.part_mut(i).map(|part| core::mem::replace(part, P::EMPTY))
            else {
                break;
            };
            let new = match self.part_mut(i) {
                Some(part) => part.absorb(theirs),
                None => {
                    let new = theirs.len();
                    self.open(i, theirs);
                    new
                }
            };
            self.close_if_all::<true>(i);
            added = added.wrapping_add(new);
        }
        self.count::<true>(added)
    }

    fn subtract(&mut self, other: &Self) -> u32 {
        let mut removed = self.put_whole::<false>(other.full);
        for i in ones(other.partial & (self.full | self.partial)) {
            let Some(theirs) = other.part(i) else { break };
            if self.full & bit(i) != 0 {
                self.open(i, P::FULL);
            }
            let old = self.part_mut(i).map_or(0, |part| part.subtract(theirs));
            self.close_if_all::<false>(i);
            removed = removed.wrapping_add(old);
        }
        self.count::<false>(removed)
    }

    fn whole_leaves(&self) -> Self {
        let len = self.full.count_ones().wrapping_mul(P::PAGES);
        let mut whole = Self { full: self.full, len, ..Self::EMPTY };
        for (i, part) in self.partial_children() {
            let leaves = part.whole_leaves();
            if !leaves.is_all::<false>(0) {
                whole.len = whole.len.wrapping_add(leaves.len());
                whole.open(i, leaves);
            }
        }
        whole
    }
}

impl<P: Part> PartialEq for Node<P> {
    fn eq(&self, other: &Self) -> bool {
        self.full == other.full
            && self.partial == other.partial
            && self.partial_children().eq(other.partial_children())
    }
}

/// Changes.
impl<P: Part> Node<P> {
    #[inline]
    fn put_in_child<const IN: bool>(&mut self, i: u32, start: u32, end: u32) -> u32 {
        if self.partial & bit(i) == 0 {
            if self.whole::<IN>() & bit(i) != 0 {
                return 0;
            }
            if end.wrapping_sub(start) == P::PAGES {
                self.full ^= bit(i);
                return P::PAGES;
            }
            self.open(i, if IN { P::EMPTY } else { P::FULL });
        } else if end.wrapping_sub(start) == P::PAGES {
            return self.put_whole::<IN>(bit(i));
        }
        let Some(part) = self.part_mut(i) else { return 0 };
        let changed = part.put::<IN>(start, end);
        if part.is_all::<IN>(start) {
            self.close::<IN>(i);
        }
        changed
    }

    /// A put that is more than a piece of one child.
    #[inline(never)]
    fn put_over<const IN: bool>(&mut self, start: u32, end: u32) -> u32 {
        let (mut first, past) = (child::<P>(start), child::<P>(end));
        let mut changed = 0u32;
        if offset::<P>(start) != 0 {
            changed = self.put_in_child::<IN>(first, offset::<P>(start), P::PAGES);
            first = first.wrapping_add(1);
        }
        if offset::<P>(end) != 0 {
            let in_last = self.put_in_child::<IN>(past, 0, offset::<P>(end));
            changed = changed.wrapping_add(in_last);
        }
        if first < past {
            changed = changed.wrapping_add(self.put_whole::<IN>(between(first, past)));
        }
        changed
    }

    /// Puts all pages of the children in `mask`.
    fn put_whole<const IN: bool>(&mut self, mask: u64) -> u32 {
        let whole = mask & self.whole::<IN>();
        let mut there = whole.count_ones().wrapping_mul(P::PAGES);
        for i in ones(mask & self.partial) {
            let held = self.part(i).map_or(0, P::len);
            there = there.wrapping_add(if IN { held } else { P::PAGES.wrapping_sub(held) });
            self.close::<IN>(i);
        }
        self.full = if IN { self.full | mask } else { self.full & !mask };
        mask.count_ones().wrapping_mul(P::PAGES).wrapping_sub(there)
    }

    #[inline]
    fn count<const IN: bool>(&mut self, changed: u32) -> u32 {
        self.len = if IN { self.len.wrapping_add(changed) } else { self.len.wrapping_sub(changed) };
        changed
    }

    /// Stores child `i`, which is none of the stored ones.
    #[inline(never)]
    fn open(&mut self, i: u32, part: P) {
        if self.parts.len() == ORDERED {
            self.spread();
        }
        let slot = self.slot(i);
        if self.is_spread() {
            if let Some(place) = self.parts.get_mut(slot) {
                *place = part;
            }
        } else {
            // Most nodes have no more than one, and a vector would start with room for four.
            if self.parts.is_empty() {
                self.parts.reserve_exact(1);
            }
            self.parts.insert(slot.min(self.parts.len()), part);
        }
        self.partial |= bit(i);
        self.full &= !bit(i);
    }

    /// Drops stored child `i`, all of whose pages are in the set now, or none.
    #[inline(never)]
    fn close<const IN: bool>(&mut self, i: u32) {
        let slot = self.slot(i);
        self.partial &= !bit(i);
        if IN {
            self.full |= bit(i);
        }
        if self.partial == 0 {
            self.parts = Vec::new();
        } else if !self.is_spread() {
            self.parts.remove(slot);
        } else if self.partial.count_ones() == ORDERED_AGAIN {
            self.gather();
        } else if let Some(place) = self.parts.get_mut(slot) {
            *place = P::EMPTY;
        }
    }

    fn close_if_all<const IN: bool>(&mut self, i: u32) {
        if self.part(i).is_some_and(|part| part.is_all::<IN>(0)) {
            self.close::<IN>(i);
        }
    }

    /// Gives each child the place of its number.
    fn spread(&mut self) {
        let mut stored = core::mem::take(&mut self.parts).into_iter();
        let mut spread = Vec::with_capacity(CHILDREN as usize);
        for i in 0..CHILDREN {
            let part = if self.partial & bit(i) == 0 { None } else { stored.next() };
            spread.push(part.unwrap_or(P::EMPTY));
        }
        self.parts = spread;
    }

    /// Stores partial children only, in order.
    fn gather(&mut self) {
        let spread = core::mem::take(&mut self.parts);
        let mut stored = Vec::with_capacity(ORDERED_AGAIN as usize);
        stored.extend(
            (0..).zip(spread).filter(|(i, _)| self.partial & bit(*i) != 0).map(|(_, part)| part),
        );
        self.parts = stored;
    }
}

/// Looks.
impl<P: Part> Node<P> {
    /// The children all of whose pages are in the set, or none of whose.
    #[inline]
    const fn whole<const IN: bool>(&self) -> u64 {
        if IN { self.full } else { !(self.full | self.partial) }
    }

    #[inline]
    fn any_in_child<const IN: bool>(&self, i: u32, start: u32, end: u32) -> bool {
        match self.part(i) {
            Some(part) => part.any::<IN>(start, end),
            None => self.whole::<IN>() & bit(i) != 0,
        }
    }

    /// Whether each child has the place of its number.
    #[inline]
    const fn is_spread(&self) -> bool {
        self.parts.len() > ORDERED
    }

    /// The place of child `i` among the stored ones.
    #[inline]
    const fn slot(&self, i: u32) -> usize {
        let slot = if self.is_spread() { i } else { (self.partial & !from_on(i)).count_ones() };
        slot as usize
    }

    #[inline]
    fn part(&self, i: u32) -> Option<&P> {
        if self.partial & bit(i) == 0 { None } else { self.parts.get(self.slot(i)) }
    }

    #[inline]
    fn part_mut(&mut self, i: u32) -> Option<&mut P> {
        if self.partial & bit(i) == 0 {
            return None;
        }
        let slot = self.slot(i);
        self.parts.get_mut(slot)
    }

    fn partial_children(&self) -> impl Iterator<Item = (u32, &P)> {
        ones(self.partial).filter_map(|i| Some((i, self.part(i)?)))
    }
}

/// The child that has `page`.
#[inline]
const fn child<P: Part>(page: u32) -> u32 {
    page >> P::SHIFT
}

/// The number `page` has in its child.
#[inline]
const fn offset<P: Part>(page: u32) -> u32 {
    page & P::PAGES.wrapping_sub(1)
}

/// The end of a range in the child that has its last page.
#[inline]
const fn end_in<P: Part>(end: u32) -> u32 {
    offset::<P>(end.wrapping_sub(1)).wrapping_add(1)
}

/// Page `offset` of child `i`.
#[inline]
const fn page<P: Part>(i: u32, offset: u32) -> u32 {
    (i << P::SHIFT) | offset
}
