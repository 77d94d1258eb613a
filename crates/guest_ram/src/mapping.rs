//! One mapping of host memory, and the system calls on it.
//!
//! # How memory is given back
//!
//! | memory | call | instead of |
//! |---|---|---|
//! | anonymous | MADV_DONTNEED, many ranges with one `process_madvise` where the kernel has it | MADV_FREE |
//! | memfd | `fallocate` PUNCH_HOLE, one range each | MADV_DONTNEED, MADV_REMOVE |
//! | pages of the host's pool (a hugetlb memfd) | the same, whole huge pages only | |
//!
//! - MADV_FREE leaves the pages with the process until the host runs short, so that what the
//!   operator reads off the host does not follow the guest's size, and the guest may find old
//!   content. It is not even cheaper: 2 MiB of small pages take 65 us (MADV_DONTNEED: 44 us), a
//!   single page inside a huge one 1.8 us (1.2 us), since the huge page is split at once. Only whole
//!   huge pages go faster, 1.6 us (5.1 us), because they are not freed.
//! - On a shared mapping MADV_DONTNEED only drops our view of the pages. They stay in the memfd
//!   until a hole is punched. A private mapping of a memfd would need both: it may have copies of
//!   its own; we make none.
//! - MADV_REMOVE punches the same hole, but looks up the mapping first: 2.5 us for a single page,
//!   2.2 us by `fallocate`. Dropping our view of many pages with one call before the holes are
//!   punched saves a fifth, but with a VM attached each page then costs two notifications of KVM
//!   instead of one, and that twice as much.
//! - A vector of single pages costs 0.25 to 0.3 us a page, one call each 1.45 us (0.2 and 1.2 us
//!   inside huge pages); with a running vCPU, whose TLB is flushed each time, 1 us and 8 us. Whole
//!   huge pages: 3.5 us and 5.1 us. There is nothing to gain for a memfd.
//!
//! Measured on Linux 6.18 on a virtual machine of two CPUs (Intel Xeon), 256 MiB at a time, best of
//! four; with a vCPU: a nested one.

// UNSAFETY: mapping, unmapping and discarding memory are system calls on raw addresses.
#![expect(unsafe_code, reason = "mmap, madvise and fallocate work on raw addresses")]

mod vector;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::HugePages;
pub(crate) use vector::MAX as MAX_SPANS;

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Private anonymous memory: the cheapest to discard. The default.
    #[default]
    Anonymous,
    /// A memfd, mapped shared: for memory that other processes must see. Discarding costs more
    /// than twice as much, and some forty times where anonymous memory has huge pages.
    Memfd,
}

/// Host addresses are congruent to guest addresses modulo at least this, so that a huge page of the
/// host backs exactly one huge page of the guest.
const HUGE_PAGE: usize = 2 << 20;

/// What to map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) backend: Backend,
    pub(crate) huge_pages: HugePages,
    /// Where the memory lies in the guest; of this only the place in a huge page matters.
    pub(crate) guest_address: u64,
    pub(crate) len: usize,
    /// Take pool pages for all of it now, or fail. Has no meaning for other pages.
    pub(crate) reserve: bool,
}

impl Request {
    fn alignment(&self) -> usize {
        let page = self.huge_pages.page_size().bytes();
        usize::try_from(page).map_or(HUGE_PAGE, |page| page.max(HUGE_PAGE))
    }

    fn file(&self) -> io::Result<Option<File>> {
        let pool = match self.huge_pages {
            HugePages::Pool2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
            HugePages::Pool1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
            HugePages::Off | HugePages::Transparent if self.backend == Backend::Anonymous => {
                return Ok(None);
            }
            HugePages::Off | HugePages::Transparent => 0,
        };
        memfd(self.len, pool).map(Some)
    }

    fn flags(&self) -> libc::c_int {
        if self.huge_pages.from_pool() && self.reserve { 0 } else { libc::MAP_NORESERVE }
    }
}

/// A part of a mapping, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// Memory of this process that backs a range of guest memory; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    memfd: Option<Arc<File>>,
}

