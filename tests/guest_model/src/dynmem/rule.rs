//! The rules that a host must keep.

use core::time::Duration;

use dynmem_protocol::{MessageType, ParseError, Version};
use page_range::{Gpfn, PageCount, PageRange};

/// The host's violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleBroken {
    /// Linux's receive buffer is smaller, so it would loop for ever.
    #[error("packet of {len} bytes, padding included, is longer than 4096 bytes")]
    TooLong {
        /// Bytes of the packet in the ring.
        len: usize,
    },
    /// Not a message of a host.
    #[error("malformed: {0}")]
    Malformed(ParseError),
    /// The message was not called for: a response without a request, or a request before the end of
    /// the handshake.
    #[error("unexpected {message}")]
    Unexpected {
        /// Its type.
        message: MessageType,
    },
    /// The answer to the version or capabilities does not carry the request's id.
    #[error("transaction id {got} of a response is not that of the request, {expected}")]
    NotEchoed {
        /// The id in the response.
        got: u32,
        /// The id of the request.
        expected: u32,
    },
    /// A request while another one is open.
    #[error("{message} while a transaction is open")]
    TwoTransactions {
        /// The second request's type.
        message: MessageType,
    },
    /// Messages of one unballoon request carry different ids.
    #[error("transaction id {got} in the middle of unballoon request {expected}")]
    IdChanged {
        /// The id in the later message.
        got: u32,
        /// The id in the first one.
        expected: u32,
    },
    /// A balloon request to a guest that cannot balloon, or a hot-add request to one that cannot
    /// hot-add.
    #[error("{message} to a guest without that capability")]
    NotCapable {
        /// The request's type.
        message: MessageType,
    },
    /// More than Windows gives for one request.
    #[error("balloon request for {pages} pages")]
    TooMuch {
        /// Pages asked for.
        pages: PageCount,
    },
    /// Returned pages that the guest has not given, or not since it got them back. Linux frees them
    /// all the same and is corrupted.
    #[error("{range} was returned but is not ballooned")]
    NotBallooned {
        /// The range returned.
        range: PageRange,
    },
    /// A range word that names no pages.
    #[error("range word {word:#x} names no pages")]
    BadRange {
        /// The word.
        word: u64,
    },
    /// Windows Server 2019 crashes if it is asked right after boot.
    #[error("{message} {after:?} after the handshake, within {settle:?} of it")]
    TooSoon {
        /// The request's type.
        message: MessageType,
        /// Time since the handshake.
        after: Duration,
        /// Time the guest must be left alone.
        settle: Duration,
    },
    /// The agreed version does not have this message.
    #[error("{message} to a guest of version {version}")]
    NotInVersion {
        /// Its type.
        message: MessageType,
        /// The version agreed on.
        version: Version,
    },
    /// Start or count of new memory is not a multiple of the guest's alignment.
    #[error("hot-add of {range} in a guest that adds multiples of {alignment} pages")]
    HotAddNotAligned {
        /// The new memory.
        range: PageRange,
        /// The guest's alignment.
        alignment: PageCount,
    },
    /// More than 2 GiB at a time, unless one alignment block is larger.
    #[error("hot-add of {range}, more than 2 GiB at a time")]
    HotAddTooLong {
        /// The new memory.
        range: PageRange,
    },
    /// The guest requires the form with a region.
    #[error("hot-add of {range} without a region")]
    HotAddNoRegion {
        /// The new memory.
        range: PageRange,
    },
    /// The region does not begin where its range does, or ends before it does. Linux adds memory
    /// from the region's start on, so it would use memory that is not there.
    #[error("hot-add of {range} in region {region}")]
    HotAddRegion {
        /// The new memory.
        range: PageRange,
        /// The region.
        region: PageRange,
    },
    /// Memory that the guest already has. Linux never accepts any again.
    #[error("hot-add of {range}, part of which the guest has")]
    HotAddOverlap {
        /// The new memory.
        range: PageRange,
    },
    /// Memory beyond the guest's addresses.
    #[error("hot-add of {range} in a guest whose addresses end at {limit}")]
    HotAddAboveLimit {
        /// The new memory.
        range: PageRange,
        /// The first page beyond the guest's addresses.
        limit: Gpfn,
    },
}
