//! What goes between device and channel, for whoever records or checks it.

use alloc::vec::Vec;

use hv_balloon::StateName;

/// A step of the device's conversation with the guest. Steps come in the order in which they
/// happened, each before what the device asks for because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trace {
    /// The guest has opened the channel.
    Opened,
    /// The channel is gone: closed, or its ring broken.
    Closed,
    /// A packet of the guest's reached the device: its payload.
    Received(Vec<u8>),
    /// The device has made a message. It waits for room in the ring.
    Emitted(Vec<u8>),
    /// The message is in the ring.
    Sent(Vec<u8>),
    /// The device went into another state.
    State(StateName),
}
