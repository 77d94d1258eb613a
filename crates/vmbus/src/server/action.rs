//! The server's requests to its driver, and errors of HvPostMessage.

use core::fmt;

use crate::{
    protocol::{ConnectionId, Message, ParseError, Relid, VpIndex},
    ring::RingLayout,
};

/// The host's handle for an offered channel; never used twice by one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub(super) u64);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A request to the driver; carry out requests in order. All messages and signals go to SINT 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put `message` into the message slot of `vp`, after any earlier messages, with message type
    /// 1.
    Send {
        /// The VP, below [`ServerConfig::vp_count`](super::ServerConfig::vp_count).
        vp: VpIndex,
        /// The message.
        message: Message,
    },
    /// Discard all messages that are not in a slot yet: the kernel they were for is gone.
    DropQueuedMessages,
    /// The guest opens the channel: open the rings, let `connection_id` signal the device, call
    /// [`open_finished`](super::Server::open_finished), and check the rings once for packets.
    Open {
        /// The channel.
        channel: ChannelId,
        /// Guest pages of the rings.
        rings: RingLayout,
        /// The VP to signal, or none if the guest wants no signals.
        target_vp: Option<VpIndex>,
        /// The event flag by which to signal the guest.
        relid: Relid,
        /// The connection ID that the guest uses in HvSignalEvent.
        connection_id: ConnectionId,
        /// Whether the guest had the channel open before in this connection, and so with this kernel.
        is_reopened: bool,
    },
    /// Stop using the channel's rings, then call [`close_finished`](super::Server::close_finished).
    /// This may come before `open_finished` was called; that call is then unnecessary.
    Close {
        /// The channel.
        channel: ChannelId,
    },
    /// Direct future signals to another VP. If opening the channel failed, the guest did not know
    /// yet; ignore this.
    SetTargetVp {
        /// The channel.
        channel: ChannelId,
        /// The VP, below [`ServerConfig::vp_count`](super::ServerConfig::vp_count).
        target_vp: VpIndex,
    },
}

/// Error of HvPostMessage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// No message port has this connection ID. A guest that posts INITIATE_CONTACT there falls back
    /// to an older version.
    #[error("connection id {0} has no message port")]
    UnknownConnection(ConnectionId),
    /// Too many answers wait for the guest; it must post again later.
    #[error("queue of outgoing messages is full")]
    QueueFull,
    /// The message exceeds the maximum length.
    #[error("message of {0} bytes is too long")]
    TooLong(usize),
    /// The message is truncated.
    #[error(transparent)]
    Malformed(ParseError),
}

impl PostError {
    /// The hypercall status (TLFS 3.9). Linux retries after 11, 18 and 19, and gives up after any
    /// other.
    #[must_use]
    pub const fn hypercall_status(&self) -> u16 {
        match self {
            Self::Malformed(_) => 3,
            Self::TooLong(_) => 5,
            Self::UnknownConnection(_) => 18,
            Self::QueueFull => 19,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_shown_by_its_number() {
        assert_eq!(std::format!("{}", ChannelId(7)), "7");
    }
}
