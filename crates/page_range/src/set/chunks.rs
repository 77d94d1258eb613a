//! The top of the tree: the chunks of the address space that have pages in the set.
#![expect(clippy::arithmetic_side_effects, reason = "pages up to 2^40; see the set's module head")]

use alloc::vec::Vec;
use core::ops::Range;

use super::bits::{Bit, WORD_MASK};
use super::counted::Counted;
use super::leaf::Leaf;
use super::node::Node;
use super::part::{Part, Span};
use super::state::{Held, Missing, State};
use crate::{Gpfn, PageCount, PageRange};

/// 8 GiB of pages, in blocks of 128 MiB with counters.
type Tree = Node<Counted<Node<Leaf>>>;

/// The pages of a leaf.
pub(super) const LEAF: u64 = Leaf::PAGES as u64;

/// The mask of a page's number in its leaf.
const LEAF_MASK: u64 = Leaf::LAST as u64;

/// Capacity to keep even if there are fewer chunks, so that a set that is filled and emptied in
/// turns need not allocate each time.
const SPARE: usize = 16;

/// Pages of the whole address space. A page far from all others costs a chunk, a block and a leaf.
#[derive(Clone)]
pub(super) struct Chunks {
    /// The chunks that have pages in the set, lowest first.
    chunks: Vec<Chunk>,
    /// The index of the chunk that was changed last, since guests name neighbouring pages one after
    /// another.
    recent: usize,
}

#[derive(Clone, PartialEq)]
struct Chunk {
    /// The chunk's first page, divided by the pages of a chunk.
    number: u64,
    pages: Tree,
}

impl PartialEq for Chunks {
    fn eq(&self, other: &Self) -> bool {
        self.chunks == other.chunks
    }
}

/// Lookups.
impl Chunks {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), recent: 0 }
    }

    /// The number of pages in the set.
    pub(super) fn len(&self) -> u64 {
        held_in(&self.chunks)
    }

    /// Whether `page` is in the set.
    #[inline]
    pub(super) fn contains(&self, page: Gpfn) -> bool {
        let page = page.get();
        self.any_in::<Held>(number(page), Span { first: offset(page), last: offset(page) })
    }

    /// Whether any page of `range` is in state `S`.
    #[inline]
    pub(super) fn any<S: State>(&self, range: PageRange) -> bool {
        let (start, end) = (range.start().get(), last_page(range));
        let (first, last) = (number(start), number(end));
        let (from, to) = (offset(start), offset(end));
        if first == last {
            return self.any_in::<S>(first, Span { first: from, last: to });
        }
        let between = self.position(first + 1)..self.position(last);
        let chunks = self.chunks.get(between).unwrap_or_default();
        let any_between = if S::HELD {
            !chunks.is_empty()
        } else {
            chunks.len() as u64 != last - first - 1
                || chunks.iter().any(|chunk| !chunk.pages.is_all::<Held>(0))
        };
        any_between
            || self.any_in::<S>(first, Span { first: from, last: Tree::LAST })
            || self.any_in::<S>(last, Span { first: 0, last: to })
    }

    /// The first page at or above `from` that is in state `S`, and a bit for each of the 64 aligned
    /// pages around it that are in that state too. Beyond the last chunk, no page is [`Held`] and
    /// all are [`Missing`].
    #[inline]
    pub(super) fn next<S: State>(&self, from: u64) -> Option<(u64, u64)> {
        let mut from = from;
        let mut position = self.position(number(from));
        loop {
            let chunk = self.chunks.get(position);
            let Some(chunk) = chunk.filter(|chunk| S::HELD || chunk.number == number(from)) else {
                return (!S::HELD).then_some((from, u64::MAX));
            };
            from = from.max(page(chunk.number, 0));
            if let Some((found, word)) = chunk.pages.next::<S>(offset(from)) {
                return Some((page(chunk.number, found), word));
            }
            from = page(chunk.number + 1, 0);
            position += 1;
        }
    }

    /// The last page below `below` that is in state `S`, and its word as in [`Chunks::next`].
    /// `None` if there is none at or above `least`; the page found may still be below `least`.
    #[inline]
    pub(super) fn prev<S: State>(&self, least: u64, below: u64) -> Option<(u64, u64)> {
        let mut last = below.checked_sub(1)?;
        let mut past = self.find(number(last)).map_or_else(|i| i, |i| i + 1);
        loop {
            let place = past.checked_sub(1);
            let chunk = place.and_then(|i| self.chunks.get(i));
            let Some(chunk) = chunk.filter(|chunk| S::HELD || chunk.number == number(last)) else {
                return (!S::HELD).then_some((last, u64::MAX));
            };
            last = last.min(page(chunk.number, Tree::LAST));
            if let Some((found, word)) = chunk.pages.prev::<S>(offset(last)) {
                return Some((page(chunk.number, found), word));
            }
            last = page(chunk.number, 0).checked_sub(1).filter(|&last| last >= least)?;
            past = place.unwrap_or_default();
        }
    }

    /// The leaves whose pages are all in the set, and no other pages.
    pub(super) fn whole_leaves(&self) -> Self {
        let whole = self
            .chunks
            .iter()
            .map(|chunk| Chunk { number: chunk.number, pages: chunk.pages.whole_leaves() });
        let chunks = whole.filter(|chunk| !chunk.pages.is_all::<Missing>(0)).collect();
        Self { chunks, recent: 0 }
    }

    #[inline]
    fn any_in<S: State>(&self, number: u64, span: Span) -> bool {
        self.tree(number).map_or(!S::HELD, |tree| tree.any::<S>(span))
    }

    #[inline]
    fn tree(&self, number: u64) -> Option<&Tree> {
        let i = self.find(number).ok()?;
        self.chunks.get(i).map(|chunk| &chunk.pages)
    }

    /// The index of a chunk, or the index it would have.
    #[inline]
    fn find(&self, number: u64) -> Result<usize, usize> {
        self.guess(number).map_or_else(|| self.search(number), Ok)
    }

    /// The index of a chunk, if it is one of the two likely ones: most guests have no gaps of this
    /// size in their RAM, and otherwise ranges in the same chunk tend to follow one another.
    #[inline]
    fn guess(&self, number: u64) -> Option<usize> {
        let first = self.chunks.first()?.number;
        let likely = usize::try_from(number.checked_sub(first)?).ok()?;
        let is_at = |place: usize| self.chunks.get(place).is_some_and(|at| at.number == number);
        if is_at(likely) { Some(likely) } else { is_at(self.recent).then_some(self.recent) }
    }

    #[inline(never)]
    fn search(&self, number: u64) -> Result<usize, usize> {
        self.chunks.binary_search_by_key(&number, |chunk| chunk.number)
    }

    /// The index of the first chunk at or above `number`.
    #[inline]
    fn position(&self, number: u64) -> usize {
        self.find(number).unwrap_or_else(|place| place)
    }
}

