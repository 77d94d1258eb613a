//! The top of the tree: those parts of the address space that have a page in the set.

use alloc::vec::Vec;
use core::ops::Range;

use super::bits::{WORD_MASK, from_on, low, up_to};
use super::leaf::Leaf;
use super::node::Node;
use super::part::Part;
use crate::Gpfn;

/// 8 GiB of pages.
type Tree = Node<Node<Leaf>>;

const PAGES: u64 = Tree::PAGES as u64;

/// The pages of a leaf.
pub(super) const LEAF: u64 = Leaf::PAGES as u64;

/// Room that is kept for chunks although there are fewer: a set that is filled and emptied in turns
/// need not allocate each time.
const SPARE: usize = 16;

/// Pages of the whole address space. A far page costs a chunk, a block and a leaf, wherever it is.
#[derive(Clone)]
pub(super) struct Chunks {
    /// The chunks that are not empty, lowest first.
    chunks: Vec<Chunk>,
    /// Where one was searched for last: guests give neighbouring pages one after another.
    recent: usize,
}

#[derive(Clone, PartialEq)]
struct Chunk {
    number: u64,
    pages: Tree,
}

impl PartialEq for Chunks {
    fn eq(&self, other: &Self) -> bool {
        self.chunks == other.chunks
    }
}

