//! Host and guest at the rings at the same time.
//!
//! - [`model`]: guest memory for `loom`, which runs the real ring code of both sides through every
//!   order of accesses, and every old value, that the memory model allows (`tests/signals.rs`).

pub mod model;
