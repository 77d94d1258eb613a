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
//! Hyper-V's integration services for shutdown, heartbeat and time synchronisation, without I/O.
//!
//! [`Shutdown`], [`Heartbeat`] and [`TimeSync`] are each a [`VmbusDevice`](vmbus::VmbusDevice) with a
//! channel of its own. They differ only in their messages; what they share is [`Service`]: it opens and
//! closes the channel, negotiates versions, and has at most one message that the guest has not answered.
//!
//! ```text
//!                    ┌───────────────── Service ─────────────────┐
//! ChannelEvent ─────►│ vmbus::Channel ◄─packets─► negotiation,    │──► SignalGuest, OpenFinished, CloseFinished
//! request_shutdown ─►│  (rings, signals)          one message     │──► Work::Notify
//! sample, resync ───►│                            at a time       │──► Work::Sample
//! Timeout ──────────►└───────────────────────────────────────────┘
//! ```
//!
//! The guest's side in Linux is `drivers/hv/hv_util.c` (module `hv_utils`), where each channel gets a
//! message, changes a few fields of it, and sends it back.
//!
//! Time is the time since the VM started, as for every device on the bus. The wall clock enters only as
//! the argument of [`TimeSync::sample`].

extern crate alloc;

mod fault;
mod heartbeat;
mod kind;
mod notice;
pub mod protocol;
mod saved;
mod service;
mod shutdown;
mod time_sync;

pub use fault::Fault;
pub use heartbeat::{Contact, Heartbeat, HeartbeatKind};
pub use kind::Kind;
pub use notice::{Notice, Trace, Work};
pub use saved::{RestoreError, SavedService};
pub use saved_state::{FormatError, SavedState};
pub use service::{BATCH, NotReady, Service};
pub use shutdown::{Shutdown, ShutdownKind};
pub use time_sync::{TimeSample, TimeSync, TimeSyncKind};
