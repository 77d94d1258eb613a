//! What a guest does wrong.

use crate::protocol::{MessageType, ParseError, Version};

/// A packet of the guest that was dropped, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It holds no message, or a body that is too short.
    #[error(transparent)]
    Unreadable(#[from] ParseError),
    /// It is no answer. The guest sends nothing of its own accord.
    #[error("a message of type {}, flags {flags:#x}, that answers nothing", .message_type.0)]
    NoAnswer {
        /// Its type.
        message_type: MessageType,
        /// Its flags.
        flags: u8,
    },
    /// It answers another message than the one that waits for an answer.
    #[error("an answer of type {} to message {transaction}, which does not wait for one", .message_type.0)]
    Unasked {
        /// Its type.
        message_type: MessageType,
        /// The transaction that it names.
        transaction: u8,
    },
    /// The guest chose a version that was not offered.
    #[error("the guest chose framework {framework} and version {version}, which were not offered")]
    Version {
        /// Of the framework.
        framework: Version,
        /// Of the service.
        version: Version,
    },
    /// A heartbeat's number is not the next one.
    #[error("a heartbeat with number {actual} where {expected} follows")]
    Sequence {
        /// What follows the number that was sent.
        expected: u64,
        /// What the guest sent.
        actual: u64,
    },
}
