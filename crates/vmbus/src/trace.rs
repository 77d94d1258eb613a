//! A packet of the guest in a trace, for recorders and tests.

use alloc::vec::Vec;

use crate::{protocol::ring::PacketKind, ring::Packet};

/// A packet of the guest, as the ring had it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedPacket {
    /// The packet's kind.
    pub kind: PacketKind,
    /// The guest's transaction ID.
    pub transaction_id: u64,
    /// Whether the guest wants a completion for it.
    pub completion_requested: bool,
    /// The data, padded with up to 7 bytes.
    pub payload: Vec<u8>,
}

impl From<Packet<'_>> for TracedPacket {
    fn from(packet: Packet<'_>) -> Self {
        Self {
            kind: packet.kind,
            transaction_id: packet.transaction_id,
            completion_requested: packet.completion_requested,
            payload: packet.payload.to_vec(),
        }
    }
}