/// Changes.
impl Chunks {
    /// Adds the pages of `range` and returns how many were new.
    #[inline]
    pub(super) fn insert(&mut self, range: PageRange) -> u64 {
        self.mark::<Held>(range)
    }

    /// Removes the pages of `range` and returns how many were in the set.
    #[inline]
    pub(super) fn remove(&mut self, range: PageRange) -> u64 {
        self.mark::<Missing>(range)
    }

    /// Removes the last run of pages, or the last `max` pages of it, and returns them.
    #[inline]
    pub(super) fn take_last(&mut self, max: u64) -> Option<PageRange> {
        let last = self.chunks.last_mut()?;
        let in_chunk = u32::try_from(max).unwrap_or(u32::MAX);
        let Some(taken) = last.pages.take_in_word(in_chunk) else {
            return self.take_run(max);
        };
        let first = Gpfn::new(page(last.number, taken.first))?;
        if last.pages.is_all::<Missing>(0) {
            self.drop_chunk(self.chunks.len() - 1);
        }
        PageRange::new(first, PageCount::new(taken.count.into())).ok()
    }

    /// [`Chunks::take_last`] for a run of any size.
    #[inline(never)]
    fn take_run(&mut self, max: u64) -> Option<PageRange> {
        let end = self.prev::<Held>(0, Gpfn::MAX.get())?.0 + 1;
        let least = end.saturating_sub(max);
        let before = self.prev::<Missing>(least, end);
        let start = before.map_or(0, |(before, _)| before + 1).max(least);
        let run = PageRange::between(Gpfn::new(start)?, Gpfn::new(end)?)?;
        self.remove(run);
        Some(run)
    }

    /// Adds the pages of `other` and returns how many were new.
    pub(super) fn absorb(&mut self, other: Self) -> u64 {
        let mut added = 0;
        for theirs in other.chunks {
            let new = match self.find(theirs.number) {
                Ok(i) => self.chunks.get_mut(i).map_or(0, |ours| ours.pages.absorb(theirs.pages)),
                Err(i) => {
                    let new = theirs.pages.len();
                    self.chunks.insert(i, theirs);
                    new
                }
            };
            added += u64::from(new);
        }
        added
    }

    /// Removes the pages of `other` and returns how many were in the set.
    pub(super) fn subtract(&mut self, other: &Self) -> u64 {
        let mut removed = 0;
        for theirs in &other.chunks {
            let ours = self.find(theirs.number).ok().and_then(|i| self.chunks.get_mut(i));
            removed += u64::from(ours.map_or(0, |ours| ours.pages.subtract(&theirs.pages)));
        }
        self.chunks.retain(|chunk| !chunk.pages.is_all::<Missing>(0));
        self.give_back();
        removed
    }

