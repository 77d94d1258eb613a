//! The guest's side of VMBus: a client that behaves like Linux, and its end of the rings.
//!
//! It is based on the protocol alone. From the host's crate it uses only the layouts, the numbers
//! and the [`GuestMemory`](vmbus::GuestMemory) trait.

mod client;
mod memory;
mod rings;

pub use client::{Client, Event, Post};
pub use memory::SharedMemory;
pub use rings::{GuestRings, Received, RingFull};
