//! A Dynamic Memory client (VSC) that behaves like Linux and watches the host.
//!
//! Written from the description of `hv_balloon.c`, not from the device under test: the two share
//! wire structs and nothing else. [`Client::receive`] fails when the host breaks a rule that a real
//! guest would not survive, or would not obey.

mod client;
mod memory;
mod personality;
mod rule;

pub use client::Client;
pub use memory::Memory;
pub use personality::{Ending, Personality};
pub use rule::RuleBroken;
