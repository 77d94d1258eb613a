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
//! The wire format of Hyper-V Dynamic Memory: parsing and emitting, without state.
//!
//! One packet in the channel's ring carries one message: an 8-byte header and a body, all little
//! endian. A host parses with [`GuestMessage::parse`], a guest with [`HostMessage::parse`]; after
//! that all counts are checked. Each message type has an `emit_into`, which writes to a buffer that
//! can be reused, and an `emit`, which returns a new one. [`MESSAGES`] lists all types.
//!
//! Sources: Linux `drivers/hv/hv_balloon.c`; for what Linux does not define (hot remove, the
//! response bits) QEMU `include/hw/hyperv/dynmem-proto.h`.

extern crate alloc;
#[cfg(test)]
extern crate std;

mod balloon;
mod error;
mod header;
mod heat_hint;
mod hot_add;
mod hot_remove;
mod info;
mod message;
mod negotiation;
mod parse;
mod range_list;
mod range_word;
mod status;
mod version;

pub use balloon::{BalloonRequest, BalloonResponse, UnballoonRequest, UnballoonResponse};
pub use error::ParseError;
pub use header::MAX_HOST_MESSAGE;
pub use heat_hint::{
    CAN_DISCARD, GpaPageRange, HeatHint, MEMORY_HEAT_HINT, QUERY_CAPABILITIES, TakenHint,
};
pub use hot_add::{HotAddRequest, HotAddResponse, HotAddResult};
pub use hot_remove::{HotRemoveRequest, HotRemoveResponse};
pub use info::InfoMessage;
pub use message::{Direction, MESSAGES, MessageInfo, MessageType};
pub use negotiation::{
    Capabilities, CapabilitiesReport, CapabilitiesResponse, VersionRequest, VersionResponse,
};
pub use parse::{GuestBody, GuestMessage, HostBody, HostMessage};
pub use range_list::{MAX_RANGES, RangeList, RangeListError, RangeWords};
pub use range_word::{MAX_RANGE_PAGES, RangeTooLong, RangeWord};
pub use status::StatusReport;
pub use version::Version;
