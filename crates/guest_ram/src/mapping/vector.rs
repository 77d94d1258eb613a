//! `MADV_DONTNEED` for many ranges of this process in one system call.
//!
//! `process_madvise(2)` takes a vector of ranges. For the caller's own memory it accepts any advice
//! since Linux 6.13 and names the caller without a descriptor (`PIDFD_SELF_THREAD`) since 6.14;
//! since 6.16 it flushes the TLB once for the whole vector.

use std::ptr;
use std::sync::OnceLock;

/// The most ranges in one call. The kernel takes 1024, but more than a few hundred gain nothing,
/// and a Dynamic Memory message names no more than this.
pub(crate) const MAX: usize = 512;

/// Names the calling thread where a process descriptor is expected (Linux
/// `include/uapi/linux/pidfd.h`). Unlike a descriptor, it cannot refer to a parent after a fork.
const PIDFD_SELF_THREAD: libc::c_int = -10_000;

/// Whether [`discard`] works here. Tried once, on memory mapped for the purpose: older kernels
/// refuse the call, and a seccomp filter may as well.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(probe)
}

/// Discards at most [`MAX`] ranges, in order, up to the first that cannot be discarded. Returns the
/// number of bytes discarded, which may end inside a range.
///
/// # Safety
/// The ranges must be mapped memory whose content nobody relies on.
pub(super) unsafe fn discard(ranges: impl Iterator<Item = libc::iovec>) -> usize {
    let mut vector = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MAX];
    let filled = vector.iter_mut().zip(ranges).map(|(slot, range)| *slot = range).count();
    // SAFETY: the vector has `filled` entries, and the caller vouches for the ranges in them.
    let bytes = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            PIDFD_SELF_THREAD,
            vector.as_ptr(),
            filled,
            libc::MADV_DONTNEED,
            0_u32,
        )
    };
    usize::try_from(bytes).unwrap_or(0)
}

fn probe() -> bool {
    let (len, protection) = (4096, libc::PROT_READ | libc::PROT_WRITE);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: without MAP_FIXED the kernel picks an address that nothing else uses.
    let page = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        return false;
    }
    let range = libc::iovec { iov_base: page, iov_len: len };
    // SAFETY: the page was just mapped, and no other code knows it.
    let bytes = unsafe { discard([range].into_iter()) };
    // SAFETY: the page is this function's own, and is not touched again.
    unsafe { libc::munmap(page, len) };
    bytes == len
}
