//! Facts for the guest (message 12).

use alloc::vec::Vec;

use page_range::PageCount;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::{Frame, emit, emitted};
use crate::{MessageType, ParseError, RangeWords};

/// Linux `INFO_TYPE_MAX_PAGE_CNT`.
const MAXIMUM_PAGE_COUNT: u32 = 0;

/// Linux `struct dm_info_msg` and `struct dm_info_header`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct InfoBody {
    reserved: U32,
    /// Bytes from `kind` on.
    info_size: U32,
    kind: U32,
    /// Bytes after this struct.
    data_size: U32,
}
const _: () = assert!(size_of::<InfoBody>() == 24 - 8);

/// An [`InfoBody`] with the only known kind of data.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MaximumPageCountBody {
    info: InfoBody,
    pages: U64,
}
const _: () = assert!(size_of::<MaximumPageCountBody>() == 32 - 8);

/// Message 12: a fact for the guest, which does not answer. Only for protocol version 1.0 and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoMessage {
    /// The most memory the guest will ever have.
    MaximumPageCount(PageCount),
    /// A kind of fact that is not documented.
    Other {
        /// Its number.
        kind: u32,
    },
}

impl InfoMessage {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<InfoBody>()?;
        match body.kind.get() {
            MAXIMUM_PAGE_COUNT => {
                let (body, _) = frame.body::<MaximumPageCountBody>()?;
                Ok(Self::MaximumPageCount(PageCount::new(body.pages.get())))
            }
            kind => Ok(Self::Other { kind }),
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
        let number = MessageType::INFO_MESSAGE;
        match self {
            Self::MaximumPageCount(pages) => {
                let body = MaximumPageCountBody {
                    info: info_body(MAXIMUM_PAGE_COUNT, 8),
                    pages: U64::new(pages.get()),
                };
                emit(out, number, transaction_id, &body, RangeWords::default())
            }
            Self::Other { kind } => {
                emit(out, number, transaction_id, &info_body(kind, 0), RangeWords::default())
            }
        }
    }
}

fn info_body(kind: u32, data_size: u32) -> InfoBody {
    InfoBody {
        reserved: U32::ZERO,
        info_size: U32::new(data_size.saturating_add(8)),
        kind: U32::new(kind),
        data_size: U32::new(data_size),
    }
}
