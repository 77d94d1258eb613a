//! Guest memory as the rings see it.

use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{Ordering, fence};

use page_range::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmbus::{AccessError, GuestMemory};

/// The guest's memory as it was when a channel opened, for the rings of that channel. It keeps that
/// memory mapped, whatever is added or removed later.
pub struct BusMemory<G>(G);

impl<G> BusMemory<G> {
    /// Memory behind a guard of `vm-memory`.
    pub const fn new(guard: G) -> Self {
        Self(guard)
    }
}

impl<G> fmt::Debug for BusMemory<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusMemory").finish_non_exhaustive()
    }
}

impl<G: Deref<Target: GuestMemoryBackend + Sized>> GuestMemory for BusMemory<G> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let len = buf.len();
        self.0.read_slice(buf, GuestAddress(gpa.get())).map_err(|_| AccessError { gpa, len })?;
        // Behind this the compiler cannot go back to the guest's bytes instead of the copy.
        fence(Ordering::Acquire);
        Ok(())
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        self.0
            .write_slice(buf, GuestAddress(gpa.get()))
            .map_err(|_| AccessError { gpa, len: buf.len() })
    }

    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        self.0
            .load::<u32>(GuestAddress(gpa.get()), order)
            .map(u32::from_le)
            .map_err(|_| AccessError { gpa, len: size_of::<u32>() })
    }

    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        self.0
            .store(value.to_le(), GuestAddress(gpa.get()), order)
            .map_err(|_| AccessError { gpa, len: size_of::<u32>() })
    }
}
