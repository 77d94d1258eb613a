//! The operations of every level of the tree.

use super::state::State;

/// Consecutive pages of a part, numbered from the part's start. Both ends are inclusive, so that a
/// span is never empty and its ends are always pages of the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The lowest page.
    pub(super) first: u32,
    /// The highest page, not below `first`.
    pub(super) last: u32,
}

/// The pages that [`Part::take_in_word`] removed.
pub(super) struct Run {
    /// The lowest page.
    pub(super) first: u32,
    /// The number of pages, at least one.
    pub(super) count: u32,
}

/// A power of two of consecutive pages, any of which may be in the set. Pages are numbered from the
/// part's start, below [`Part::PAGES`].
///
/// The type parameter `S` is the state that a search looks for, or that a change gives to pages.
pub(super) trait Part: Clone + PartialEq {
    /// The number of pages is two to the power of this.
    const SHIFT: u32;
    /// The number of pages.
    const PAGES: u32 = 1 << Self::SHIFT;
    /// The number of the last page; also the mask of page numbers.
    const LAST: u32 = Self::PAGES - 1;
    /// The span of all pages.
    const WHOLE: Span = Span { first: 0, last: Self::LAST };
    /// The part without any page in the set.
    const EMPTY: Self;
    /// The part with all pages in the set.
    const FULL: Self;

    /// The number of pages in the set.
    fn len(&self) -> u32;

    /// Whether all pages are in state `S`. Looks at pages near `around` first: next to a page that
    /// was just changed there is usually one that was not.
    fn is_all<S: State>(&self, around: u32) -> bool;

    /// Whether any page of `span` is in state `S`.
    fn any<S: State>(&self, span: Span) -> bool;

    /// Puts the pages of `span` in state `S` and returns how many changed.
    fn mark<S: State>(&mut self, span: Span) -> u32;

    /// [`Part::mark`] for pages of one word: those of the 64 aligned pages around `page` for which
    /// `mask` has a bit. Returns `None` and changes nothing if a part would have to be stored for
    /// that.
    fn mark_in_word<S: State>(&mut self, page: u32, mask: u64) -> Option<u32>;

    /// [`Part::mark`] for the whole leaf that has `page`. Returns `None` and changes nothing if the
    /// leaf, or a level above it, is stored or would have to be.
    fn mark_leaf<S: State>(&mut self, page: u32) -> Option<u32>;

    /// The first page at or above `from` that is in state `S`, and a bit for each of the 64 aligned
    /// pages around it that are in that state too.
    fn next<S: State>(&self, from: u32) -> Option<(u32, u64)>;

    /// The last page at or below `from` that is in state `S`, and its word as in [`Part::next`].
    fn prev<S: State>(&self, from: u32) -> Option<(u32, u64)>;

    /// Removes the last run of pages in the set and returns it, if it has at most `max` pages and
    /// lies within one word. Returns `None` and changes nothing if that is not certain.
    fn take_in_word(&mut self, max: u32) -> Option<Run>;

    /// Adds the pages of `other` and returns how many were new.
    fn absorb(&mut self, other: Self) -> u32;

    /// Removes the pages of `other` and returns how many were in the set.
    fn subtract(&mut self, other: &Self) -> u32;

    /// The leaves whose pages are all in the set, and no other pages.
    fn whole_leaves(&self) -> Self;
}