// SAFETY: the mapping is plain memory without thread affinity; it is reached only through
// `VolatileSlice` and through system calls.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`: concurrent access goes through `VolatileSlice`, which is volatile.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps memory at a host address congruent to the guest's modulo the huge page size.
    pub(crate) fn new(request: &Request) -> io::Result<Self> {
        let memfd = request.file()?;
        let (len, alignment) = (request.len, request.alignment());
        let reservation = len
            .checked_add(alignment)
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let reserved = reserve(reservation)?;
        let wanted = usize::try_from(request.guest_address % alignment as u64).unwrap_or(0);
        let have = reserved.as_ptr() as usize % alignment;
        let lead = (alignment + wanted - have) % alignment;
        // SAFETY: `lead` is below `alignment`, by which the reservation is longer than `len`.
        let start = unsafe { reserved.add(lead) };
        // SAFETY: the range is inside the reservation, which was made for it.
        let mapped = unsafe { map_fixed(start, len, memfd.as_ref(), request.flags()) };
        // SAFETY: this is the part of the reservation in front of the mapping; nobody has it.
        unsafe { unmap(reserved, lead) };
        // SAFETY: `lead + len` is at most the reservation's length.
        let tail = unsafe { start.add(len) };
        // SAFETY: this is the part behind the mapping; nobody has it.
        unsafe { unmap(tail, reservation - lead - len) };
        if let Err(error) = mapped {
            // SAFETY: what was to be mapped is still reserved, and nobody has it.
            unsafe { unmap(start, len) };
            return Err(error);
        }
        let mapping = Self { start, len, memfd: memfd.map(Arc::new) };
        // What a guest keeps in its memory is not to lie in a file after a crash of ours.
        mapping.advise(Span { offset: 0, len }, libc::MADV_DONTDUMP)?;
        if !request.huge_pages.from_pool() {
            // A kernel built without transparent huge pages refuses; small pages work as well.
            let _ = mapping.advise_huge_pages(request.huge_pages == HugePages::Transparent);
        }
        Ok(mapping)
    }

    /// The memfd, where the memory is one; it is as long as the mapping.
    pub(crate) fn memfd(&self) -> Option<&Arc<File>> {
        self.memfd.as_ref()
    }

    /// Host address of the byte at `offset`, which must be inside.
    pub(crate) fn host_address(&self, offset: usize) -> Option<*mut u8> {
        (offset < self.len).then(|| self.start.as_ptr().wrapping_add(offset))
    }

    /// The bytes from `offset` on, for volatile access; `None` outside the mapping.
    pub(crate) fn slice(&self, offset: usize, count: usize) -> Option<VolatileSlice<'_>> {
        if offset.checked_add(count)? > self.len {
            return None;
        }
        // SAFETY: the range is inside the mapping, which lives as long as `self` is borrowed and
        // is only ever accessed through volatile slices.
        Some(unsafe { VolatileSlice::new(self.start.as_ptr().wrapping_add(offset), count) })
    }

    /// Asks the kernel for huge pages, or for none.
    fn advise_huge_pages(&self, wanted: bool) -> io::Result<()> {
        let advice = if wanted { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        self.advise(Span { offset: 0, len: self.len }, advice)
    }

    /// Gives spans back to the host; they read as zeros afterwards. Every span is tried.
    ///
    /// # Errors
    /// The first one that failed, by its place in `spans`, and why.
    pub(crate) fn discard(&self, spans: &[Span]) -> Result<(), (usize, io::Error)> {
        let mut result = Ok(());
        let mut done = 0;
        while let Some(left) = spans.get(done..).filter(|left| !left.is_empty()) {
            done += self.discard_leading(left);
            // Where one call for many stopped, the call for one goes on, and says what is wrong.
            if let Some(span) = spans.get(done) {
                result = result.and(self.discard_one(*span).map_err(|error| (done, error)));
                done += 1;
            }
        }
        result
    }

    fn discard_one(&self, span: Span) -> io::Result<()> {
        match &self.memfd {
            Some(memfd) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fallocate(memfd, mode, span)
            }
            None => self.advise(span, libc::MADV_DONTNEED),
        }
    }

    /// Discards as many spans as one system call does, and says how many those are.
    fn discard_leading(&self, spans: &[Span]) -> usize {
        if self.memfd.is_some() || spans.len() == 1 || !vector::is_available() {
            return 0;
        }
        let inside = spans.iter().take_while(|span| self.holds(**span));
        let vector = inside.map(|span| libc::iovec {
            iov_base: self.start.as_ptr().wrapping_add(span.offset).cast(),
            iov_len: span.len,
        });
        // SAFETY: all ranges are inside this mapping, and nothing relies on their content staying:
        // it is guest memory, reached through volatile accesses only.
        let mut bytes = unsafe { vector::discard(vector) };
        // The kernel goes through them in order and counts bytes.
        let whole = spans.iter().take_while(|span| {
            let left = bytes.checked_sub(span.len);
            bytes = left.unwrap_or_default();
            left.is_some()
        });
        whole.count()
    }

    /// Allocates a span now. Only a memfd can.
    pub(crate) fn allocate(&self, span: Span) -> io::Result<()> {
        let memfd = self.memfd.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        fallocate(memfd, 0, span)
    }

    fn holds(&self, span: Span) -> bool {
        span.offset.checked_add(span.len).is_some_and(|end| end <= self.len)
    }

    fn advise(&self, span: Span, advice: libc::c_int) -> io::Result<()> {
        if !self.holds(span) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.start.as_ptr().wrapping_add(span.offset);
        // SAFETY: the range is inside this mapping, and nothing relies on its content staying:
        // it is guest memory, reached through volatile accesses only.
        let result = unsafe { libc::madvise(start.cast(), span.len, advice) };
        check(result)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, and whoever borrowed from it is gone.
        unsafe { unmap(self.start, self.len) };
    }
}

