//! A channel's rings to bytes and back.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use page_range::Gpfn;
use saved_state::Format;
use serde::{Deserialize, Serialize};

use super::{ChannelRings, RingLayout, incoming::Incoming, outgoing::Outgoing, pages::RingPages};
use crate::{
    GuestMemory,
    protocol::ring::{PACKET_ALIGN, READ_INDEX},
    saved::{RestoreError, Result, ensure},
};

const FORMAT: Format = Format { magic: *b"HVVMBRNG", name: "a channel's rings", newest: 1 };

/// Version 1, as it is written. The bytes follow from the order of the fields, so nothing here may
/// change but by a new version beside this one.
#[derive(Debug, Serialize, Deserialize)]
struct Form<'a> {
    /// Up to where the guest's ring is copied, and its write index as last seen.
    incoming_read: u32,
    incoming_end: u32,
    /// What was copied and nobody has received.
    unread: Cow<'a, [u8]>,
    masked: bool,
    /// The guest is to be signalled at the end of the batch.
    signal: bool,
    /// Where the next packet will start, and the guest's read index as last seen.
    outgoing_write: u32,
    outgoing_read: u32,
    /// The guest was told that this side waits for room.
    pending: bool,
}

impl<M: GuestMemory> ChannelRings<M> {
    /// What this side knows of the rings and does not have in guest memory, as bytes: its
    /// positions, which the guest can overwrite there, and packets that were copied out and not
    /// received yet.
    ///
    /// May be called at any time, with the guest's memory as it is then. Signals that were asked
    /// for must be given before.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let (incoming, outgoing) = (&self.incoming, &self.outgoing);
        FORMAT.write(&Form {
            incoming_read: incoming.read,
            incoming_end: incoming.end,
            unread: incoming.copied.unread().into(),
            masked: incoming.masked,
            signal: incoming.signal,
            outgoing_write: outgoing.write,
            outgoing_read: outgoing.read,
            pending: outgoing.pending,
        })
    }

    /// The rings that [`ChannelRings::save`] made `bytes` of, in memory as it was then. Writes
    /// nothing. Look for packets afterwards: the guest's signal may be lost with the old machine.
    /// For the same reason the guest should get a signal once it runs; one too many does no harm.
    ///
    /// # Errors
    /// [`RestoreError`] if the bytes are no saved rings, or none of this layout, or the rings are
    /// not in guest memory.
    pub fn restore(mem: M, layout: &RingLayout, bytes: &[u8]) -> Result<Self> {
        let form: Form<'_> = FORMAT.read(bytes)?.decode()?;
        let pages = ring(&mem, layout.incoming(), [form.incoming_read, form.incoming_end])?;
        let mut copied = Incoming::buffer(&pages);
        let is_kept = copied.restore(&form.unread) && form.unread.len().is_multiple_of(ALIGN);
        ensure(is_kept, "more bytes copied than a ring has, or parts of packets")?;
        let incoming = Incoming {
            pages,
            read: form.incoming_read,
            end: form.incoming_end,
            copied,
            masked: form.masked,
            signal: form.signal,
        };
        let outgoing = Outgoing {
            pages: ring(&mem, layout.outgoing(), [form.outgoing_write, form.outgoing_read])?,
            write: form.outgoing_write,
            read: form.outgoing_read,
            pending: form.pending,
        };
        Ok(Self { mem, incoming, outgoing })
    }
}

const ALIGN: usize = PACKET_ALIGN as usize;

/// The ring in `pages`, in which these are positions. Of the guest's memory it needs to be there
/// only; what it holds is looked at when it is used.
fn ring<M: GuestMemory>(mem: &M, pages: &[Gpfn], positions: [u32; 2]) -> Result<RingPages> {
    let pages = RingPages::new(pages).ok_or(RestoreError::Impossible { reason: "no ring" })?;
    let are_positions = positions.iter().all(|position| pages.is_position(*position));
    ensure(are_positions, "positions outside a ring, or between packets")?;
    pages.load(mem, READ_INDEX, Ordering::Relaxed)?;
    Ok(pages)
}
