//! Version 1 of the saved state format.
//!
//! The order of fields and variants determines the bytes, so never change this; add a new version
//! beside it. Golden files in `tests/golden` pin the format.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Server<'a> {
    pub(super) connection: Connection,
    pub(super) channels: Vec<Channel<'a>>,
    pub(super) next_channel: u64,
    pub(super) gpadls: Vec<Gpadl<'a>>,
    pub(super) messages: Vec<Queued<'a>>,
    pub(super) faults: [u64; 11],
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Connection {
    Disconnected,
    Draining(Next),
    Connected { version: u32, vp: u32, wants_offers: bool },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Next {
    Nothing,
    UnloadResponse { vp: u32 },
    Accept { vp: u32, version: u32 },
    Refuse { vp: u32 },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Channel<'a> {
    pub(super) id: u64,
    /// The digits of the class GUID and of the device GUID.
    pub(super) interface: u128,
    pub(super) instance: u128,
    pub(super) relid: u32,
    pub(super) presence: Presence,
    pub(super) state: ChannelState<'a>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Presence {
    Unannounced,
    Offered,
    Released,
    Rescinded,
    Gone,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChannelState<'a> {
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
        reopen: Option<Cow<'a, [u8]>>,
    },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Rings {
    pub(super) gpadl: u32,
    pub(super) downstream_offset: u32,
    pub(super) target_vp: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Gpadl<'a> {
    pub(super) id: u32,
    pub(super) channel: u64,
    /// Words of its range list.
    pub(super) words: u32,
    pub(super) state: GpadlState<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum GpadlState<'a> {
    Assembling { ranges: u16, words: Cow<'a, [u64]> },
    Ready { pages: Vec<u64>, is_plain: bool },
    TearingDown,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Queued<'a> {
    Drop,
    Send { vp: u32, message: Cow<'a, [u8]> },
}
