//! A trace of the traffic between device and channel, for recorders and tests.

use alloc::vec::Vec;

use hv_balloon::StateName;
use vmbus::TracedPacket;

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
