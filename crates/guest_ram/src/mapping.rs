//! One mapping of host memory, the crate's own or borrowed, and the system calls on it.
//!
//! # Giving memory back
//!
//! | Memory | Call | Rather than |
//! |---|---|---|
//! | anonymous | MADV_DONTNEED, many ranges with one `process_madvise` where the kernel has it | MADV_FREE |
//! | memfd | `fallocate` PUNCH_HOLE, one call for each range | MADV_DONTNEED, MADV_REMOVE |
//! | pages of the host's pool (a hugetlb memfd) | the same, whole huge pages only | |
//! | shared, without a file (borrowed memory only) | MADV_REMOVE, one call for each range | |
//!
//! - MADV_FREE leaves the pages with the process until the host runs short. The figures an operator
//!   sees on the host then do not follow the guest's size, and the guest may find old content. It
//!   is not even cheaper: 2 MiB of small pages take 65 us (MADV_DONTNEED: 44 us), and a single page
//!   inside a huge one 1.8 us (1.2 us), since the huge page is split at once. Only whole huge pages
//!   are faster, 1.6 us (5.1 us), because they are not freed.
//! - On a shared mapping, MADV_DONTNEED only drops this process's view of the pages. They stay in
//!   the memfd until a hole is punched. A private mapping of a file (borrowed memory only) has its
//!   own copies of pages, which MADV_DONTNEED frees; the file is not changed, since other processes
//!   may use it.
//! - MADV_REMOVE punches the same hole, but looks up the mapping first: 2.5 us for a single page,
//!   against 2.2 us for `fallocate`. Dropping the view of many pages in one call before the holes
//!   are punched saves a fifth; but with a VM attached, KVM is then notified twice for each page
//!   instead of once, which takes twice as long.
//! - A vector of single pages costs 0.25 to 0.3 us a page, one call each 1.45 us (0.2 and 1.2 us
//!   inside huge pages). With a running vCPU, whose TLB is flushed each time, the costs are 1 us
//!   and 8 us, and for whole huge pages 3.5 us and 5.1 us. A memfd gains nothing from a vector.
//!
//! Measured on Linux 6.18 in a virtual machine with two CPUs (Intel Xeon), 256 MiB at a time, best
//! of four. The vCPU was a nested one.

// UNSAFETY: mapping, unmapping and discarding memory are system calls on raw addresses.
#![expect(unsafe_code, reason = "mmap, madvise and fallocate work on raw addresses")]

pub(crate) mod advice;
mod borrow;
mod create;
mod vector;

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::VolatileSlice;

pub use borrow::BorrowError;
pub(crate) use borrow::borrow;
pub use create::MemoryKind;
pub(crate) use create::{HUGE_PAGE, Request};
pub(crate) use vector::MAX as MAX_SPANS;

/// A part of a mapping, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// What the pages of a mapping belong to, which determines how they are given back.
#[derive(Debug)]
enum Backing {
    /// The mapping alone: anonymous memory, or private copies of a file's pages.
    Private,
    /// All processes that inherit the mapping: shared memory without a file.
    Shared,
    /// A file, from byte `start` on, shared with everything else that maps it.
    File { file: Arc<File>, start: u64 },
}

/// Who unmaps the memory.
#[derive(Debug)]
enum Owner {
    /// The [`Mapping`], on drop.
    Mapping,
    /// Other code, which keeps the memory mapped until this is dropped.
    Other { _keeps_mapped: Arc<dyn Any + Send + Sync> },
}

/// Memory of this process that backs a range of guest memory. It stays mapped at least until this
/// is dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    backing: Backing,
    owner: Owner,
    /// Whether the kernel is to back it with transparent huge pages.
    wants_huge_pages: bool,
}

