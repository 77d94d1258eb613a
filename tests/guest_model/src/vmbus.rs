//! The guest's side of VMBus: a client that behaves like Linux, and its end of the rings.
//!
//! It is written from the protocol alone; of the host's crate it uses the layouts, numbers and the
//! [`GuestMemory`](vmbus::GuestMemory) trait.

mod client;
mod memory;
mod rings;

pub use client::{Client, Event, Post};
pub use memory::SharedMemory;
pub use rings::{GuestRings, Received, RingFull};
