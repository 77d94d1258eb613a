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
//! A *page* here is 4 KiB, whatever page size guest or host use, because the Dynamic Memory
//! protocol and VMBus count in such pages. Addresses and counts are newtypes without `+` and `-`,
//! so that no sum of guest-supplied numbers can overflow unnoticed.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod addr;
mod range;
mod set;

pub use addr::{Gpa, Gpfn, PAGE_SIZE, PageCount};
pub use range::{PageRange, RangeError};
pub use set::{PageRangeSet, Unsorted};
