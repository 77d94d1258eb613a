#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::wildcard_enum_match_arm
)]
//! The format of saved state: its kind, version and length, the state itself, and a checksum.
//!
//! ```text
//! @0   8  magic: the kind of state
//! @8   4  version of the payload, from 1
//! @12  8  length of the payload, in bytes
//! @20  n  payload: the state in the format of `postcard`
//! @20+n 4 CRC-32 (IEEE 802.3) of all bytes before
//! ```
//!
//! [`SavedState`] is what a state in such a frame implements.
//!
//! All numbers outside the payload are little endian. This frame is the same in all versions, so
//! that a program can tell state that is too new from state that was altered. State comes from a
//! file and may contain anything: [`SavedState::from_bytes`] refuses it with a reason and never
//! panics, and decoded state takes memory in proportion to its bytes.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod frame;
mod pages;

pub use frame::{Format, FormatError, SavedState};
pub use pages::{Range, RangeSet};
