//! The message header, and splitting and composing of messages.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{MessageType, ParseError, RangeWords};

/// The most bytes a host may send in one message, including padding to a multiple of 8: with the
/// packet's header of 16 bytes it is a page.
///
/// Linux copies a message into a buffer of one page and loops for ever on a longer one
/// (`hv_balloon.c`, `recv_buffer`). Linux 5.12 to 5.16, and stable kernels of that time, copy the
/// header too and lose step in the ring if both together are longer than a page.
pub const MAX_HOST_MESSAGE: usize = 4096 - 16;

/// Bytes of the header.
pub(crate) const HEADER_SIZE: usize = size_of::<Header>();
const _: () = assert!(HEADER_SIZE == 8);

/// The start of every message. Linux `struct dm_header`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    number: U16,
    /// Bytes of the message, including the header.
    size: U16,
    transaction_id: U32,
}

/// A message split into its parts, with the body still unchecked.
pub(crate) struct Frame<'a> {
    pub(crate) number: MessageType,
    pub(crate) transaction_id: u32,
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Finds the message in a packet. Bytes after the message are padding.
    pub(crate) fn parse(packet: &'a [u8]) -> Result<Self, ParseError> {
        let len = packet.len();
        let (header, rest) =
            Header::ref_from_prefix(packet).map_err(|_| ParseError::NoHeader { len })?;
        let size = header.size.get();
        let body = usize::from(size)
            .checked_sub(HEADER_SIZE)
            .and_then(|body_size| rest.get(..body_size))
            .ok_or(ParseError::BadSize { size, len })?;
        Ok(Self {
            number: MessageType::from_wire(header.number.get()),
            transaction_id: header.transaction_id.get(),
            body,
        })
    }

    /// Bytes of the message, including the header.
    pub(crate) fn size(&self) -> u64 {
        wide(self.body.len()).saturating_add(wide(HEADER_SIZE))
    }

    /// The fixed part of the body, and the bytes after it.
    pub(crate) fn body<T>(&self) -> Result<(&'a T, &'a [u8]), ParseError>
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        T::ref_from_prefix(self.body)
            .map_err(|_| self.too_short(wide(size_of::<T>()).saturating_add(wide(HEADER_SIZE))))
    }

    /// The first `count` range words of `tail`, the rest that [`Frame::body`] returned.
    pub(crate) fn ranges(&self, tail: &'a [u8], count: u32) -> Result<RangeWords<'a>, ParseError> {
        let bytes = u64::from(count).saturating_mul(wide(size_of::<U64>()));
        let fixed = self.size().saturating_sub(wide(tail.len()));
        usize::try_from(count)
            .ok()
            .and_then(|count| <[U64]>::ref_from_prefix_with_elems(tail, count).ok())
            .map(|(words, _)| RangeWords::new(words))
            .ok_or_else(|| self.too_short(fixed.saturating_add(bytes)))
    }

    pub(crate) fn too_short(&self, needed: u64) -> ParseError {
        ParseError::TooShort { number: self.number, size: self.size(), needed }
    }
}

/// Writes the message of type `number` to `out`: the given body, followed by range words. Replaces
/// the content of `out` and reuses its memory.
#[inline]
pub(crate) fn emit(
    out: &mut Vec<u8>,
    number: MessageType,
    transaction_id: u32,
    body: &(impl IntoBytes + Immutable),
    ranges: RangeWords<'_>,
) {
    let parts = [body.as_bytes(), ranges.as_bytes()];
    let size = parts.iter().fold(HEADER_SIZE, |sum, part| sum.saturating_add(part.len()));
    let header = Header {
        number: U16::new(number.to_wire()),
        // The longest message, a full range list, has 4104 bytes.
        size: U16::new(u16::try_from(size).unwrap_or(u16::MAX)),
        transaction_id: U32::new(transaction_id),
    };
    out.clear();
    out.reserve(size);
    out.extend_from_slice(header.as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The bytes that `emit_into` writes, in a buffer of their own.
pub(crate) fn emitted(emit_into: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut message = Vec::new();
    emit_into(&mut message);
    message
}

fn wide(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}
