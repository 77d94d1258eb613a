//! A channel's two rings in guest memory.
//!
//! Each ring has a control page and a data area. The sender owns the write index, the receiver the
//! read index. The host keeps private copies of its own two indices and never reads them back; it
//! loads the guest's indices once per use and checks them. All available packets are copied out
//! once before any is parsed. A violation of the ring's rules is a [`RingError`]. The channel must
//! then be stopped, because the start of the next packet is unknown.
//!
//! Signals follow Linux `drivers/hv/ring_buffer.c` and OpenVMM `vmbus_ring`: a sender signals if
//! the ring was empty (unless masked), a receiver if it made the room that a blocked sender waits
//! for.

mod incoming;
mod layout;
mod outgoing;
mod packet;
mod pages;
mod saved;

pub use layout::{LayoutError, MAX_RING_PAGES, RingLayout};
pub use packet::Packet;
pub use saved::SavedRings;

use self::{incoming::Incoming, outgoing::Outgoing};
use crate::{AccessError, GuestMemory, protocol::ring::PacketKind};

/// The host's end of a channel's rings.
///
/// Receive after every signal from the guest, and once after open:
///
/// ```
/// # use vmbus::{GuestMemory, ring::{ChannelRings, RingError}};
/// # fn wake_up<M: GuestMemory>(
/// #     rings: &mut ChannelRings<M>, mut handle: impl FnMut(&[u8]), signal: impl FnOnce(),
/// # ) -> Result<(), RingError> {
/// while let Some(packet) = rings.receive()? {
///     handle(packet.payload);
/// }
/// if rings.end_receive() {
///     signal();
/// }
/// # Ok(())
/// # }
/// ```
///
/// Only after [`receive`](Self::receive) has returned `None` does the guest signal its next packet.
/// A caller that stops earlier, to limit the work of one wake-up, must still call `end_receive` and
/// resume without a signal.
#[derive(Debug)]
pub struct ChannelRings<M> {
    mem: M,
    incoming: Incoming,
    outgoing: Outgoing,
}

/// The outcome of sending a packet to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the ring.
    Written {
        /// Whether the guest must be signalled.
        signal: bool,
    },
    /// The ring has no room. The guest was asked to signal when there is room; older guests do not,
    /// so also retry on a timer.
    Full,
}

/// The guest corrupted the ring; the channel must be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Part of the ring is not in guest memory.
    #[error("ring is outside guest memory")]
    Access(#[from] AccessError),
    /// A ring has no data page, or too many.
    #[error("ring has no data page, or too many pages")]
    Layout,
    /// The write index is outside the ring or not a multiple of 8.
    #[error("write index {0:#x} is no position in the ring")]
    WriteIndex(u32),
    /// The read index is outside the ring, not a multiple of 8, or beyond the packets sent.
    #[error("read index {0:#x} is no position in the ring, or beyond what was sent")]
    ReadIndex(u32),
    /// A packet is shorter than its descriptor, or longer than the data in the ring.
    #[error("packet of {len} bytes, with {used} bytes in the ring")]
    PacketLength {
        /// Length of the packet without its footer, in bytes.
        len: u32,
        /// Bytes in the ring, including the footer.
        used: u32,
    },
    /// A packet's payload starts inside its descriptor or after its end.
    #[error("payload at byte {offset} of a packet of {len}")]
    PayloadOffset {
        /// Offset of the payload.
        offset: u32,
        /// The packet's length without its footer.
        len: u32,
    },
    /// The guest made its ring too small for a packet that the host must send.
    #[error("payload of {payload} bytes can never fit a ring of {ring}")]
    TooLong {
        /// Length of the payload in bytes.
        payload: usize,
        /// Size of the ring in bytes.
        ring: u32,
    },
}

impl<M: GuestMemory> ChannelRings<M> {
    /// Takes over the rings when the guest opens the channel, and no earlier, because Linux may
    /// still clear the control pages until then. Both sides continue from the indices in the pages.
    ///
    /// # Errors
    /// [`RingError`] if the pages are not guest memory or hold impossible indices.
    pub fn open(mem: M, layout: &RingLayout) -> Result<Self, RingError> {
        let incoming = Incoming::open(&mem, layout.incoming())?;
        let outgoing = Outgoing::open(&mem, layout.outgoing())?;
        Ok(Self { mem, incoming, outgoing })
    }

    /// The next packet, copied out of the ring; `None` if the ring is empty.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring.
    #[inline]
    pub fn receive(&mut self) -> Result<Option<Packet<'_>>, RingError> {
        self.incoming.receive(&self.mem)
    }

    /// Ends a batch. Returns whether the guest must be signalled because the batch made the room it
    /// waits for.
    #[must_use]
    pub fn end_receive(&mut self) -> bool {
        self.incoming.end_receive()
    }

    /// Sends `payload` in one packet.
    ///
    /// # Errors
    /// [`RingError`] if the guest corrupted the ring, or made it too small for the packet.
    pub fn send(&mut self, payload: &[u8], transaction_id: u64) -> Result<Sent, RingError> {
        self.outgoing.send(&self.mem, PacketKind::DATA_IN_BAND, payload, transaction_id)
    }

    /// Whether the guest has left packets unread and wants to be signalled.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring.
    pub fn is_unread(&self) -> Result<bool, RingError> {
        self.outgoing.is_unread(&self.mem)
    }

    /// Completes a packet that requested a completion.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring.
    pub fn complete(&mut self, transaction_id: u64) -> Result<Sent, RingError> {
        self.outgoing.send(&self.mem, PacketKind::COMPLETION, &[], transaction_id)
    }
}
