#![no_std]
#![forbid(unsafe_code)]
//! A guest for tests: a VMBus client and a Dynamic Memory client, both without I/O.

extern crate alloc;

pub mod dynmem;
pub mod vmbus;
