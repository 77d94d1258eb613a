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
//! [`Device`] takes pages from a guest and returns them, to keep the guest at the size that the
//! operator sets. It does no I/O and has no clock; a driver runs it:
//!
//! 1. pass an event to [`Device::handle`], with the time since the VM started;
//! 2. call [`Device::poll_action`] until it returns `None`, and carry out each action;
//! 3. sleep until the next event or [`Device::next_deadline`], and report that deadline as
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
//! The operator's commands are [`Device::set_target`], and [`Device::set_inhibited`] while
//! something needs the guest's memory to stay in place.
//!
//! To grow a guest, the device first returns the pages that the guest gave, then adds new memory in
//! blocks of the guest's alignment. To shrink a guest, it asks for pages.
//!
//! The device guarantees, whatever the guest sends:
//!
//! - A page is returned only after the guest gave it, only once, and never while it is being
//!   discarded.
//! - A page that is not the guest's RAM is never discarded, even if the guest names it.
//! - New memory is accessible to the guest before it is offered, and is removed if the guest does
//!   not take it. No memory is prepared during a removal.
//! - [`Snapshot::actual`] is the assigned RAM minus the pages that the host has back, and minus
//!   added pages that the guest has not confirmed after its kernel changed.
//! - No guest is asked for pages before it has confirmed the added memory, or has had its time to.
//! - There is one transaction at a time, with at most one message at the driver, two discards and
//!   one preparation.
//! - [`Action::CloseFinished`] comes only when no job is in flight, since the next user of the
//!   memory does not know which pages were out.
//!
//! [`Device::save`] and [`Device::restore`] work at any moment, whatever is under way.
//!
//! Sources: Linux `drivers/hv/hv_balloon.c` for the guest's behaviour; QEMU
//! `hw/hyperv/hv-balloon.c` for what Windows guests tolerate.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod action;
mod closing;
mod config;
mod confirmation;
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
pub use confirmation::CONFIRMATION_WAIT;
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
