#![no_std]
#![forbid(unsafe_code)]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::todo,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]
//! The host side (VSP) of Hyper-V Dynamic Memory: events in, actions out.
//!
//! [`Device`] takes pages from a guest and gives them back, so that the guest has the size an
//! operator set. It does no I/O and has no clock; a driver runs it:
//!
//! 1. [`Device::handle`] one event, with the time since the VM started,
//! 2. [`Device::poll_action`] until `None`, carrying out each action,
//! 3. sleep until the next event or [`Device::next_deadline`], which is answered by
//!    [`Event::Deadline`].
//!
//! ```text
//!             opened            version             capabilities
//!   Closed ──────────► AwaitVersion ──► AwaitCaps ──────────────► Settling
//!     ▲                                                              │ settle time over
//!     │ no job in flight                  ┌── short answer ──┐       ▼
//!   Closing ◄── closed or reset,          │     Pausing ──►  ├───── Idle ◄──┐
//!               from any state            │      1 s         ▼       │      │ all pages returned
//!                                         └──────────── Ballooning   ├─► Unballooning
//!                                                                    │      ▲ host memory ready
//!                                     guest's answer ──► Idle        ├─► Preparing
//!                                         HotAdding ◄────────────────┘      (new memory ready)
//! ```
//!
//! The operator's part is [`Device::set_target`], and [`Device::set_inhibited`] where something needs
//! the guest's memory to stay in place.
//!
//! A guest that is too small gets the pages it gave back first, then new memory in blocks of its
//! alignment; one that is too large is asked for pages.
//!
//! What holds, whatever the guest sends:
//!
//! - A page is given back only after the guest gave it, never while it is being discarded, and
//!   only once.
//! - A page the guest names that is not its RAM is never discarded.
//! - Memory is within the guest's reach before it is offered, and leaves it when it was not taken.
//!   None is prepared while some leaves.
//! - [`Snapshot::actual`] is the RAM assigned less the pages that the host has back.
//! - One transaction at a time; at most one message with the driver; at most two discards and one
//!   preparation.
//! - [`Action::CloseFinished`] comes only when no job is in flight, since the next user of the
//!   memory does not know which pages were out.
//!
//! A VMM that saves its VMs saves the device with [`Device::save`] and goes on with
//! [`Device::restore`], whatever is under way.
//!
//! Sources: Linux `drivers/hv/hv_balloon.c` for what the guest does; QEMU `hw/hyperv/hv-balloon.c`
//! for what Windows guests bear.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod action;
mod balloon;
mod books;
mod config;
mod device;
mod event;
mod fault;
mod hot_add;
#[cfg(any(test, debug_assertions))]
mod invariants;
mod jobs;
mod negotiate;
mod notice;
mod outbox;
mod region;
mod removal;
mod saved;
mod snapshot;
mod state;
mod step;
mod target;
mod unballoon;

pub use action::{Action, JobId, Prepare};
pub use balloon::{
    BALLOON_TIMEOUT, MAX_BALLOON_REQUEST, MAX_BALLOON_TIME, MAX_SHORT_ANSWERS, SHORT_ANSWER_PAUSE,
};
pub use books::{
    MAX_DISCARD_RANGES, MAX_DISCARDS_IN_FLIGHT, MAX_FOREIGN_PAGES, MAX_FOREIGN_RANGES,
};
pub use config::{Config, ConfigError, DEFAULT_SETTLE, HotAdd, ReplaceError, Settle};
pub use device::Device;
pub use dynmem_protocol::{StatusReport, Version};
pub use event::Event;
pub use fault::{FaultCounts, GuestFault};
pub use hot_add::HOT_ADD_TIMEOUT;
pub use notice::{Notice, Transaction};
pub use region::{FIRST_HOT_ADD_REQUEST, MAX_HOT_ADD_REQUEST};
pub use saved::RestoreError;
pub use snapshot::Snapshot;
pub use state::StateName;
pub use target::{Refusal, StopReason, TargetError};
pub use unballoon::{MAX_UNBALLOON_MESSAGE, UNBALLOON_TIMEOUT};
