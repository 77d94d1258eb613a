#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::allow_attributes,
        reason = "a test may fail"
    )
)]
//! What `hvb top` shows: the state of a balancer as frames of a terminal.
//!
//! [`Screen`] is all state: what was received, the last minute of each VM, and what the user chose.
//! [`Screen::press`] takes a key and says what is to be done outside; [`Screen::draw`] fills a buffer.
//! Nothing here reads a clock, a terminal or a socket: time is an argument.
//!
//! Names and reasons come from sockets and monitors that others serve. Control characters in them reach
//! no terminal.

mod bar;
mod csv;
mod detail;
mod draw;
mod keys;
mod past;
mod screen;
mod size;
mod sort;
mod table;

pub use csv::{CSV_HEAD, csv};
pub use keys::{Effect, Key};
pub use screen::{Screen, Source};
pub use sort::Sort;
