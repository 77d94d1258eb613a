//! The two states of a page, as types: an operation is written once and compiled for each.

/// Whether a page is in the set: what a search looks for and what a change makes of pages.
pub(super) trait State {
    /// Whether the pages are in the set.
    const HELD: bool;
    /// The other state.
    type Opposite: State;

    /// The pages in this state, of a word with a bit for each page that is held.
    fn of_word(held: u64) -> u64;
}

/// The state of pages that are in the set.
pub(super) struct Held;

/// The state of pages that are not in the set.
pub(super) struct Missing;

impl State for Held {
    const HELD: bool = true;
    type Opposite = Missing;

    #[inline]
    fn of_word(held: u64) -> u64 {
        held
    }
}

impl State for Missing {
    const HELD: bool = false;
    type Opposite = Held;

    #[inline]
    fn of_word(held: u64) -> u64 {
        !held
    }
}
