//! A trace of the traffic between device and channel, for recorders and tests.

use alloc::vec::Vec;

use hv_balloon::StateName;
use vmbus::protocol::ring::PacketKind;

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

impl From<vmbus::ring::Packet<'_>> for TracedPacket {
    fn from(packet: vmbus::ring::Packet<'_>) -> Self {
        Self {
            kind: packet.kind,
            transaction_id: packet.transaction_id,
            completion_requested: packet.completion_requested,
            payload: packet.payload.to_vec(),
        }
    }
}

/// A step in the conversation between device and guest. Steps are reported in the order in which
/// they happened, each before the requests that it causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The guest has opened the channel.
    Opened,
    /// The channel is gone: closed, or its ring broken.
    Closed,
    /// The device has received this packet.
    Received(TracedPacket),
    /// A packet that is not for the device, since it carries no message, was dropped.
    Dropped(TracedPacket),
    /// The device has emitted this message, which waits for room in the ring.
    Emitted(Vec<u8>),
    /// The message is in the ring.
    Sent(Vec<u8>),
    /// The completion of the guest's packet with this transaction ID is in the ring.
    Completed(u64),
    /// The device has changed to this state.
    State(StateName),
}