impl Chunks {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), recent: 0 }
    }

    /// The number of pages.
    pub(super) fn len(&self) -> u64 {
        pages(&self.chunks)
    }

    /// Whether any page from `start` up to `end` is in the set, or any is not.
    #[inline]
    pub(super) fn any<const IN: bool>(&self, start: u64, end: u64) -> bool {
        let (first, last) = (number(start), number(end.wrapping_sub(1)));
        if first == last {
            return self.any_in::<IN>(first, offset(start), end_in(end));
        }
        let between = self.position(first.wrapping_add(1))..self.position(last);
        let chunks = self.chunks.get(between.clone()).unwrap_or_default();
        let any_between = if IN {
            !chunks.is_empty()
        } else {
            chunks.len() as u64 != last.wrapping_sub(first).wrapping_sub(1)
                || chunks.iter().any(|chunk| !chunk.pages.is_all::<true>(0))
        };
        any_between
            || self.any_in::<IN>(first, offset(start), Tree::PAGES)
            || self.any_in::<IN>(last, 0, end_in(end))
    }

    /// Makes the pages from `start` up to `end` members, or not; says for how many that is new.
    #[inline]
    pub(super) fn put<const IN: bool>(&mut self, start: u64, end: u64) -> u64 {
        let last = end.wrapping_sub(1);
        let quick = if (start ^ last) <= WORD_MASK {
            let mask = from_on(low(start)) & up_to(low(last));
            self.put_quickly::<IN, false>(start, mask)
        } else if end.wrapping_sub(start) == LEAF && start & LEAF.wrapping_sub(1) == 0 {
            self.put_quickly::<IN, true>(start, 0)
        } else {
            None
        };
        if let Some(changed) = quick {
            return u64::from(changed);
        }
        self.put_any::<IN>(start, end)
    }

    /// The first page from `from` on that is in the set, or is not, and a bit for each of the 64
    /// around it, aligned, that are so too. `None` where there is none in any chunk.
    #[inline]
    pub(super) fn next<const IN: bool>(&self, from: u64) -> Option<(u64, u64)> {
        let mut from = from;
        let mut position = self.position(number(from));
        loop {
            let chunk = self.chunks.get(position);
            let Some(chunk) = chunk.filter(|chunk| IN || chunk.number == number(from)) else {
                return (!IN).then_some((from, u64::MAX));
            };
            from = from.max(page(chunk.number, 0));
            if let Some((found, word)) = chunk.pages.next::<IN>(offset(from)) {
                return Some((page(chunk.number, found), word));
            }
            from = page(chunk.number.wrapping_add(1), 0);
            position = position.wrapping_add(1);
        }
    }

    /// The same for the last page below `below`. `None` where there is none from `least` on; it may
    /// be below `least` all the same.
    #[inline]
    pub(super) fn prev<const IN: bool>(&self, least: u64, below: u64) -> Option<(u64, u64)> {
        let mut last = below.checked_sub(1)?;
        let mut past = self.find(number(last)).map_or_else(|i| i, |i| i.wrapping_add(1));
        loop {
            let chunk = past.checked_sub(1).and_then(|i| self.chunks.get(i));
            let Some(chunk) = chunk.filter(|chunk| IN || chunk.number == number(last)) else {
                return (!IN).then_some((last, u64::MAX));
            };
            last = last.min(page(chunk.number, Tree::PAGES.wrapping_sub(1)));
            if let Some((found, word)) = chunk.pages.prev::<IN>(end_in(last.wrapping_add(1))) {
                return Some((page(chunk.number, found), word));
            }
            last = page(chunk.number, 0).checked_sub(1).filter(|&last| last >= least)?;
            past = past.wrapping_sub(1);
        }
    }

    /// Takes the last pages that neighbour each other, at most `max`: from where to where.
    #[inline]
    pub(super) fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let last = self.chunks.last_mut()?;
        let in_chunk = u32::try_from(max).unwrap_or(u32::MAX);
        let Some((start, taken)) = last.pages.take_in_word(in_chunk) else {
            return self.take_run(max);
        };
        let start = page(last.number, start);
        if last.pages.is_all::<false>(0) {
            self.drop_chunk(self.chunks.len().wrapping_sub(1));
        }
        Some((start, start.wrapping_add(u64::from(taken))))
    }

    /// The same for any number of pages.
    #[inline(never)]
    fn take_run(&mut self, max: u64) -> Option<(u64, u64)> {
        let end = self.prev::<true>(0, Gpfn::MAX.get())?.0.wrapping_add(1);
        let least = end.saturating_sub(max);
        let before = self.prev::<false>(least, end);
        let start = before.map_or(0, |(before, _)| before.wrapping_add(1)).max(least);
        if start < end {
            self.put::<false>(start, end);
        }
        Some((start, end))
    }

    /// Adds the pages of `other` and says how many were new.
    pub(super) fn absorb(&mut self, other: Self) -> u64 {
        other.chunks.into_iter().fold(0, |added, theirs| {
            let new = match self.find(theirs.number) {
                Ok(i) => self.chunks.get_mut(i).map_or(0, |ours| ours.pages.absorb(theirs.pages)),
                Err(i) => {
                    let new = theirs.pages.len();
                    self.chunks.insert(i, theirs);
                    new
                }
            };
            added.wrapping_add(u64::from(new))
        })
    }

    /// Takes the pages of `other` out and says how many there were.
    pub(super) fn subtract(&mut self, other: &Self) -> u64 {
        let removed = other.chunks.iter().fold(0u64, |removed, theirs| {
            let ours = self.find(theirs.number).ok().and_then(|i| self.chunks.get_mut(i));
            let old = ours.map_or(0, |ours| ours.pages.subtract(&theirs.pages));
            removed.wrapping_add(u64::from(old))
        });
        self.chunks.retain(|chunk| !chunk.pages.is_all::<false>(0));
        self.give_back();
        removed
    }

    /// The whole leaves of the set, without the pages of partial ones.
    pub(super) fn whole_leaves(&self) -> Self {
        let whole = self
            .chunks
            .iter()
            .map(|chunk| Chunk { number: chunk.number, pages: chunk.pages.whole_leaves() });
        let chunks = whole.filter(|chunk| !chunk.pages.is_all::<false>(0)).collect();
        Self { chunks, recent: 0 }
    }

    #[inline]
    fn any_in<const IN: bool>(&self, number: u64, start: u32, end: u32) -> bool {
        self.tree(number).map_or(!IN, |tree| tree.any::<IN>(start, end))
    }

    #[inline]
    fn put_in<const IN: bool>(&mut self, number: u64, start: u32, end: u32) -> u64 {
        let i = match self.find(number) {
            Ok(i) => i,
            Err(_) if !IN => return 0,
            Err(i) => {
                self.chunks.insert(i, Chunk { number, pages: Tree::EMPTY });
                i
            }
        };
        self.recent = i;
        let Some(chunk) = self.chunks.get_mut(i) else { return 0 };
        let changed = chunk.pages.put::<IN>(start, end);
        if !IN && chunk.pages.is_all::<false>(0) {
            self.drop_chunk(i);
        }
        u64::from(changed)
    }

    /// See [`Part::put_quickly`].
    #[inline]
    fn put_quickly<const IN: bool, const LEAF: bool>(
        &mut self,
        page: u64,
        mask: u64,
    ) -> Option<u32> {
        let i = self.guess(number(page))?;
        let chunk = self.chunks.get_mut(i)?;
        let changed = chunk.pages.put_quickly::<IN, LEAF>(offset(page), mask)?;
        if !IN && chunk.pages.is_all::<false>(0) {
            self.drop_chunk(i);
        }
        Some(changed)
    }

    /// A put of any pages.
    #[inline(never)]
    fn put_any<const IN: bool>(&mut self, start: u64, end: u64) -> u64 {
        let (first, last) = (number(start), number(end.wrapping_sub(1)));
        if first == last {
            return self.put_in::<IN>(first, offset(start), end_in(end));
        }
        self.put_over::<IN>(start, end)
    }

    /// A put in more than one chunk.
    #[inline(never)]
    fn put_over<const IN: bool>(&mut self, start: u64, end: u64) -> u64 {
        let (mut first, past) = (number(start), number(end));
        let mut changed = 0u64;
        if offset(start) != 0 {
            changed = self.put_in::<IN>(first, offset(start), Tree::PAGES);
            first = first.wrapping_add(1);
        }
        if offset(end) != 0 {
            changed = changed.wrapping_add(self.put_in::<IN>(past, 0, offset(end)));
        }
        changed.wrapping_add(self.put_whole::<IN>(first..past))
    }

    /// Puts all pages of some chunks.
    fn put_whole<const IN: bool>(&mut self, numbers: Range<u64>) -> u64 {
        let places = self.position(numbers.start)..self.position(numbers.end);
        let held = pages(self.chunks.get(places.clone()).unwrap_or_default());
        if IN {
            let pages = numbers.end.saturating_sub(numbers.start).wrapping_mul(PAGES);
            let full = numbers.map(|number| Chunk { number, pages: Tree::FULL });
            self.chunks.splice(places, full);
            pages.wrapping_sub(held)
        } else {
            self.chunks.drain(places);
            self.give_back();
            held
        }
    }

    #[inline(never)]
    fn drop_chunk(&mut self, i: usize) {
        self.chunks.remove(i);
        self.give_back();
    }

    /// Frees room that is not used.
    fn give_back(&mut self) {
        let used = self.chunks.len().max(SPARE);
        if self.chunks.capacity() / 4 >= used {
            self.chunks.shrink_to(used);
        }
    }

    #[inline]
    fn tree(&self, number: u64) -> Option<&Tree> {
        let i = self.find(number).ok()?;
        self.chunks.get(i).map(|chunk| &chunk.pages)
    }

    /// The place of a chunk, or the one it would have.
    #[inline]
    fn find(&self, number: u64) -> Result<usize, usize> {
        self.guess(number).map_or_else(|| self.search(number), Ok)
    }

    /// The place of a chunk if it is where it is as a rule: most guests have no gaps of this size
    /// in their RAM, or else one range in a chunk follows another.
    #[inline]
    fn guess(&self, number: u64) -> Option<usize> {
        let first = self.chunks.first()?.number;
        let there = usize::try_from(number.wrapping_sub(first)).ok()?;
        let is_at = |place: usize| self.chunks.get(place).is_some_and(|at| at.number == number);
        if is_at(there) { Some(there) } else { is_at(self.recent).then_some(self.recent) }
    }

    #[inline(never)]
    fn search(&self, number: u64) -> Result<usize, usize> {
        self.chunks.binary_search_by_key(&number, |chunk| chunk.number)
    }

    /// The place of the first chunk from `number` on.
    #[inline]
    fn position(&self, number: u64) -> usize {
        self.find(number).unwrap_or_else(|place| place)
    }
}

fn pages(chunks: &[Chunk]) -> u64 {
    chunks.iter().fold(0, |sum, chunk| sum.wrapping_add(u64::from(chunk.pages.len())))
}

/// The chunk that has `page`.
#[inline]
const fn number(page: u64) -> u64 {
    page >> Tree::SHIFT
}

/// The number `page` has in its chunk.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "masked: a chunk has less than 2^32 pages")]
const fn offset(page: u64) -> u32 {
    page as u32 & Tree::PAGES.wrapping_sub(1)
}

/// The end of a range in the chunk that has its last page.
#[inline]
const fn end_in(end: u64) -> u32 {
    offset(end.wrapping_sub(1)).wrapping_add(1)
}

/// Page `offset` of a chunk.
#[inline]
const fn page(number: u64, offset: u32) -> u64 {
    (number << Tree::SHIFT) | offset as u64
}
