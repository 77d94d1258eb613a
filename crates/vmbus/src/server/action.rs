//! What the server asks of its driver, and what it answers to a post.

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

/// What the driver must do, in the order given. All messages and signals go to SINT 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put `message` into the message slot of `vp`, behind those before it, with message type 1.
    Send {
        /// The VP, below [`ServerConfig::vp_count`](super::ServerConfig::vp_count).
        vp: VpIndex,
        /// The message.
        message: Message,
    },
    /// Forget all messages that are not in a slot yet: the kernel they were for is gone.
    DropQueuedMessages,
    /// The guest opens the channel: open the rings, let `connection_id` signal the device, then
    /// call [`open_finished`](super::Server::open_finished) and look at the rings once.
    Open {
        /// The channel.
        channel: ChannelId,
        /// The guest pages of its rings.
        rings: RingLayout,
        /// The VP to signal, or none if the guest wants no signals.
        target_vp: Option<VpIndex>,
        /// The event flag by which to signal the guest.
        relid: Relid,
        /// What the guest names in HvSignalEvent.
        connection_id: ConnectionId,
    },
    /// Stop using the channel's rings, then call
    /// [`close_finished`](super::Server::close_finished). It may come before `open_finished` was
    /// called, which need not be called any more then.
    Close {
        /// The channel.
        channel: ChannelId,
    },
    /// Signal another VP from now on. Where the channel could not be opened, the guest did not know
    /// yet, and there is nothing to do.
    SetTargetVp {
        /// The channel.
        channel: ChannelId,
        /// The VP, below [`ServerConfig::vp_count`](super::ServerConfig::vp_count).
        target_vp: VpIndex,
    },
}

/// Why HvPostMessage fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// No message port has the connection ID. A guest that posts INITIATE_CONTACT there goes on to
    /// an older version.
    #[error("connection id {0} has no message port")]
    UnknownConnection(ConnectionId),
    /// Too many answers wait for the guest to take them; it posts again later.
    #[error("queue of outgoing messages is full")]
    QueueFull,
    /// The message is longer than a message can be.
    #[error("message of {0} bytes is too long")]
    TooLong(usize),
    /// The message is cut off.
    #[error(transparent)]
    Malformed(ParseError),
}

impl PostError {
    /// The hypercall's status (TLFS 3.9). Linux tries again after 11, 18 and 19, and gives up after
    /// any other.
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
