//! One mapping of host memory, and the system calls on it.

// UNSAFETY: mapping, unmapping and discarding memory are system calls on raw addresses.
#![expect(unsafe_code, reason = "mmap, madvise and fallocate work on raw addresses")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};

use vm_memory::VolatileSlice;

use crate::HugePages;

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// Private anonymous memory: the cheapest to discard. The default.
    #[default]
    Anonymous,
    /// A memfd, mapped shared: for memory that other processes must see. Discarding costs some
    /// fifty times as much where anonymous memory has huge pages.
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

/// Memory of this process that backs a range of guest memory; unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    memfd: Option<File>,
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
        let mapping = Self { start, len, memfd };
        if !request.huge_pages.from_pool() {
            // A kernel built without transparent huge pages refuses; small pages work as well.
            let _ = mapping.advise_huge_pages(request.huge_pages == HugePages::Transparent);
        }
        Ok(mapping)
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
        self.advise(0, self.len, advice)
    }

    /// Gives `count` bytes from `offset` on back to the host; they read as zeros afterwards.
    pub(crate) fn discard(&self, offset: usize, count: usize) -> io::Result<()> {
        match &self.memfd {
            // On a shared mapping MADV_DONTNEED would only drop our view of the pages; they stay
            // in the memfd until a hole is punched.
            Some(memfd) => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fallocate(memfd, mode, offset, count)
            }
            None => self.advise(offset, count, libc::MADV_DONTNEED),
        }
    }

    /// Allocates `count` bytes from `offset` on now. Only a memfd can.
    pub(crate) fn allocate(&self, offset: usize, count: usize) -> io::Result<()> {
        let memfd = self.memfd.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        fallocate(memfd, 0, offset, count)
    }

    fn advise(&self, offset: usize, count: usize, advice: libc::c_int) -> io::Result<()> {
        if offset.checked_add(count).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = self.start.as_ptr().wrapping_add(offset);
        // SAFETY: the range is inside this mapping, and nothing relies on its content staying:
        // it is guest memory, reached through volatile accesses only.
        let result = unsafe { libc::madvise(start.cast(), count, advice) };
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

fn fallocate(file: &File, mode: libc::c_int, offset: usize, count: usize) -> io::Result<()> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off_t::try_from(offset).map_err(invalid)?;
    let count = libc::off_t::try_from(count).map_err(invalid)?;
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
