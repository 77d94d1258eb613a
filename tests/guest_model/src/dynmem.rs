//! A Dynamic Memory client (VSC) that behaves like a real guest and checks the host.
//!
//! It is based on a description of `hv_balloon.c` and on reports about Windows, not on the device
//! under test: the two share the wire structs and nothing else. [`Client::receive`] fails when the
//! host breaks a rule in a way that a real guest would not survive, or would ignore.

mod balloon;
mod client;
mod guests;
mod hot_add;
mod memory;
mod outbox;
mod personality;
mod rule;

pub use client::Client;
pub use memory::{Memory, MemoryMap};
pub use personality::{Ballooning, Ending, HotAdd, HotAddAnswer, Personality, Shape};
pub use rule::RuleBroken;