// SAFETY: the mapping is plain memory without thread affinity; it is accessed only through
// `VolatileSlice` and system calls.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`: concurrent access goes through `VolatileSlice`, which is volatile.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether the kernel may back any part of it with a transparent huge page.
    pub(crate) fn wants_huge_pages(&self) -> bool {
        self.wants_huge_pages
    }

    /// The memfd, if the memory is one; it is as long as the mapping.
    pub(crate) fn memfd(&self) -> Option<&Arc<File>> {
        match &self.backing {
            Backing::File { file, start: 0 } => Some(file),
            _ => None,
        }
    }

    /// Host address of the byte at `offset`; `None` outside the mapping.
    pub(crate) fn host_address(&self, offset: usize) -> Option<*mut u8> {
        (offset < self.len).then(|| self.start.as_ptr().wrapping_add(offset))
    }

    /// How far the first byte is from a multiple of `size` below it, in host addresses.
    pub(crate) fn lead(&self, size: usize) -> usize {
        self.start.as_ptr().addr() % size
    }

    /// All host addresses, as /proc/self/smaps shows them.
    #[cfg(test)]
    pub(crate) fn addresses(&self) -> std::ops::Range<usize> {
        let start = self.start.as_ptr().addr();
        start..start + self.len
    }

    /// The `count` bytes from `offset` on, for volatile access; `None` outside the mapping.
    pub(crate) fn slice(&self, offset: usize, count: usize) -> Option<VolatileSlice<'_>> {
        if offset.checked_add(count)? > self.len {
            return None;
        }
        // SAFETY: the range is inside the mapping, which stays mapped for as long as `self` is
        // borrowed and is only ever accessed through volatile slices.
        Some(unsafe { VolatileSlice::new(self.start.as_ptr().wrapping_add(offset), count) })
    }

    /// Gives spans back to the host. They then read as zeros, or as the file behind a private
    /// mapping. Tries every span.
    ///
    /// # Errors
    /// The index in `spans` of the first span that failed, and its error.
    pub(crate) fn discard(&self, spans: &[Span]) -> Result<(), (usize, io::Error)> {
        let mut result = Ok(());
        let mut done = 0;
        while let Some(left) = spans.get(done..).filter(|left| !left.is_empty()) {
            done += self.discard_leading(left);
            // Where the vectored call stopped, a call for that one span succeeds or returns the
            // reason.
            if let Some(span) = spans.get(done) {
                result = result.and(self.discard_one(*span).map_err(|error| (done, error)));
                done += 1;
            }
        }
        result
    }

    fn discard_one(&self, span: Span) -> io::Result<()> {
        match &self.backing {
            Backing::Private => self.advise(span, libc::MADV_DONTNEED),
            Backing::Shared => self.advise(span, libc::MADV_REMOVE),
            Backing::File { file, start } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fallocate(file, mode, *start, span)
            }
        }
    }

    /// Discards as many leading spans as one system call can, and returns their number.
    fn discard_leading(&self, spans: &[Span]) -> usize {
        let is_private = matches!(self.backing, Backing::Private);
        if !is_private || spans.len() == 1 || !vector::is_available() {
            return 0;
        }
        let inside = spans.iter().take_while(|span| self.holds(**span));
        let vector = inside.map(|span| libc::iovec {
            iov_base: self.start.as_ptr().wrapping_add(span.offset).cast(),
            iov_len: span.len,
        });
        // SAFETY: all ranges are inside this mapping, and no code relies on their content staying
        // the same: it is guest memory, accessed through volatile accesses only.
        let mut bytes = unsafe { vector::discard(vector) };
        // The kernel works through them in order and returns the number of bytes discarded.
        let whole = spans.iter().take_while(|span| {
            let left = bytes.checked_sub(span.len);
            bytes = left.unwrap_or_default();
            left.is_some()
        });
        whole.count()
    }

    /// Allocates a span now; pages that are present keep their content.
    pub(crate) fn allocate(&self, span: Span) -> io::Result<()> {
        match &self.backing {
            Backing::File { file, start } => fallocate(file, 0, *start, span),
            Backing::Private | Backing::Shared => {
                self.advise(span, libc::MADV_POPULATE_WRITE).map_err(|error| {
                    match error.raw_os_error() {
                        // Touching a page that the pool cannot provide would raise SIGBUS.
                        Some(libc::EFAULT) => io::Error::from_raw_os_error(libc::ENOMEM),
                        _ => error,
                    }
                })
            }
        }
    }

    /// Asks the kernel to use transparent huge pages for a span, or not to. Pages that are there
    /// stay as they are.
    pub(crate) fn advise_huge_pages(&self, span: Span, wanted: bool) -> io::Result<()> {
        self.advise(span, if wanted { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE })
    }

    fn holds(&self, span: Span) -> bool {
        span.offset.checked_add(span.len).is_some_and(|end| end <= self.len)
    }

    fn advise(&self, span: Span, advice: libc::c_int) -> io::Result<()> {
        if !self.holds(span) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.start.as_ptr().wrapping_add(span.offset);
        // SAFETY: the range is inside this mapping, and no code relies on its content staying the
        // same: it is guest memory, accessed through volatile accesses only.
        let result = unsafe { libc::madvise(start.cast(), span.len, advice) };
        check(result)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Owner::Mapping = self.owner {
            // SAFETY: this mapping was made by `Mapping::new` and nothing else unmaps it. Slices of
            // it borrow from `self`, so none are left.
            unsafe { unmap(self.start, self.len) };
        }
    }
}

