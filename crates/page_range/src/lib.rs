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
//! Guest page numbers, page ranges and exact sets of them.
//!
//! A *page* is 4 KiB here, whatever page size guest or host use: the Dynamic Memory protocol and
//! VMBus both count so. Addresses and counts are newtypes without `+` and `-`, so that no sum of
//! guest-supplied numbers can wrap unnoticed.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod addr;
mod range;
mod set;

pub use addr::{Gpa, Gpfn, PAGE_SIZE, PageCount};
pub use range::{PageRange, RangeError};
pub use set::{PageRangeSet, Unsorted};
