//! The rules that a host must keep.

use core::time::Duration;

use dynmem_protocol::{MessageType, ParseError, Version};
use page_range::{Gpfn, PageCount, PageRange};

/// A rule that the host broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleBroken {
    /// Linux's receive buffer is smaller, so it would loop for ever.
    #[error("packet of {len} bytes, padding included, is longer than 4096 bytes")]
    TooLong {
        /// Bytes of the packet in the ring.
        len: usize,
    },
    /// The packet is not a valid host message.
    #[error("malformed: {0}")]
    Malformed(ParseError),
    /// The message does not fit the state: a response without a request, or a request before the
    /// end of the handshake.
    #[error("unexpected {message}")]
    Unexpected {
        /// Its type.
        message: MessageType,
    },
    /// The response to the version request or capabilities report does not carry its ID.
    #[error("transaction id {got} of a response is not that of the request, {expected}")]
    NotEchoed {
        /// The id in the response.
        got: u32,
        /// The id of the request.
        expected: u32,
    },
    /// The host made a request while another one was open.
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
    /// The host sent a balloon request to a guest that cannot balloon, or a hot-add request to one
    /// that cannot hot-add.
    #[error("{message} to a guest without that capability")]
    NotCapable {
        /// The request's type.
        message: MessageType,
    },
    /// The host requested more pages than Windows gives for one request.
    #[error("balloon request for {pages} pages")]
    TooMuch {
        /// Pages asked for.
        pages: PageCount,
    },
    /// The host returned pages that the guest never gave, or already got back. Linux frees them all
    /// the same and corrupts its memory.
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
    /// The request came too soon: Windows Server 2019 crashes if it gets one right after boot.
    #[error("{message} {after:?} after the handshake, within {settle:?} of it")]
    TooSoon {
        /// The request's type.
        message: MessageType,
        /// Time since the handshake.
        after: Duration,
        /// How long the guest must be left alone.
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
    /// The start or the length of the new memory is not a multiple of the guest's alignment.
    #[error("hot-add of {range} in a guest that adds multiples of {alignment} pages")]
    HotAddNotAligned {
        /// The new memory.
        range: PageRange,
        /// The guest's alignment.
        alignment: PageCount,
    },
    /// The new memory is longer than 2 GiB and longer than one alignment block.
    #[error("hot-add of {range}, more than 2 GiB at a time")]
    HotAddTooLong {
        /// The new memory.
        range: PageRange,
    },
    /// The guest requires requests that name a region.
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
    /// The guest already has part of this memory. After such a request, Linux never accepts a
    /// hot-add again.
    #[error("hot-add of {range}, part of which the guest has")]
    HotAddOverlap {
        /// The new memory.
        range: PageRange,
    },
    /// The new memory lies beyond the addresses that the guest can use.
    #[error("hot-add of {range} in a guest whose addresses end at {limit}")]
    HotAddAboveLimit {
        /// The new memory.
        range: PageRange,
        /// The first page beyond the guest's addresses.
        limit: Gpfn,
    },
}
