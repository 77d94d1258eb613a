//! Any `vm-memory` backend as the guest memory of [`vmbus`].

use std::ops::Deref;
use std::sync::atomic::Ordering;

use page_range::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmbus::{AccessError, GuestMemory};

use crate::copy::{copy_in, copy_out};

/// Guest memory for the rings of a channel, over any form in which a VMM holds its memory: an
/// `Arc<GuestMemoryMmap>`, a `&GuestRegionCollection<_>`, or the result of
/// [`GuestAddressSpace::memory`](vm_memory::GuestAddressSpace::memory).
///
/// It shows the memory as it was when this was made. Make one when a channel opens and keep it
/// while the channel is open: the rings are part of the memory that the guest had by then, and a
/// packet needs no further lookup of the address space. For memory behind a `GuestMemoryAtomic`
/// hold `space.memory().into_inner()`, since its guards are meant to be short-lived.
///
/// All copies are volatile, so that checked data cannot change afterwards. Every write is marked in
/// the memory's dirty bitmap, if it has one, so that a live migration copies the page again.
#[derive(Clone, Copy, Debug)]
pub struct GuestBusMemory<G>(G);

impl<G> GuestBusMemory<G>
where
    G: Deref<Target: GuestMemoryBackend>,
{
    /// Shows the memory behind `guard`.
    pub fn new(guard: G) -> Self {
        Self(guard)
    }

    /// The memory itself.
    pub fn backend(&self) -> &G::Target {
        &self.0
    }

    /// The slice of an access within one region, as nearly all are.
    #[inline]
    fn slice(&self, gpa: Gpa, len: usize) -> Option<VolatileSlice<'_, Bits<'_, G>>> {
        self.0.get_slice(GuestAddress(gpa.get()), len).ok()
    }

    /// Reads across regions.
    #[cold]
    fn read_pieces(&self, gpa: Gpa, mut buf: &mut [u8]) -> Option<()> {
        for slice in self.0.get_slices(GuestAddress(gpa.get()), buf.len()) {
            let slice = slice.ok()?;
            let (now, rest) = buf.split_at_mut_checked(slice.len())?;
            copy_out(&slice, now)?;
            buf = rest;
        }
        buf.is_empty().then_some(())
    }

    /// Writes across regions.
    #[cold]
    fn write_pieces(&self, gpa: Gpa, mut buf: &[u8]) -> Option<()> {
        for slice in self.0.get_slices(GuestAddress(gpa.get()), buf.len()) {
            let slice = slice.ok()?;
            let (now, rest) = buf.split_at_checked(slice.len())?;
            copy_in(&slice, now)?;
            buf = rest;
        }
        buf.is_empty().then_some(())
    }
}

impl<G> GuestMemory for GuestBusMemory<G>
where
    G: Deref<Target: GuestMemoryBackend>,
{
    #[inline]
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let len = buf.len();
        let copied = match self.slice(gpa, len) {
            Some(slice) => copy_out(&slice, buf),
            None => self.read_pieces(gpa, buf),
        };
        copied.ok_or(AccessError { gpa, len })
    }

    #[inline]
    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        let len = buf.len();
        let copied = match self.slice(gpa, len) {
            Some(slice) => copy_in(&slice, buf),
            None => self.write_pieces(gpa, buf),
        };
        copied.ok_or(AccessError { gpa, len })
    }

    #[inline]
    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        self.slice(gpa, size_of::<u32>())
            .and_then(|slice| slice.load(0, order).ok())
            .map(u32::from_le)
            .ok_or(AccessError { gpa, len: size_of::<u32>() })
    }

    #[inline]
    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        self.slice(gpa, size_of::<u32>())
            .and_then(|slice| slice.store(value.to_le(), 0, order).ok())
            .ok_or(AccessError { gpa, len: size_of::<u32>() })
    }
}

/// The dirty bitmap of the memory behind `G`.
type Bits<'a, G> = vm_memory::bitmap::MS<'a, <G as Deref>::Target>;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use vm_memory::GuestMemoryMmap;

    use super::*;

    const BYTES: u64 = 64 << 10;
    const HIGH: u64 = 1 << 20;

    /// Two adjacent regions, and one after a hole.
    fn memory() -> GuestBusMemory<&'static GuestMemoryMmap<()>> {
        let len = usize::try_from(BYTES).unwrap();
        let ranges = [0, BYTES, HIGH].map(|start| (GuestAddress(start), len));
        GuestBusMemory::new(Box::leak(Box::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())))
    }

    #[test]
    fn all_memory_is_reached_and_nothing_else() {
        let memory = memory();
        for gpa in [0, BYTES - 8, BYTES, 2 * BYTES - 8, HIGH, HIGH + BYTES - 8].map(Gpa::new) {
            memory.write(gpa, b"12345678").unwrap();
            let mut read = [0; 8];
            memory.read(gpa, &mut read).unwrap();
            assert_eq!(&read, b"12345678", "{gpa}");
            assert_eq!(memory.load_u32(gpa, SeqCst), Ok(u32::from_le_bytes(*b"1234")), "{gpa}");
            memory.store_u32(gpa, u32::from_le_bytes(*b"abcd"), SeqCst).unwrap();
            memory.read(gpa, &mut read).unwrap();
            assert_eq!(&read, b"abcd5678", "{gpa}");
        }
        for gpa in [2 * BYTES, HIGH - 4, HIGH + BYTES, u64::MAX - 3].map(Gpa::new) {
            assert_eq!(memory.write(gpa, &[0; 8]), Err(AccessError { gpa, len: 8 }));
            assert_eq!(memory.read(gpa, &mut [0; 8]), Err(AccessError { gpa, len: 8 }));
            assert_eq!(memory.load_u32(gpa, SeqCst), Err(AccessError { gpa, len: 4 }));
            assert_eq!(memory.store_u32(gpa, 0, SeqCst), Err(AccessError { gpa, len: 4 }));
        }
    }

    #[test]
    fn an_access_may_cross_into_the_next_region_and_not_into_a_hole() {
        let memory = memory();
        let border = Gpa::new(BYTES - 4);
        memory.write(border, b"12345678").unwrap();
        let mut read = [0; 8];
        memory.read(border, &mut read).unwrap();
        assert_eq!(&read, b"12345678");
        let hole = Gpa::new(2 * BYTES - 4);
        assert_eq!(memory.read(hole, &mut read), Err(AccessError { gpa: hole, len: 8 }));
    }

    #[test]
    fn a_word_that_is_not_aligned_is_refused() {
        let gpa = Gpa::new(0x1002);
        assert_eq!(memory().load_u32(gpa, SeqCst), Err(AccessError { gpa, len: 4 }));
        assert_eq!(memory().store_u32(gpa, 0, SeqCst), Err(AccessError { gpa, len: 4 }));
    }
}
