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
mod closing;
mod config;
mod device;
mod event;
mod fault;
mod handshake;
#[cfg(any(test, debug_assertions))]
mod invariants;
mod ledger;
mod link;
mod machine;
mod notice;
mod outbox;
mod placement;
mod pursuit;
mod removal;
mod saved;
mod session;
mod snapshot;
mod state;
mod target;

pub use action::{Action, Job, JobId, Prepare, Task};
pub use config::{Config, ConfigError, DEFAULT_SETTLE, HotAdd, ReplaceError, Settle};
pub use device::Device;
pub use dynmem_protocol::{StatusReport, Version};
pub use event::Event;
pub use fault::{FaultCounts, GuestFault};
pub use ledger::{
    MAX_DISCARD_RANGES, MAX_DISCARDS_IN_FLIGHT, MAX_FOREIGN_PAGES, MAX_FOREIGN_RANGES,
};
pub use notice::{Notice, Transaction};
pub use placement::{FIRST_HOT_ADD_REQUEST, MAX_HOT_ADD_REQUEST};
pub use saved::{RestoreError, SavedDevice};
pub use saved_state::{FormatError, SavedState};
pub use session::{
    BALLOON_TIMEOUT, FIRST_RETRY_PAUSE, HOT_ADD_TIMEOUT, MAX_BALLOON_REQUEST, MAX_BALLOON_TIME,
    MAX_FAILURES, MAX_SHORT_ANSWERS, MAX_UNBALLOON_MESSAGE, SHORT_ANSWER_PAUSE, UNBALLOON_TIMEOUT,
};
pub use snapshot::Snapshot;
pub use state::StateName;
pub use target::{Refusal, StopReason, TargetError};
