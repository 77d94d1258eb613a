//! The host-to-guest ring, on which the host sends.

use core::sync::atomic::Ordering;

use page_range::Gpfn;
use zerocopy::{Immutable, IntoBytes, Unaligned, little_endian::U64};

use super::{RingError, Sent, pages::RingPages};
use crate::{
    GuestMemory,
    protocol::ring::{
        DESCRIPTOR_LEN, FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, FOOTER_LEN, INTERRUPT_MASK,
        PACKET_ALIGN, PENDING_SEND_SIZE, PacketDescriptor, PacketKind, WRITE_INDEX,
    },
};

#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) pages: RingPages,
    /// The position of the next packet. Never read back from the control page after open.
    pub(super) write: u32,
    /// The guest's read index, as last loaded.
    pub(super) read: u32,
    /// Whether the guest has been told that the host waits for room.
    pub(super) pending: bool,
}

impl Outgoing {
    pub(super) fn open<M: GuestMemory>(mem: &M, pages: &[Gpfn]) -> Result<Self, RingError> {
        let pages = RingPages::new(pages).ok_or(RingError::Layout)?;
        let write = pages.load_write_index(mem)?;
        let read = pages.load_read_index(mem)?;
        pages.store(mem, PENDING_SEND_SIZE, 0, Ordering::Relaxed)?;
        let features = pages.load(mem, FEATURE_BITS, Ordering::Relaxed)?;
        let features = features | FEATURE_PENDING_SEND_SIZE;
        pages.store(mem, FEATURE_BITS, features, Ordering::Release)?;
        Ok(Self { pages, write, read, pending: false })
    }

    pub(super) fn send<M: GuestMemory>(
        &mut self,
        mem: &M,
        kind: PacketKind,
        payload: &[u8],
        transaction_id: u64,
    ) -> Result<Sent, RingError> {
        let len = self.packet_len(payload.len())?;
        if !self.has_room(mem, len)? {
            return Ok(Sent::Full);
        }
        let start = self.write;
        let descriptor = PacketDescriptor {
            kind: kind.0.into(),
            data_offset8: 2.into(),
            len8: len.len8.into(),
            flags: 0.into(),
            transaction_id: transaction_id.into(),
        };
        let position = self.pages.write(mem, start, descriptor.as_bytes())?;
        let position = self.pages.write(mem, position, payload)?;
        self.write = self.pages.write(mem, position, len.tail(&mut Tail::default(), start))?;
        if self.pending {
            self.pages.store(mem, PENDING_SEND_SIZE, 0, Ordering::Relaxed)?;
            self.pending = false;
        }
        self.pages.store(mem, WRITE_INDEX, self.write, Ordering::Release)?;
        Ok(Sent::Written { signal: self.guest_sleeps(mem, start)? })
    }

    /// Whether the guest has emptied the ring up to the packet at `start` and wants to be
    /// signalled.
    fn guest_sleeps<M: GuestMemory>(&self, mem: &M, start: u32) -> Result<bool, RingError> {
        // Pairs with the guest's barrier between clearing its mask and re-reading our index.
        mem.fence();
        if self.pages.load(mem, INTERRUPT_MASK, Ordering::Acquire)? != 0 {
            return Ok(false);
        }
        Ok(self.pages.load_read_index(mem)? == start)
    }

    /// Whether the guest has left packets unread and wants to be signalled.
    pub(super) fn is_unread<M: GuestMemory>(&self, mem: &M) -> Result<bool, RingError> {
        let is_masked = self.pages.load(mem, INTERRUPT_MASK, Ordering::Acquire)? != 0;
        Ok(!is_masked && self.pages.load_read_index(mem)? != self.write)
    }

    /// Whether the packet fits. If not, the guest is told how much room the host waits for.
    fn has_room<M: GuestMemory>(&mut self, mem: &M, len: PacketLen) -> Result<bool, RingError> {
        if self.load_free(mem)? > len.total {
            return Ok(true);
        }
        self.pages.store(mem, PENDING_SEND_SIZE, len.total, Ordering::Relaxed)?;
        self.pending = true;
        // The guest may have read the last packet before it saw the size, so check again.
        mem.fence();
        Ok(self.load_free(mem)? > len.total)
    }

    /// Loads the guest's read index, which moves only over packets that were sent.
    fn load_free<M: GuestMemory>(&mut self, mem: &M) -> Result<u32, RingError> {
        let read = self.pages.load_read_index(mem)?;
        if self.pages.used(read, self.read) > self.pages.used(self.write, self.read) {
            return Err(RingError::ReadIndex(read));
        }
        self.read = read;
        Ok(self.pages.free(self.write, read))
    }

    #[inline]
    fn packet_len(&self, payload: usize) -> Result<PacketLen, RingError> {
        let too_long = RingError::TooLong { payload, ring: self.pages.size() };
        let len = PacketLen::of(payload).ok_or(too_long)?;
        // An empty ring holds less than its size.
        if len.total < self.pages.size() { Ok(len) } else { Err(too_long) }
    }
}

#[derive(Clone, Copy)]
struct PacketLen {
    /// Length without the footer, in units of 8 bytes.
    len8: u16,
    /// Padding between payload and footer, in bytes.
    padding: usize,
    /// Total size of the packet in the ring, in bytes.
    total: u32,
}

impl PacketLen {
    #[inline]
    fn of(payload: usize) -> Option<Self> {
        let padded = payload.checked_next_multiple_of(PACKET_ALIGN as usize)?;
        let len = u32::try_from(padded).ok()?.checked_add(DESCRIPTOR_LEN)?;
        Some(Self {
            len8: u16::try_from(len / PACKET_ALIGN).ok()?,
            padding: padded.saturating_sub(payload),
            total: len.checked_add(FOOTER_LEN)?,
        })
    }

    /// Padding and footer of a packet that starts at `start`.
    #[inline]
    fn tail<'a>(&self, tail: &'a mut Tail, start: u32) -> &'a [u8] {
        tail.footer = (u64::from(start) << 32).into();
        let unused = tail.padding.len().saturating_sub(self.padding);
        tail.as_bytes().get(unused..).unwrap_or_default()
    }
}

/// The longest padding, followed by a footer.
#[derive(Default, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Tail {
    padding: [u8; PACKET_ALIGN as usize],
    footer: U64,
}
