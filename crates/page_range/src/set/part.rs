//! What the levels of the tree have in common.

/// A power of two of neighbouring pages, any of which may be in the set. Pages count from its start.
///
/// `IN` says what is asked for or made so: pages in the set, or pages that are not. Ranges of pages
/// are never empty and end at `PAGES` at most.
pub(super) trait Part: Clone + PartialEq {
    /// The number of pages is two to the power of this.
    const SHIFT: u32;
    /// The number of pages.
    const PAGES: u32 = 1u32.wrapping_shl(Self::SHIFT);
    /// No page is in the set.
    const EMPTY: Self;
    /// All pages are.
    const FULL: Self;

    /// The number of pages in the set.
    fn len(&self) -> u32;

    /// Whether all pages are in the set, or none. Those near `around` are looked at first: where
    /// one was changed, there is another one as a rule that was not.
    fn is_all<const IN: bool>(&self, around: u32) -> bool;

    /// Whether any page from `start` up to `end` is in the set, or any is not.
    fn any<const IN: bool>(&self, start: u32, end: u32) -> bool;

    /// Makes the pages from `start` up to `end` members, or not; says for how many that is new.
    fn put<const IN: bool>(&mut self, start: u32, end: u32) -> u32;

    /// [`Part::put`] for what comes most: the leaf that has `page` as a whole, or else pages of the
    /// 64 around it, aligned, a bit of `mask` for each. `None`, and all stays as it is, where a part
    /// has to be stored for that, or a whole leaf is to replace one.
    fn put_quickly<const IN: bool, const LEAF: bool>(
        &mut self,
        page: u32,
        mask: u64,
    ) -> Option<u32>;

    /// The first page from `from` on that is in the set, or is not, and a bit for each of the 64
    /// around it, aligned, that are so too.
    fn next<const IN: bool>(&self, from: u32) -> Option<(u32, u64)>;

    /// The same for the last page below `below`, which is at least 1.
    fn prev<const IN: bool>(&self, below: u32) -> Option<(u32, u64)>;

    /// Takes the last pages in the set that neighbour each other if they are at most `max` and all
    /// of one word: the first, and how many. `None`, and all stays as it is, where that is not sure.
    fn take_in_word(&mut self, max: u32) -> Option<(u32, u32)>;

    /// Adds the pages of `other` and says how many were new.
    fn absorb(&mut self, other: Self) -> u32;

    /// Takes the pages of `other` out and says how many there were.
    fn subtract(&mut self, other: &Self) -> u32;

    /// The whole leaves of the set, without the pages of partial ones.
    fn whole_leaves(&self) -> Self;
}
