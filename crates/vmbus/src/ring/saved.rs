//! Saving and restoring a channel's rings.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use page_range::Gpfn;
use saved_state::{Format, SavedState};
use serde::{Deserialize, Serialize};

use super::{ChannelRings, RingLayout, incoming::Incoming, outgoing::Outgoing, pages::RingPages};
use crate::{
    GuestMemory,
    protocol::ring::{PACKET_ALIGN, READ_INDEX},
    saved::{RestoreError, Result, ensure},
};

/// Rings as [`ChannelRings::save`] makes them, in one of the versions that there are.
///
/// Keep it by itself as bytes ([`SavedState`]), or as a part of a larger state by its `serde`
/// implementations. Either way what is read may be anything: [`ChannelRings::restore`] checks what it
/// says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SavedRings(Version);

impl SavedState for SavedRings {
    const FORMAT: Format = Format { magic: *b"HVVMBRNG", name: "a channel's rings", newest: 1 };
}

/// A version, once released, stays as it is. A new one is a new variant behind those that there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Version {
    V1(Form),
}

/// Version 1. The order of the fields determines the bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Form {
    /// The position up to which the guest's ring is copied, and its write index as last seen.
    incoming_read: u32,
    incoming_end: u32,
    /// Bytes copied and not yet received.
    unread: Vec<u8>,
    masked: bool,
    /// Whether the guest must be signalled at the end of the batch.
    signal: bool,
    /// The position of the next packet, and the guest's read index as last seen.
    outgoing_write: u32,
    outgoing_read: u32,
    /// Whether the guest was told that the host waits for room.
    pending: bool,
}

impl<M: GuestMemory> ChannelRings<M> {
    /// Saves the state of the rings that is not in guest memory: the host's positions, since the
    /// guest can overwrite those in its memory, and packets that were copied out and not yet
    /// received.
    ///
    /// May be called at any time; save guest memory at the same moment. Deliver all requested
    /// signals first.
    #[must_use]
    pub fn save(&self) -> SavedRings {
        let (incoming, outgoing) = (&self.incoming, &self.outgoing);
        SavedRings(Version::V1(Form {
            incoming_read: incoming.read,
            incoming_end: incoming.end,
            unread: incoming.copied.unread().to_vec(),
            masked: incoming.masked,
            signal: incoming.signal,
            outgoing_write: outgoing.write,
            outgoing_read: outgoing.read,
            pending: outgoing.pending,
        }))
    }

    /// Restores rings saved by [`ChannelRings::save`]. Guest memory must be as it was then; nothing
    /// is written to it. Look for packets afterwards, because the guest's signal may have been lost
    /// with the old machine. For the same reason signal the guest once it runs; a spurious signal
    /// is harmless.
    ///
    /// # Errors
    /// [`RestoreError`] if these cannot be rings of this layout, or the rings are not in
    /// guest memory.
    pub fn restore(mem: M, layout: &RingLayout, saved: &SavedRings) -> Result<Self> {
        let SavedRings(Version::V1(form)) = saved;
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

/// The ring in `pages`, after checking that these are positions in it. The pages must be guest
/// memory; their contents are checked when used.
fn ring<M: GuestMemory>(mem: &M, pages: &[Gpfn], positions: [u32; 2]) -> Result<RingPages> {
    let pages = RingPages::new(pages).ok_or(RestoreError::Impossible { reason: "no ring" })?;
    let are_positions = positions.iter().all(|position| pages.is_position(*position));
    ensure(are_positions, "positions outside a ring, or between packets")?;
    pages.load(mem, READ_INDEX, Ordering::Relaxed)?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use std::vec;

    use page_range::Gpa;

    use super::*;
    use crate::AccessError;

    /// Memory that is zero whatever is written to it.
    struct Zeros;

    impl GuestMemory for Zeros {
        fn read(&self, _: Gpa, buf: &mut [u8]) -> core::result::Result<(), AccessError> {
            buf.fill(0);
            Ok(())
        }

        fn write(&self, _: Gpa, _: &[u8]) -> core::result::Result<(), AccessError> {
            Ok(())
        }

        fn load_u32(&self, _: Gpa, _: Ordering) -> core::result::Result<u32, AccessError> {
            Ok(0)
        }

        fn store_u32(&self, _: Gpa, _: u32, _: Ordering) -> core::result::Result<(), AccessError> {
            Ok(())
        }
    }

    /// Whether rings of a page each are restored with so many bytes copied and not yet received.
    fn is_restored(unread: usize) -> bool {
        let pages: Vec<_> = (0..4).filter_map(Gpfn::new).collect();
        let layout = RingLayout::new(&pages, 2).unwrap();
        let form = Form {
            incoming_read: 0,
            incoming_end: 0,
            unread: vec![0; unread],
            masked: false,
            signal: false,
            outgoing_write: 0,
            outgoing_read: 0,
            pending: false,
        };
        ChannelRings::restore(Zeros, &layout, &SavedRings(Version::V1(form))).is_ok()
    }

    #[test]
    fn no_more_is_unread_than_a_ring_holds_and_no_part_of_eight_bytes() {
        assert_eq!([0, 24, 4096].map(is_restored), [true; 3]);
        assert_eq!([12, 4100, 4104].map(is_restored), [false; 3]);
    }
}
