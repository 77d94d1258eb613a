//! Errors in a message.

use crate::MessageType;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The packet has no room for the header.
    #[error("packet of {len} bytes is shorter than a message header")]
    NoHeader {
        /// Bytes in the packet.
        len: usize,
    },
    /// The header's size field is smaller than the header, or larger than the packet.
    #[error("header says {size} bytes in a packet of {len} bytes")]
    BadSize {
        /// The header's size field, in bytes.
        size: u16,
        /// Bytes in the packet.
        len: usize,
    },
    /// The protocol has no message of this type.
    #[error("unknown message type {}", .number.to_wire())]
    UnknownType {
        /// The header's type field.
        number: MessageType,
    },
    /// A message that only the other side sends.
    #[error("{number} comes from the wrong side")]
    WrongDirection {
        /// The header's type field.
        number: MessageType,
    },
    /// The message is shorter than its type or its own counts require.
    #[error("{number} of {size} bytes needs {needed} bytes")]
    TooShort {
        /// The header's type field.
        number: MessageType,
        /// Bytes in the message, including the header.
        size: u64,
        /// Bytes required, including the header.
        needed: u64,
    },
    /// A hot-add request has neither of its two forms.
    #[error("hot-add request of {size} bytes is neither of 16 nor of 24")]
    HotAddForm {
        /// Bytes in the message, including the header.
        size: u64,
    },
}
