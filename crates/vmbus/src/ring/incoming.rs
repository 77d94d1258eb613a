//! The guest-to-host ring, on which the host receives.
//!
//! Everything the guest has written is copied out at once, and its room is released before the
//! first packet is parsed, so a guest with a short ring can continue while the host works.

use core::{mem::take, sync::atomic::Ordering};

use page_range::Gpfn;

use super::{
    Packet, RingError,
    packet::{Checked, Copied},
    pages::RingPages,
};
use crate::{
    GuestMemory,
    protocol::ring::{DESCRIPTOR_LEN, FOOTER_LEN, INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX},
};

/// Maximum number of bytes copied at once: the length of the longest possible packet.
const MAX_COPY: u32 = (u16::MAX as u32) * 8 + FOOTER_LEN;
const _: () = assert!(MAX_COPY == 512 << 10);

#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) pages: RingPages,
    /// The position up to which the ring has been copied. Never read back from the control page
    /// after open.
    pub(super) read: u32,
    /// The write index, as last loaded.
    pub(super) end: u32,
    /// Packets not yet received. The last one is truncated if the ring holds more than
    /// [`MAX_COPY`].
    pub(super) copied: Copied,
    /// Whether the guest has been told not to signal.
    pub(super) masked: bool,
    /// Whether copying has made the room that the guest waits for.
    pub(super) signal: bool,
}

impl Incoming {
    pub(super) fn open<M: GuestMemory>(mem: &M, pages: &[Gpfn]) -> Result<Self, RingError> {
        let pages = RingPages::new(pages).ok_or(RingError::Layout)?;
        let read = pages.load_read_index(mem)?;
        pages.load_write_index(mem)?;
        pages.store(mem, INTERRUPT_MASK, 0, Ordering::Relaxed)?;
        // From here on the guest signals any packet that the first look misses.
        mem.fence();
        let copied = Self::buffer(&pages);
        Ok(Self { pages, read, end: read, copied, masked: false, signal: false })
    }

    /// Buffer size for one copy out of a ring.
    pub(super) fn buffer(pages: &RingPages) -> Copied {
        Copied::with_capacity(pages.size().min(MAX_COPY) as usize)
    }

    pub(super) fn receive<M: GuestMemory>(
        &mut self,
        mem: &M,
    ) -> Result<Option<Packet<'_>>, RingError> {
        let unread = self.copied.unread().len();
        if unread < DESCRIPTOR_LEN as usize {
            if unread == 0 && self.waiting() == 0 && !self.look(mem)? {
                return Ok(None);
            }
            self.copy(mem)?;
        }
        let unread = self.copied.unread();
        let used = u32::try_from(unread.len()).unwrap_or(MAX_COPY).saturating_add(self.waiting());
        let checked = Checked::new(unread, used)?;
        if checked.total > unread.len() {
            self.copy(mem)?;
        }
        Ok(Some(checked.packet(self.copied.take(checked.total))))
    }

    pub(super) fn end_receive(&mut self) -> bool {
        take(&mut self.signal)
    }

    /// Bytes known to be in the ring and not yet copied.
    const fn waiting(&self) -> u32 {
        self.pages.used(self.end, self.read)
    }

    /// Looks for packets. Finds none only after telling the guest to signal the next one.
    fn look<M: GuestMemory>(&mut self, mem: &M) -> Result<bool, RingError> {
        self.end = self.pages.load_write_index(mem)?;
        if self.waiting() == 0 && self.masked {
            self.masked = false;
            self.pages.store(mem, INTERRUPT_MASK, 0, Ordering::Release)?;
            // Pairs with the guest's barrier between publishing a packet and reading our mask.
            mem.fence();
            self.end = self.pages.load_write_index(mem)?;
        }
        let found = self.waiting() != 0;
        if found && !self.masked {
            self.masked = true;
            self.pages.store(mem, INTERRUPT_MASK, 1, Ordering::Relaxed)?;
        }
        Ok(found)
    }

    /// Copies as many waiting bytes as the buffer holds, and releases their room in the ring.
    fn copy<M: GuestMemory>(&mut self, mem: &M) -> Result<(), RingError> {
        let (pages, before) = (&self.pages, self.read);
        let waiting = pages.used(self.end, before);
        let len = self.copied.add(waiting as usize, |buf| pages.read(mem, before, buf))?;
        self.read = pages.advance(before, u32::try_from(len).unwrap_or(waiting));
        self.pages.store(mem, READ_INDEX, self.read, Ordering::Release)?;
        // Pairs with the guest's barrier between writing `pending_send_size` and re-reading our
        // index.
        mem.fence();
        self.signal |= self.made_awaited_room(mem, before)?;
        Ok(())
    }

    /// Whether advancing the read index from `before` made the room that a blocked sender waits
    /// for. The interrupt mask does not matter here (Linux `hv_pkt_iter_close`). Nor does the
    /// feature bit: a size that nobody waits for costs a signal, a signal withheld the channel.
    fn made_awaited_room<M: GuestMemory>(&self, mem: &M, before: u32) -> Result<bool, RingError> {
        let pending = self.pages.load(mem, PENDING_SEND_SIZE, Ordering::Acquire)?;
        if pending == 0 {
            return Ok(false);
        }
        let write = self.pages.load_write_index(mem)?;
        let free_before = self.pages.free(write, before);
        let free_now = self.pages.free(write, self.read);
        Ok(free_before <= pending && free_now > pending)
    }
}
