#![no_std]
#![forbid(unsafe_code)]
//! A guest for tests: a VMBus client, a Dynamic Memory client, and the drivers of the integration services,
//! all without I/O.

extern crate alloc;

pub mod dynmem;
pub mod services;
pub mod vmbus;
