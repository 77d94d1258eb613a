//! Guest memory as the rings see it.

use alloc::sync::Arc;
use core::sync::atomic::{self, Ordering};

use page_range::Gpa;

/// Guest memory that is not there, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory for {len} bytes at {gpa}")]
pub struct AccessError {
    /// Where the access starts.
    pub gpa: Gpa,
    /// Bytes accessed.
    pub len: usize,
}

/// Access to guest memory, which the guest changes at the same time.
///
/// Addresses come from the guest and may be anything; an implementation checks them. What is given
/// to [`read`](Self::read) or [`write`](Self::write) may cross pages. Both copy bytes in no
/// particular order; ordering against other accesses comes from the words and from
/// [`fence`](Self::fence). What was read must be a copy: later uses of it never go back to the
/// guest's bytes, not even where a compiler would find that cheaper.
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

    /// A full barrier: who sees what is stored after it sees what was stored before it, and nothing
    /// is loaded before what was stored is seen. Signals need it: each side stores one word and then
    /// loads the other's.
    ///
    /// The processor's barrier serves all memory there is; a model checker has its own.
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
