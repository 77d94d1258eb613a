//! Creation of a guest's memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::{Backing, Mapping, Owner, Span, check, unmap};
use crate::HugePages;

/// The kind of memory that guest RAM is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryKind {
    /// Private anonymous memory: the cheapest to discard. The default.
    #[default]
    Anonymous,
    /// A memfd, mapped shared, for memory that other processes must see. Discarding costs more than
    /// twice as much, and about forty times as much where anonymous memory has huge pages.
    Memfd,
}

/// Host and guest addresses are congruent modulo at least this, so that a huge page of the host backs
/// exactly one huge page of the guest.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// The memory to map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) kind: MemoryKind,
    pub(crate) huge_pages: HugePages,
    /// The guest address of the memory. Only its offset within a huge page matters.
    pub(crate) guest_address: u64,
    pub(crate) len: usize,
    /// Reserve pool pages for all of it now, or fail. Has no effect on other pages.
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
            HugePages::Off | HugePages::Transparent if self.kind == MemoryKind::Anonymous => {
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
        // SAFETY: `lead` is less than `alignment`, and the reservation exceeds `len` by that much.
        let start = unsafe { reserved.add(lead) };
        // SAFETY: the range is inside the reservation, which was made for it.
        let mapped = unsafe { map_fixed(start, len, memfd.as_ref(), request.flags()) };
        // SAFETY: this part of the reservation lies before the mapping; nothing uses it.
        unsafe { unmap(reserved, lead) };
        // SAFETY: `lead + len` is at most the reservation's length.
        let tail = unsafe { start.add(len) };
        // SAFETY: this part lies after the mapping; nothing uses it.
        unsafe { unmap(tail, reservation - lead - len) };
        if let Err(error) = mapped {
            // SAFETY: the range is still reserved, and nothing uses it.
            unsafe { unmap(start, len) };
            return Err(error);
        }
        let backing = memfd
            .map_or(Backing::Private, |memfd| Backing::File { file: Arc::new(memfd), start: 0 });
        let owner = Owner::Mapping;
        let mut mapping = Self { start, len, backing, owner, wants_huge_pages: false };
        // A core dump of this process must not contain the guest's memory.
        mapping.advise(Span { offset: 0, len }, libc::MADV_DONTDUMP)?;
        if !request.huge_pages.from_pool() {
            let wanted = request.huge_pages == HugePages::Transparent;
            // A kernel without transparent huge pages refuses, and then small pages do as well.
            let advised = mapping.advise_huge_pages(Span { offset: 0, len }, wanted);
            mapping.wants_huge_pages = wanted && advised.is_ok();
        }
        Ok(mapping)
    }
}

fn memfd(len: usize, pool: libc::c_uint) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | pool;
    // SAFETY: the name is a valid C string, and the call touches nothing else.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), flags) };
    check(fd)?;
    // SAFETY: `fd` was just returned, and nothing else owns it.
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

fn pointer(address: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}
