//! The two states of a page, as types: each operation is written once and compiled for both.

/// The state that a search looks for, or that a change gives to pages.
pub(super) trait State {
    /// Whether the pages are in the set.
    const HELD: bool;
    /// The other state.
    type Opposite: State;

    /// The pages in this state, given a word with a bit for each held page.
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
