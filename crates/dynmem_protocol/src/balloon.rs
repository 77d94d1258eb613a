//! Pages from the guest and back to it (messages 6 to 9).

use alloc::vec::Vec;

use page_range::PageCount;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::{Frame, emit, emitted};
use crate::{MAX_HOST_MESSAGE, MAX_RANGES, MessageType, ParseError, RangeList, RangeWords};

/// Linux `struct dm_balloon`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BalloonRequestBody {
    pages: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<BalloonRequestBody>() == 16 - 8);

/// Message 6: the host asks for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonRequest {
    /// The number of pages. The wire format has 32 bits; a larger number is sent as the maximum.
    pub pages: PageCount,
}

impl BalloonRequest {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<BalloonRequestBody>()?;
        Ok(Self { pages: PageCount::new(body.pages.get().into()) })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let body = BalloonRequestBody {
            pages: U32::new(u32::try_from(self.pages.get()).unwrap_or(u32::MAX)),
            reserved: U32::ZERO,
        };
        emit(out, MessageType::BALLOON_REQUEST, transaction_id, &body, RangeWords::default())
    }
}

/// Linux `struct dm_balloon_response`, after the header and before the ranges.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BalloonResponseBody {
    reserved: U32,
    /// Bit 0: more pages; bits 1 to 31: range count.
    more_and_count: U32,
}
const _: () = assert!(size_of::<BalloonResponseBody>() == 16 - 8);

/// Message 7: pages given to the host. Several messages may answer one request, and they may bring
/// fewer pages than requested, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonResponse<'a> {
    /// Another response to the same request follows.
    pub more_pages: bool,
    /// The pages, in any order; nothing about them but the format has been checked.
    pub ranges: RangeWords<'a>,
}

impl<'a> BalloonResponse<'a> {
    pub(crate) fn parse(frame: &Frame<'a>) -> Result<Self, ParseError> {
        let (body, tail) = frame.body::<BalloonResponseBody>()?;
        let word = body.more_and_count.get();
        Ok(Self { more_pages: word & 1 != 0, ranges: frame.ranges(tail, word >> 1)? })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(transaction_id: u32, more_pages: bool, ranges: &RangeList) -> Vec<u8> {
        emitted(|out| Self::emit_into(transaction_id, more_pages, ranges, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(transaction_id: u32, more_pages: bool, ranges: &RangeList, out: &mut Vec<u8>) {
        let ranges = ranges.words();
        let body = BalloonResponseBody {
            reserved: U32::ZERO,
            more_and_count: U32::new((count_field(ranges) << 1) | u32::from(more_pages)),
        };
        emit(out, MessageType::BALLOON_RESPONSE, transaction_id, &body, ranges)
    }
}

/// Linux `struct dm_unballoon_request`, after the header and before the ranges. The layout of the
/// two fields differs from that of a balloon response.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct UnballoonRequestBody {
    /// Bit 0: more pages; the rest is reserved.
    more: U32,
    range_count: U32,
}
const _: () = assert!(size_of::<UnballoonRequestBody>() == 16 - 8);
const _: () = assert!(16 + MAX_RANGES * 8 <= MAX_HOST_MESSAGE);

/// Message 8: pages returned to the guest. The guest answers only the message without `more_pages`.
///
/// Linux frees the pages without any check, so a host must name only pages that it has from this
/// guest, and each of them once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnballoonRequest<'a> {
    /// Another message of the same request follows.
    pub more_pages: bool,
    /// The pages.
    pub ranges: RangeWords<'a>,
}

impl<'a> UnballoonRequest<'a> {
    pub(crate) fn parse(frame: &Frame<'a>) -> Result<Self, ParseError> {
        let (body, tail) = frame.body::<UnballoonRequestBody>()?;
        Ok(Self {
            more_pages: body.more.get() & 1 != 0,
            ranges: frame.ranges(tail, body.range_count.get())?,
        })
    }

    /// The message as bytes, at most [`MAX_HOST_MESSAGE`].
    #[must_use]
    pub fn emit(transaction_id: u32, more_pages: bool, ranges: &RangeList) -> Vec<u8> {
        emitted(|out| Self::emit_into(transaction_id, more_pages, ranges, out))
    }

    /// Writes the message, at most [`MAX_HOST_MESSAGE`], to `out`, replacing its content.
    #[inline]
    pub fn emit_into(transaction_id: u32, more_pages: bool, ranges: &RangeList, out: &mut Vec<u8>) {
        let ranges = ranges.words();
        let body = UnballoonRequestBody {
            more: U32::new(more_pages.into()),
            range_count: U32::new(count_field(ranges)),
        };
        emit(out, MessageType::UNBALLOON_REQUEST, transaction_id, &body, ranges)
    }
}

/// Message 9: the guest has taken all pages of an unballoon request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnballoonResponse;

impl UnballoonResponse {
    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        emit(out, MessageType::UNBALLOON_RESPONSE, transaction_id, &(), RangeWords::default())
    }
}

/// The number of ranges for a count field, which always fits for a [`RangeList`].
pub(crate) fn count_field(ranges: RangeWords<'_>) -> u32 {
    u32::try_from(ranges.len()).unwrap_or(u32::MAX)
}
