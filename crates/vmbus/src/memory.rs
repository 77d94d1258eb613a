//! Guest memory as the rings see it.

use alloc::sync::Arc;
use core::sync::atomic::{self, Ordering};

use page_range::Gpa;

/// All or part of the accessed range is not guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory for {len} bytes at {gpa}")]
pub struct AccessError {
    /// Start of the access.
    pub gpa: Gpa,
    /// Length of the access in bytes.
    pub len: usize,
}

/// Access to guest memory, which the guest may change concurrently.
///
/// Addresses come from the guest and may have any value; an implementation must check them. A
/// [`read`](Self::read) or [`write`](Self::write) may cross pages. Both copy bytes in no particular
/// order; word accesses and [`fence`](Self::fence) order them against other accesses. A read must
/// produce a true copy: later uses must never reload the guest's bytes, even if the compiler would
/// find that cheaper.
pub trait GuestMemory {
    /// Copies guest memory at `gpa` to `buf`.
    ///
    /// # Errors
    /// [`AccessError`] if not all of it is guest memory.
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError>;

    /// Copies `buf` to guest memory at `gpa`.
    ///
    /// # Errors
    /// [`AccessError`] if not all of it is guest memory.
    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError>;

    /// Loads the little-endian word at `gpa` in one access. `gpa` is a multiple of 4; `order` is one
    /// that a load can have.
    ///
    /// # Errors
    /// [`AccessError`] if it is not guest memory.
    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError>;

    /// Stores the little-endian word at `gpa` in one access. `gpa` is a multiple of 4; `order` is
    /// one that a store can have.
    ///
    /// # Errors
    /// [`AccessError`] if it is not guest memory.
    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError>;

    /// A full barrier: stores before it become visible before any store after it, and before any
    /// load after it is performed. Signalling needs this, because each side stores one word and
    /// then loads the other side's.
    ///
    /// The default is the processor's barrier, which covers all memory; a model checker supplies
    /// its own.
    #[inline]
    fn fence(&self) {
        atomic::fence(Ordering::SeqCst);
    }
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<M: GuestMemory + ?Sized> GuestMemory for $pointer {
            fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
                (**self).read(gpa, buf)
            }

            fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
                (**self).write(gpa, buf)
            }

            fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
                (**self).load_u32(gpa, order)
            }

            fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
                (**self).store_u32(gpa, value, order)
            }

            fn fence(&self) {
                (**self).fence();
            }
        }
    )*};
}

forward!(&M, Arc<M>);