/// # Safety
/// The range must belong to the caller, and must not be touched afterwards.
unsafe fn unmap(start: NonNull<u8>, len: usize) {
    if len > 0 {
        // SAFETY: the caller owns the range and does not touch it again.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

/// Works on a span of a mapping of `file` that begins at byte `start`.
fn fallocate(file: &File, mode: libc::c_int, start: u64, span: Span) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = start.saturating_add(span.offset as u64);
    let offset = libc::off_t::try_from(offset).map_err(invalid)?;
    let count = libc::off_t::try_from(span.len).map_err(invalid)?;
    loop {
        // SAFETY: works on a descriptor that `file` keeps open, and on no memory of this process
        // directly.
        let result = check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, count) });
        // Allocating takes long enough for a signal to interrupt it.
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::HugePages;

    const PAGE: usize = 4096;

    fn mapping(kind: MemoryKind, huge_pages: HugePages) -> Mapping {
        let request = Request { kind, huge_pages, guest_address: 0, len: 8 << 20, reserve: false };
        let mapping = Mapping::new(&request).unwrap();
        mapping.slice(0, mapping.len).unwrap().copy_from(&vec![0xa5_u8; mapping.len]);
        mapping
    }

    fn page(number: usize) -> Span {
        Span { offset: number * PAGE, len: PAGE }
    }

    fn zeros(mapping: &Mapping) -> Vec<usize> {
        let is_zero = |number: &usize| {
            let mut bytes = [0xff_u8; PAGE];
            mapping.slice(number * PAGE, PAGE).unwrap().copy_to(&mut bytes);
            bytes == [0; PAGE]
        };
        (0..mapping.len / PAGE).filter(is_zero).collect()
    }

    #[test]
    fn every_kind_of_memory_loses_just_the_spans_given() {
        for (kind, huge_pages) in [
            (MemoryKind::Anonymous, HugePages::Off),
            (MemoryKind::Anonymous, HugePages::Transparent),
            (MemoryKind::Memfd, HugePages::Off),
            (MemoryKind::Memfd, HugePages::Transparent),
        ] {
            let mapping = mapping(kind, huge_pages);
            // More than one call takes, and a whole huge page.
            let singles = (0..700).map(|number| 2 * number);
            let spans: Vec<_> = singles.clone().map(page).collect();
            mapping.discard(&spans).unwrap();
            mapping.discard(&[Span { offset: 6 << 20, len: 2 << 20 }]).unwrap();
            let expected: Vec<_> = singles.chain(1536..2048).collect();
            assert_eq!(zeros(&mapping), expected, "{kind:?}, {huge_pages:?}");
        }
    }

    #[test]
    fn after_a_failure_the_rest_goes_all_the_same() {
        let mapping = mapping(MemoryKind::Anonymous, HugePages::Off);
        // Locked memory cannot be discarded (madvise(2)).
        for locked in [3, 5] {
            let address = mapping.host_address(locked * PAGE).unwrap();
            // AddressSanitizer's mlock does nothing: the system call itself.
            // SAFETY: the page is inside the mapping, and locking it changes no content.
            let result = unsafe { libc::syscall(libc::SYS_mlock, address, PAGE) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        }
        let spans: Vec<_> = (0..8).map(page).collect();
        let (index, error) = mapping.discard(&spans).unwrap_err();
        assert_eq!((index, error.raw_os_error()), (3, Some(libc::EINVAL)));
        assert_eq!(zeros(&mapping), [0, 1, 2, 4, 6, 7]);
    }

    #[test]
    fn a_span_outside_is_refused_and_the_rest_goes() {
        let mapping = mapping(MemoryKind::Anonymous, HugePages::Off);
        let end = mapping.len / PAGE;
        let outside = Span { offset: (end - 1) * PAGE, len: 2 * PAGE };
        let (index, _) = mapping.discard(&[page(1), outside, page(2)]).unwrap_err();
        assert_eq!(index, 1);
        assert_eq!(zeros(&mapping), [1, 2]);
    }
}
