//! Permanent removal of memory (messages 13 and 14): defined, but no known guest supports it.

use alloc::vec::Vec;

use page_range::PageCount;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::balloon::count_field;
use crate::header::{Frame, emit, emitted};
use crate::{MessageType, ParseError, RangeList, RangeWords};

/// QEMU `dynmem-proto.h`, `struct dm_hot_remove`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HotRemoveRequestBody {
    virtual_node: U32,
    pages: U32,
    qos_flags: U32,
    reserved: U32,
}
const _: () = assert!(size_of::<HotRemoveRequestBody>() == 24 - 8);

/// Message 13: the host asks for memory to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotRemoveRequest {
    /// The NUMA node to take it from.
    pub virtual_node: u32,
    /// The number of pages. The wire format has 32 bits; a larger number is sent as the maximum.
    pub pages: PageCount,
    /// Bit 0: large pages; bit 1: only from that node.
    pub qos_flags: u32,
}

impl HotRemoveRequest {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<HotRemoveRequestBody>()?;
        Ok(Self {
            virtual_node: body.virtual_node.get(),
            pages: PageCount::new(body.pages.get().into()),
            qos_flags: body.qos_flags.get(),
        })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let body = HotRemoveRequestBody {
            virtual_node: U32::new(self.virtual_node),
            pages: U32::new(u32::try_from(self.pages.get()).unwrap_or(u32::MAX)),
            qos_flags: U32::new(self.qos_flags),
            reserved: U32::ZERO,
        };
        emit(out, MessageType::HOT_REMOVE_REQUEST, transaction_id, &body, RangeWords::default())
    }
}

/// QEMU `dynmem-proto.h`, `struct dm_hot_remove_response`, after the header and before the ranges.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HotRemoveResponseBody {
    result: U32,
    range_count: U32,
    /// Bit 0: more pages; the rest is reserved.
    more: U64,
}
const _: () = assert!(size_of::<HotRemoveResponseBody>() == 24 - 8);

/// Message 14: the memory that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotRemoveResponse<'a> {
    /// The guest's result; its meaning is unknown.
    pub result: u32,
    /// Another response to the same request follows.
    pub more_pages: bool,
    /// The pages.
    pub ranges: RangeWords<'a>,
}

impl<'a> HotRemoveResponse<'a> {
    pub(crate) fn parse(frame: &Frame<'a>) -> Result<Self, ParseError> {
        let (body, tail) = frame.body::<HotRemoveResponseBody>()?;
        Ok(Self {
            result: body.result.get(),
            more_pages: body.more.get() & 1 != 0,
            ranges: frame.ranges(tail, body.range_count.get())?,
        })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(transaction_id: u32, result: u32, more_pages: bool, ranges: &RangeList) -> Vec<u8> {
        emitted(|out| Self::emit_into(transaction_id, result, more_pages, ranges, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(
        transaction_id: u32,
        result: u32,
        more_pages: bool,
        ranges: &RangeList,
        out: &mut Vec<u8>,
    ) {
        let ranges = ranges.words();
        let body = HotRemoveResponseBody {
            result: U32::new(result),
            range_count: U32::new(count_field(ranges)),
            more: U64::new(more_pages.into()),
        };
        emit(out, MessageType::HOT_REMOVE_RESPONSE, transaction_id, &body, ranges)
    }
}
