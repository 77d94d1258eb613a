//! A channel's two rings in guest memory.
//!
//! Each ring is a control page and a data area. The sender owns the write index, the receiver the
//! read index; this side keeps its own two in private and never reads them back, loads the guest's
//! once per use and checks them. Packets are copied out, once and as many as there are, before they
//! are looked at. What breaks the ring's rules is a [`RingError`]: how far to skip is unknown then, so
//! the channel must be stopped.
//!
//! Signals follow Linux `drivers/hv/ring_buffer.c` and OpenVMM `vmbus_ring`: a sender signals when
//! the ring was empty (unless masked), a receiver when it made the room a blocked sender waits for.

mod incoming;
mod layout;
mod outgoing;
mod packet;
mod pages;
mod saved;

pub use layout::{LayoutError, MAX_RING_PAGES, RingLayout};
pub use packet::Packet;

use self::{incoming::Incoming, outgoing::Outgoing};
use crate::{AccessError, GuestMemory, protocol::ring::PacketKind};

/// The host's end of a channel's rings.
///
/// Receiving, after every signal from the guest and once after open:
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
/// Once [`receive`](Self::receive) has returned `None`, the guest signals its next packet, and not
/// before. Whoever stops earlier, to bound the work of one wake-up, calls `end_receive` and must
/// come back by itself.
#[derive(Debug)]
pub struct ChannelRings<M> {
    mem: M,
    incoming: Incoming,
    outgoing: Outgoing,
}

/// What became of a packet to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is in the ring.
    Written {
        /// Whether the guest must be signalled.
        signal: bool,
    },
    /// The ring has no room. The guest was asked to signal when it has; older guests do not, so try
    /// again by timer too.
    Full,
}

/// The guest broke the ring; the channel must be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The ring is not all in guest memory.
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
    /// A packet is shorter than its descriptor, or longer than what was written to the ring.
    #[error("packet of {len} bytes, with {used} bytes in the ring")]
    PacketLength {
        /// The packet's length without its footer, in bytes.
        len: u32,
        /// Bytes there are, footer included.
        used: u32,
    },
    /// A packet's payload starts in its descriptor, or behind its end.
    #[error("payload at byte {offset} of a packet of {len}")]
    PayloadOffset {
        /// Where the payload would start.
        offset: u32,
        /// The packet's length without its footer.
        len: u32,
    },
    /// The guest made its ring too small for a packet that this side must send.
    #[error("payload of {payload} bytes can never fit a ring of {ring}")]
    TooLong {
        /// Bytes of payload.
        payload: usize,
        /// Bytes of the ring.
        ring: u32,
    },
}

impl<M: GuestMemory> ChannelRings<M> {
    /// Takes over the rings when the guest opens the channel; not earlier, since Linux clears the
    /// control pages until then. The indices in the pages are where both sides go on.
    ///
    /// # Errors
    /// [`RingError`] if the pages are not guest memory or hold impossible indices.
    pub fn open(mem: M, layout: &RingLayout) -> Result<Self, RingError> {
        let incoming = Incoming::open(&mem, layout.incoming())?;
        let outgoing = Outgoing::open(&mem, layout.outgoing())?;
        Ok(Self { mem, incoming, outgoing })
    }

    /// The next packet, copied out of the ring; `None` when there is no more.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring.
    #[inline]
    pub fn receive(&mut self) -> Result<Option<Packet<'_>>, RingError> {
        self.incoming.receive(&self.mem)
    }

    /// Ends a batch: returns whether the guest must be signalled because it waits for room that the
    /// batch has made.
    #[must_use]
    pub fn end_receive(&mut self) -> bool {
        self.incoming.end_receive()
    }

    /// Sends `payload` in one packet.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring, or made it too small for the packet.
    pub fn send(&mut self, payload: &[u8], transaction_id: u64) -> Result<Sent, RingError> {
        self.outgoing.send(&self.mem, PacketKind::DATA_IN_BAND, payload, transaction_id)
    }

    /// Answers a packet that asked for a completion.
    ///
    /// # Errors
    /// [`RingError`] if the guest broke the ring.
    pub fn complete(&mut self, transaction_id: u64) -> Result<Sent, RingError> {
        self.outgoing.send(&self.mem, PacketKind::COMPLETION, &[], transaction_id)
    }
}
