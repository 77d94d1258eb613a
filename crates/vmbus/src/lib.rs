#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
//! The host side of the Hyper-V VMBus, without I/O.
//!
//! - [`protocol`]: the control messages, identifiers, versions and ring constants, as bytes;
//! - [`ring`]: a channel's two rings in [`GuestMemory`].
//!
//! Everything a guest says is hostile: it is copied once, checked, and only then used; nothing here
//! panics on any input, and all that a guest can make grow has a stated limit.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod memory;
pub mod protocol;
pub mod ring;

pub use memory::{AccessError, GuestMemory};
