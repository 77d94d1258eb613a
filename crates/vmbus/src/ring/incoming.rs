//! The guest-to-host ring: this side receives.

use alloc::vec::Vec;
use core::{
    mem::{replace, take},
    sync::atomic::{Ordering, fence},
};

use page_range::Gpfn;
use zerocopy::{FromZeros, IntoBytes};

use super::{PacketInfo, RingError, pages::RingPages};
use crate::{
    GuestMemory,
    protocol::ring::{
        DESCRIPTOR_LEN, FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, FOOTER_LEN, INTERRUPT_MASK,
        PENDING_SEND_SIZE, PacketDescriptor, PacketKind, READ_INDEX,
    },
};

#[derive(Debug)]
pub(super) struct Incoming {
    pages: RingPages,
    /// Where the next packet starts. Never read back from the control page after open.
    read: u32,
    /// The read index the guest was last told.
    published: u32,
    /// The write index as last loaded: the packets of this batch end here.
    end: u32,
    /// Whether the guest is told not to signal.
    masked: bool,
    /// Whether reading has made room that the guest waits for.
    signal: bool,
}

impl Incoming {
    pub(super) fn open<M: GuestMemory>(mem: &M, pages: &[Gpfn]) -> Result<Self, RingError> {
        let pages = RingPages::new(pages).ok_or(RingError::Layout)?;
        let read = pages.load_read_index(mem)?;
        pages.load_write_index(mem)?;
        pages.store(mem, INTERRUPT_MASK, 0, Ordering::Relaxed)?;
        // From here on the guest signals a packet that the first look does not see.
        fence(Ordering::SeqCst);
        Ok(Self { pages, read, published: read, end: read, masked: false, signal: false })
    }

    pub(super) fn receive<M: GuestMemory>(
        &mut self,
        mem: &M,
        buf: &mut Vec<u8>,
    ) -> Result<Option<PacketInfo>, RingError> {
        if self.read == self.end && !self.look(mem)? {
            return Ok(None);
        }
        let mut descriptor = PacketDescriptor::new_zeroed();
        self.pages.read(mem, self.read, descriptor.as_mut_bytes())?;
        let packet = Packet::check(&descriptor, self.pages.used(self.end, self.read))?;
        buf.clear();
        buf.resize(packet.payload_len as usize, 0);
        self.pages.read(mem, self.pages.advance(self.read, packet.payload_offset), buf)?;
        self.read = self.pages.advance(self.read, packet.total_len);
        Ok(Some(packet.info))
    }

    pub(super) fn end_receive<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, RingError> {
        self.publish(mem)?;
        Ok(take(&mut self.signal))
    }

    /// Looks for packets; when there are none, only after the guest knows that all are read and
    /// that it is to signal the next one.
    fn look<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, RingError> {
        self.end = self.pages.load_write_index(mem)?;
        if self.read == self.end {
            if !self.publish(mem)? {
                return Ok(false);
            }
            self.end = self.pages.load_write_index(mem)?;
        }
        let found = self.read != self.end;
        if found && !self.masked {
            self.pages.store(mem, INTERRUPT_MASK, 1, Ordering::Relaxed)?;
            self.masked = true;
        }
        Ok(found)
    }

    /// Tells the guest what was read and lets it signal again. Returns whether there was anything
    /// to tell: then a packet may have come unsignalled, and the caller looks again.
    fn publish<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, RingError> {
        if self.read == self.published && !self.masked {
            return Ok(false);
        }
        let before = replace(&mut self.published, self.read);
        self.pages.store(mem, READ_INDEX, self.read, Ordering::Release)?;
        self.pages.store(mem, INTERRUPT_MASK, 0, Ordering::Release)?;
        self.masked = false;
        // Pairs with the guest's barriers: between its writing `pending_send_size` and re-reading
        // our index, and between its publishing a packet and reading our mask and index.
        fence(Ordering::SeqCst);
        if before != self.read && self.made_awaited_room(mem, before)? {
            self.signal = true;
        }
        Ok(true)
    }

    /// Whether moving the read index on from `before` made the room a blocked sender waits for.
    /// The interrupt mask plays no part in this (Linux `hv_pkt_iter_close`).
    fn made_awaited_room<M: GuestMemory>(&self, mem: &M, before: u32) -> Result<bool, RingError> {
        let pending = self.pages.load(mem, PENDING_SEND_SIZE, Ordering::Acquire)?;
        if pending == 0 {
            return Ok(false);
        }
        let features = self.pages.load(mem, FEATURE_BITS, Ordering::Acquire)?;
        if features & FEATURE_PENDING_SEND_SIZE == 0 {
            return Ok(false);
        }
        let write = self.pages.load_write_index(mem)?;
        let free_before = self.pages.free(write, before);
        let free_now = self.pages.free(write, self.read);
        Ok(free_before <= pending && free_now > pending)
    }
}

/// A packet whose lengths, in bytes, are checked against the ring.
struct Packet {
    info: PacketInfo,
    /// Where the payload starts, from the start of the packet.
    payload_offset: u32,
    payload_len: u32,
    /// With descriptor and footer.
    total_len: u32,
}

impl Packet {
    /// Checks a private copy of the descriptor against the `used` bytes of the ring.
    fn check(copy: &PacketDescriptor, used: u32) -> Result<Self, RingError> {
        let len = u32::from(copy.len8.get()) << 3;
        let total_len = len.saturating_add(FOOTER_LEN);
        if len < DESCRIPTOR_LEN || used < total_len {
            return Err(RingError::PacketLength { len, used });
        }
        let offset = u32::from(copy.data_offset8.get()) << 3;
        if !(DESCRIPTOR_LEN..=len).contains(&offset) {
            return Err(RingError::PayloadOffset { offset, len });
        }
        let requested = copy.flags.get() & PacketDescriptor::COMPLETION_REQUESTED != 0;
        let info = PacketInfo {
            kind: PacketKind(copy.kind.get()),
            transaction_id: copy.transaction_id.get(),
            completion_requested: requested,
        };
        Ok(Self {
            info,
            payload_offset: offset,
            payload_len: len.saturating_sub(offset),
            total_len,
        })
    }
}
