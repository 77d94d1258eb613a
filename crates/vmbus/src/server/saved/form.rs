//! Version 1 of a server's saved state.
//!
//! The order of fields and variants determines the bytes, so never change this; add a new version
//! beside it. Golden files in `tests/golden` pin the format.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::server::Faults;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Server {
    pub(super) connection: Connection,
    pub(super) channels: Vec<Channel>,
    pub(super) next_channel: u64,
    pub(super) gpadls: Vec<Gpadl>,
    pub(super) messages: Vec<Queued>,
    pub(super) faults: Faults,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Connection {
    Disconnected,
    Draining(Next),
    Connected { version: u32, vp: u32, wants_offers: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Next {
    Nothing,
    UnloadResponse { vp: u32 },
    Accept { vp: u32, version: u32 },
    Refuse { vp: u32 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    pub(super) id: u64,
    /// The digits of the class GUID and of the device GUID.
    pub(super) interface: u128,
    pub(super) instance: u128,
    pub(super) relid: u32,
    pub(super) presence: Presence,
    pub(super) was_open: bool,
    pub(super) state: ChannelState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Presence {
    Unannounced,
    Offered,
    Released,
    Rescinded,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ChannelState {
    Closed,
    Opening {
        rings: Rings,
        open_id: u32,
    },
    Open {
        rings: Rings,
    },
    Closing {
        gpadl: u32,
        /// The body of an OPEN.
        reopen: Option<Vec<u8>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rings {
    pub(super) gpadl: u32,
    pub(super) downstream_offset: u32,
    pub(super) target_vp: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gpadl {
    pub(super) id: u32,
    pub(super) channel: u64,
    /// Words of its range list.
    pub(super) words: u32,
    pub(super) state: GpadlState,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum GpadlState {
    Assembling { ranges: u16, words: Vec<u64> },
    Ready { pages: Vec<u64>, is_plain: bool },
    TearingDown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Queued {
    Drop,
    Send { vp: u32, message: Vec<u8> },
}
