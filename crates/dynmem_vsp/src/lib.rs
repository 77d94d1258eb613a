#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::wildcard_enum_match_arm
)]
//! The Hyper-V Dynamic Memory VSP: the device and its VMBus channel as one sans-IO object.
//!
//! [`DynamicMemory`] grows and shrinks the memory of a running guest. It is a
//! [`VmbusDevice`](vmbus::VmbusDevice): whoever drives the bus gives it the events of its channel
//! and takes its outputs. It handles packets, completions, signals and ring errors itself. The
//! driver only does [`Work`] on the guest's memory.
//!
//! ```text
//!                 ┌──────────────── DynamicMemory ────────────────┐
//! ChannelEvent ──►│  vmbus::Channel ◄──packets──► hv_balloon::Device │──► SignalGuest
//! set_target ────►│   (rings, completions,        (states, ledger,   │──► OpenFinished, CloseFinished
//! job_done ──────►│    signals)                    hot-add)          │──► Work (discard, prepare, remove, notify)
//! Timeout ───────►└───────────────────────────────────────────────┘
//! ```
//!
//! The driver's loop, for each event:
//!
//! 1. [`handle`](vmbus::VmbusDevice::handle) the event, or call a command such as
//!    [`DynamicMemory::set_target`];
//! 2. [`poll_output`](vmbus::VmbusDevice::poll_output) until `None` and carry each output out;
//! 3. sleep until the next event or [`poll_timeout`](vmbus::VmbusDevice::poll_timeout).
//!
//! `examples/embed.rs` does this in a few dozen lines.

extern crate alloc;

mod identity;
mod machine;
mod saved;
mod trace;
mod vsp;

pub use hv_balloon::{
    Config, ConfigError, FormatError, HotAdd, Job, JobId, Notice, Prepare, ReplaceError,
    SavedState, Settle, Snapshot, TargetError, Task,
};
pub use identity::{DEFAULT_INSTANCE, INTERFACE};
pub use machine::Kept;
pub use saved::{RestoreError, SavedVsp};
pub use trace::Trace;
pub use vmbus::TracedPacket;
pub use vsp::{BATCH, DynamicMemory, Work};
