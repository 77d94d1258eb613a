//! Addition of memory (messages 10 and 11).

use alloc::vec::Vec;

use page_range::PageCount;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::{Frame, emit, emitted};
use crate::{MessageType, ParseError, RangeWord, RangeWords};

/// Linux `struct dm_hot_add`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HotAddRequestBody {
    range: U64,
}
const _: () = assert!(size_of::<HotAddRequestBody>() == 16 - 8);

/// Linux `struct dm_hot_add_with_region`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HotAddWithRegionBody {
    range: U64,
    region: U64,
}
const _: () = assert!(size_of::<HotAddWithRegionBody>() == 24 - 8);

/// Message 10: memory the guest may use from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAddRequest {
    /// The pages that are backed now.
    pub range: RangeWord,
    /// The addresses the guest should set aside; without this, the guest rounds `range` outwards.
    /// The two forms share a type number and differ in size.
    pub region: Option<RangeWord>,
}

impl HotAddRequest {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        match frame.size() {
            16 => {
                let (body, _) = frame.body::<HotAddRequestBody>()?;
                Ok(Self { range: RangeWord::from_wire(body.range.get()), region: None })
            }
            24 => {
                let (body, _) = frame.body::<HotAddWithRegionBody>()?;
                Ok(Self {
                    range: RangeWord::from_wire(body.range.get()),
                    region: Some(RangeWord::from_wire(body.region.get())),
                })
            }
            size => Err(ParseError::HotAddForm { size }),
        }
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let range = U64::new(self.range.to_wire());
        let number = MessageType::HOT_ADD_REQUEST;
        match self.region {
            None => emit(
                out,
                number,
                transaction_id,
                &HotAddRequestBody { range },
                RangeWords::default(),
            ),
            Some(region) => {
                let body = HotAddWithRegionBody { range, region: U64::new(region.to_wire()) };
                emit(out, number, transaction_id, &body, RangeWords::default())
            }
        }
    }
}

/// The guest's result for a hot-add request; any number is possible on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAddResult(u32);

impl HotAddResult {
    /// Nothing was added, but a later request may succeed.
    pub const FAILURE: Self = Self(0);
    /// The pages reported were added. Success with no pages means that the host must never ask
    /// again.
    pub const SUCCESS: Self = Self(1);

    /// The result from the wire.
    #[must_use]
    pub const fn from_wire(number: u32) -> Self {
        Self(number)
    }

    /// The number for the wire.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self.0
    }
}

/// Linux `struct dm_hot_add_response`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HotAddResponseBody {
    pages: U32,
    result: U32,
}
const _: () = assert!(size_of::<HotAddResponseBody>() == 16 - 8);

/// Message 11: how much of a hot-add request the guest accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HotAddResponse {
    /// Pages added, from the start of the range; not necessarily online. The wire format has 32
    /// bits; a larger number is sent as the maximum.
    pub pages: PageCount,
    /// The meaning if that is not all of them.
    pub result: HotAddResult,
}

impl HotAddResponse {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<HotAddResponseBody>()?;
        Ok(Self {
            pages: PageCount::new(body.pages.get().into()),
            result: HotAddResult::from_wire(body.result.get()),
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
        let body = HotAddResponseBody {
            pages: U32::new(u32::try_from(self.pages.get()).unwrap_or(u32::MAX)),
            result: U32::new(self.result.to_wire()),
        };
        emit(out, MessageType::HOT_ADD_RESPONSE, transaction_id, &body, RangeWords::default())
    }
}