    /// Puts the pages of `range` in state `S` and returns how many changed.
    #[inline]
    fn mark<S: State>(&mut self, range: PageRange) -> u64 {
        let (start, last) = (range.start().get(), last_page(range));
        // The two most frequent kinds of range are a few pages of one word, and one leaf.
        let quick = if start ^ last <= WORD_MASK {
            let mask = Bit::of_page(start).and_above() & Bit::of_page(last).and_below();
            self.mark_quickly::<S>(start, |tree, page| tree.mark_in_word::<S>(page, mask))
        } else if start ^ last == LEAF_MASK && start & LEAF_MASK == 0 {
            self.mark_quickly::<S>(start, |tree, page| tree.mark_leaf::<S>(page))
        } else {
            None
        };
        match quick {
            Some(changed) => u64::from(changed),
            None => self.mark_any::<S>(start, last),
        }
    }

    /// Changes the chunk that has `page`, if it is at a likely index. Returns the result of
    /// `change`.
    #[inline]
    fn mark_quickly<S: State>(
        &mut self,
        page: u64,
        change: impl FnOnce(&mut Tree, u32) -> Option<u32>,
    ) -> Option<u32> {
        let i = self.guess(number(page))?;
        let chunk = self.chunks.get_mut(i)?;
        let changed = change(&mut chunk.pages, offset(page))?;
        if !S::HELD && chunk.pages.is_all::<Missing>(0) {
            self.drop_chunk(i);
        }
        Some(changed)
    }

    /// Puts the pages from `start` to `end`, inclusive, in state `S`.
    #[inline(never)]
    fn mark_any<S: State>(&mut self, start: u64, end: u64) -> u64 {
        if number(start) == number(end) {
            let span = Span { first: offset(start), last: offset(end) };
            return self.mark_in::<S>(number(start), span);
        }
        self.mark_across::<S>(start, end)
    }

    /// [`Chunks::mark_any`] for pages of several chunks.
    #[inline(never)]
    fn mark_across<S: State>(&mut self, start: u64, end: u64) -> u64 {
        let mut whole = number(start)..number(end) + 1;
        let mut changed = 0;
        if offset(start) != 0 {
            let span = Span { first: offset(start), last: Tree::LAST };
            changed += self.mark_in::<S>(whole.start, span);
            whole.start += 1;
        }
        if offset(end) != Tree::LAST {
            whole.end -= 1;
            changed += self.mark_in::<S>(whole.end, Span { first: 0, last: offset(end) });
        }
        changed + self.mark_whole::<S>(whole)
    }

    /// Puts pages of one chunk in state `S`.
    #[inline]
    fn mark_in<S: State>(&mut self, number: u64, span: Span) -> u64 {
        let i = match self.find(number) {
            Ok(i) => i,
            Err(_) if !S::HELD => return 0,
            Err(i) => {
                self.chunks.insert(i, Chunk { number, pages: Tree::EMPTY });
                i
            }
        };
        self.recent = i;
        let Some(chunk) = self.chunks.get_mut(i) else { return 0 };
        let changed = chunk.pages.mark::<S>(span);
        if !S::HELD && chunk.pages.is_all::<Missing>(0) {
            self.drop_chunk(i);
        }
        u64::from(changed)
    }

    /// Puts all pages of the chunks with these numbers in state `S`.
    fn mark_whole<S: State>(&mut self, numbers: Range<u64>) -> u64 {
        if numbers.is_empty() {
            return 0;
        }
        let places = self.position(numbers.start)..self.position(numbers.end);
        let held = held_in(self.chunks.get(places.clone()).unwrap_or_default());
        if S::HELD {
            let pages = (numbers.end - numbers.start) * u64::from(Tree::PAGES);
            let full = numbers.map(|number| Chunk { number, pages: Tree::FULL });
            self.chunks.splice(places, full);
            pages - held
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

    /// Frees unneeded capacity.
    fn give_back(&mut self) {
        let used = self.chunks.len().max(SPARE);
        if self.chunks.capacity() / 4 >= used {
            self.chunks.shrink_to(used);
        }
    }
}

/// The number of pages of `chunks` that are in the set.
fn held_in(chunks: &[Chunk]) -> u64 {
    chunks.iter().map(|chunk| u64::from(chunk.pages.len())).sum()
}

/// The last page of `range`. A range has at least one page, so its end is not zero.
#[inline]
const fn last_page(range: PageRange) -> u64 {
    range.end().get() - 1
}

/// The number of the chunk that has `page`.
#[inline]
const fn number(page: u64) -> u64 {
    page >> Tree::SHIFT
}

/// The number of `page` in its chunk.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "masked: a chunk has less than 2^32 pages")]
const fn offset(page: u64) -> u32 {
    page as u32 & Tree::LAST
}

/// Page `offset` of a chunk.
#[inline]
const fn page(number: u64, offset: u32) -> u64 {
    (number << Tree::SHIFT) | offset as u64
}
