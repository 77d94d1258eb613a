//! Guest packets, copied into private memory.

use alloc::{vec, vec::Vec};
use core::ops::Range;

use zerocopy::FromBytes;

use super::RingError;
use crate::protocol::ring::{DESCRIPTOR_LEN, FOOTER_LEN, PacketDescriptor, PacketKind};

/// A packet from the guest, copied out of its ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The packet's kind. Only [`PacketKind::DATA_IN_BAND`] and [`PacketKind::COMPLETION`] carry
    /// all their data in the payload; a device drops and counts kinds that it does not know.
    pub kind: PacketKind,
    /// The guest's transaction ID.
    pub transaction_id: u64,
    /// Whether the guest wants [`ChannelRings::complete`](super::ChannelRings::complete) for it.
    pub completion_requested: bool,
    /// The data, padded with up to 7 bytes.
    pub payload: &'a [u8],
}

/// The validated contents of a packet's descriptor.
pub(super) struct Checked {
    descriptor: PacketDescriptor,
    /// Offset from the start of the packet, in bytes.
    payload: Range<usize>,
    /// Length in bytes, including descriptor and footer.
    pub(super) total: usize,
}

impl Checked {
    /// Checks the packet at the start of `bytes`, which may be shorter than the packet; `used` is
    /// the number of bytes that the guest wrote from there on.
    #[inline]
    pub(super) fn new(bytes: &[u8], used: u32) -> Result<Self, RingError> {
        let Ok((descriptor, _)) = PacketDescriptor::read_from_prefix(bytes) else {
            return Err(RingError::PacketLength { len: DESCRIPTOR_LEN, used });
        };
        let len = u32::from(descriptor.len8.get()) << 3;
        let total = len.saturating_add(FOOTER_LEN);
        if len < DESCRIPTOR_LEN || used < total {
            return Err(RingError::PacketLength { len, used });
        }
        let offset = u32::from(descriptor.data_offset8.get()) << 3;
        if !(DESCRIPTOR_LEN..=len).contains(&offset) {
            return Err(RingError::PayloadOffset { offset, len });
        }
        Ok(Self { descriptor, payload: offset as usize..len as usize, total: total as usize })
    }

    /// The packet made of exactly these bytes.
    #[inline]
    pub(super) fn packet<'a>(&self, bytes: &'a [u8]) -> Packet<'a> {
        let flags = self.descriptor.flags.get();
        Packet {
            kind: PacketKind(self.descriptor.kind.get()),
            transaction_id: self.descriptor.transaction_id.get(),
            completion_requested: flags & PacketDescriptor::COMPLETION_REQUESTED != 0,
            payload: bytes.get(self.payload.clone()).unwrap_or_default(),
        }
    }
}

/// Bytes copied out of a ring, in a buffer that is never grown or cleared.
#[derive(Debug)]
pub(super) struct Copied {
    buf: Vec<u8>,
    /// The part of the buffer that holds bytes not yet taken.
    unread: Range<usize>,
}

impl Copied {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self { buf: vec![0; bytes], unread: 0..0 }
    }

    /// Puts `bytes` into an empty buffer as if copied. Returns false if they do not fit.
    pub(super) fn restore(&mut self, bytes: &[u8]) -> bool {
        let Some(room) = self.buf.get_mut(..bytes.len()) else { return false };
        room.copy_from_slice(bytes);
        self.unread = 0..bytes.len();
        true
    }

    /// The bytes not yet taken.
    #[inline]
    pub(super) fn unread(&self) -> &[u8] {
        self.buf.get(self.unread.clone()).unwrap_or_default()
    }

    /// Takes the next `len` bytes, or all if there are fewer.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> &[u8] {
        let start = self.unread.start;
        let end = start.saturating_add(len).min(self.unread.end);
        self.unread.start = end;
        self.buf.get(start..end).unwrap_or_default()
    }

    /// Appends up to `wanted` bytes copied by `read`, fewer if the buffer fills up. Returns the
    /// number appended.
    pub(super) fn add<E>(
        &mut self,
        wanted: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<usize, E> {
        self.buf.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let room = self.buf.get_mut(self.unread.end..).unwrap_or_default();
        let len = wanted.min(room.len());
        read(room.get_mut(..len).unwrap_or_default())?;
        self.unread.end = self.unread.end.saturating_add(len);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(copied: &mut Copied, bytes: &[u8]) -> usize {
        let read = |buf: &mut [u8]| {
            let len = buf.len();
            buf.copy_from_slice(&bytes[..len]);
            Ok::<_, ()>(())
        };
        copied.add(bytes.len(), read).unwrap()
    }

    #[test]
    fn what_is_left_moves_to_the_front_and_the_buffer_stays_as_it_is() {
        let mut copied = Copied::with_capacity(8);
        assert_eq!(add(&mut copied, &[1, 2, 3, 4, 5, 6]), 6);
        assert_eq!(copied.take(4), [1, 2, 3, 4]);
        assert_eq!(add(&mut copied, &[7, 8, 9, 10, 11, 12, 13]), 6);
        assert_eq!(copied.unread(), [5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(copied.take(9), [5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!((copied.unread().len(), copied.buf.len()), (0, 8));
    }
}
