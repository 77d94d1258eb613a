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
//! The host side of the Hyper-V VMBus, without I/O.
//!
//! - [`protocol`]: the control messages, identifiers, versions and ring constants, as bytes;
//! - [`ring`]: a channel's two rings in [`GuestMemory`];
//! - [`Server`]: connections, offers, GPADLs, opening and closing;
//! - [`Channel`]: a device's end of an open channel;
//! - [`VmbusDevice`]: the interface of a device to the driver of the bus.
//!
//! All guest input is treated as hostile: it is copied once, checked, and only then used. No input
//! makes this crate panic, and everything a guest can make grow has a stated limit.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod channel;
mod device;
mod memory;
pub mod protocol;
mod reminder;
pub mod ring;
mod saved;
mod server;
mod trace;

pub use channel::{Channel, GuestSignal, MAX_COMPLETIONS, Received, SavedChannel};
pub use device::{ChannelEvent, ChannelOutput, VmbusDevice};
pub use memory::{AccessError, GuestMemory};
pub use reminder::Reminder;
pub use saved::RestoreError;
pub use saved_state::{FormatError, SavedState};
pub use server::{
    Action, ChannelId, Faults, MAX_CHANNELS, MAX_GPADL_PAGES, MAX_GPADLS, MAX_QUEUED_MESSAGES,
    Offer, OfferError, OpenChannel, PostError, SavedServer, Server, ServerConfig,
};
pub use trace::TracedPacket;
