//! Host and guest using the rings at the same time.
//!
//! - [`model`]: guest memory for `loom`, which runs the real ring code of both sides through every
//!   order of accesses, and every stale value, that the memory model allows (`tests/signals.rs`);
//! - [`wake`], [`packets`] and [`own_parts`]: for two threads on real guest memory
//!   (`tests/two_threads.rs`).

pub mod model;
pub mod own_parts;
pub mod packets;
pub mod wake;