fn memfd(len: usize, pool: libc::c_uint) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | pool;
    // SAFETY: the name is a valid C string, and the call touches nothing else.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    check(fd)?;
    // SAFETY: `fd` was just returned to us and belongs to nobody else.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    Ok(file)
}

fn reserve(len: usize) -> io::Result<NonNull<u8>> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel picks an address that nothing else uses.
    let address = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
    pointer(address)
}

/// # Safety
/// The range must lie inside a reservation of the caller's that is used for nothing else.
unsafe fn map_fixed(
    start: NonNull<u8>,
    len: usize,
    memfd: Option<&File>,
    extra_flags: libc::c_int,
) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let (flags, fd) = match memfd {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    let flags = flags | libc::MAP_FIXED | extra_flags;
    // SAFETY: the range lies inside a reservation that the caller made for it and uses for
    // nothing else, so MAP_FIXED replaces only that.
    let address = unsafe { libc::mmap(start.as_ptr().cast(), len, protection, flags, fd, 0) };
    pointer(address).map(|_| ())
}

/// # Safety
/// The range must be the caller's own, and not be touched afterwards.
unsafe fn unmap(start: NonNull<u8>, len: usize) {
    if len > 0 {
        // SAFETY: the caller owns the range and does not touch it again.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

fn fallocate(file: &File, mode: libc::c_int, span: Span) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off_t::try_from(span.offset).map_err(invalid)?;
    let count = libc::off_t::try_from(span.len).map_err(invalid)?;
    loop {
        // SAFETY: works on a descriptor that `file` keeps open, and on no memory of ours directly.
        let result = check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, count) });
        // Allocating takes long enough for a signal to come in between.
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn pointer(address: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn mapping(backend: Backend, huge_pages: HugePages) -> Mapping {
        let request =
            Request { backend, huge_pages, guest_address: 0, len: 8 << 20, reserve: false };
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
        for (backend, huge_pages) in [
            (Backend::Anonymous, HugePages::Off),
            (Backend::Anonymous, HugePages::Transparent),
            (Backend::Memfd, HugePages::Off),
            (Backend::Memfd, HugePages::Transparent),
        ] {
            let mapping = mapping(backend, huge_pages);
            // More than one call takes, and a whole huge page.
            let singles = (0..700).map(|number| 2 * number);
            let spans: Vec<_> = singles.clone().map(page).collect();
            mapping.discard(&spans).unwrap();
            mapping.discard(&[Span { offset: 6 << 20, len: 2 << 20 }]).unwrap();
            let expected: Vec<_> = singles.chain(1536..2048).collect();
            assert_eq!(zeros(&mapping), expected, "{backend:?}, {huge_pages:?}");
        }
    }

    #[test]
    fn after_a_failure_the_rest_goes_all_the_same() {
        let mapping = mapping(Backend::Anonymous, HugePages::Off);
        // Locked memory cannot be discarded (madvise(2)).
        for locked in [3, 5] {
            let address = mapping.host_address(locked * PAGE).unwrap();
            // SAFETY: the page is inside the mapping, and locking it changes no content.
            check(unsafe { libc::mlock(address.cast(), PAGE) }).unwrap();
        }
        let spans: Vec<_> = (0..8).map(page).collect();
        let (index, error) = mapping.discard(&spans).unwrap_err();
        assert_eq!((index, error.raw_os_error()), (3, Some(libc::EINVAL)));
        assert_eq!(zeros(&mapping), [0, 1, 2, 4, 6, 7]);
    }

    #[test]
    fn a_span_outside_is_refused_and_the_rest_goes() {
        let mapping = mapping(Backend::Anonymous, HugePages::Off);
        let end = mapping.len / PAGE;
        let outside = Span { offset: (end - 1) * PAGE, len: 2 * PAGE };
        let (index, _) = mapping.discard(&[page(1), outside, page(2)]).unwrap_err();
        assert_eq!(index, 1);
        assert_eq!(zeros(&mapping), [1, 2]);
    }
}
