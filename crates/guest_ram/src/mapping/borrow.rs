//! Memory that another part of the process has mapped for a guest.

use std::any::Any;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{FileOffset, MmapRegion};

use super::{Backing, Mapping, Owner, advice, check};
use crate::HugePages;

/// The bits of `mmap`'s flags that say whether the memory is shared.
const MAP_TYPE: libc::c_int = 0xf;

/// Why memory could not be borrowed.
#[derive(Debug, Error)]
pub enum BorrowError {
    /// The region was made with `build_raw`: nothing says how long its memory stays mapped.
    #[error("the region was made from a raw address, and may be unmapped by other code")]
    RawAddress,
    /// The region begins or ends inside a page, in the guest or in its file.
    #[error("the region does not consist of whole pages of {size}")]
    NotWhole {
        /// The pages.
        size: HugePages,
    },
    /// The region leaves the guest's address space.
    #[error("the region leaves the guest's address space")]
    AddressSpace,
    /// The region overlaps another one.
    #[error("the region overlaps another one")]
    Overlap,
    /// The region has huge pages from a pool, and their size is unknown or unsupported.
    #[error("the region has huge pages whose size is not known to be 2 MiB or 1 GiB")]
    PageSize,
    /// The kernel does not reveal which file backs the region.
    #[error("cannot tell what file backs the region")]
    File(#[source] io::Error),
}

/// Borrows a region, which stays mapped for as long as the result lives, and determines its page
/// size.
pub(crate) fn borrow<B>(region: Arc<MmapRegion<B>>) -> Result<(Mapping, HugePages), BorrowError>
where
    B: Bitmap + Send + Sync + 'static,
{
    // Code that makes a region from a raw address promises that it is mapped, not that it is guest
    // memory: other code may rely on its content.
    let start = NonNull::new(region.as_ptr()).filter(|_| region.owned());
    let start = start.ok_or(BorrowError::RawAddress)?;
    let flags = region.flags();
    let huge_pages = huge_pages(flags, region.file_offset())?;
    let backing = backing(flags, region.file_offset());
    let len = region.size();
    let keeper: Arc<dyn Any + Send + Sync> = region;
    let owner = Owner::Other { _keeps_mapped: keeper };
    let wants_huge_pages = match backing {
        _ if huge_pages.from_pool() => false,
        // Huge pages of the file itself are not this mapping's.
        Backing::Private if flags & libc::MAP_ANONYMOUS == 0 => false,
        Backing::Private => advice::wants_huge_pages(start.as_ptr() as usize, "enabled"),
        Backing::File { .. } | Backing::Shared => {
            advice::wants_huge_pages(start.as_ptr() as usize, "shmem_enabled")
        }
    };
    Ok((Mapping { start, len, backing, owner, wants_huge_pages }, huge_pages))
}

/// `mmap` ignores the file of anonymous memory, but `vm-memory` keeps it.
fn file_of(flags: libc::c_int, file: Option<&FileOffset>) -> Option<&FileOffset> {
    file.filter(|_| flags & libc::MAP_ANONYMOUS == 0)
}

fn backing(flags: libc::c_int, file: Option<&FileOffset>) -> Backing {
    if flags & MAP_TYPE == libc::MAP_PRIVATE {
        return Backing::Private;
    }
    match file_of(flags, file) {
        Some(file) => Backing::File { file: Arc::clone(file.arc()), start: file.start() },
        None => Backing::Shared,
    }
}

fn huge_pages(flags: libc::c_int, file: Option<&FileOffset>) -> Result<HugePages, BorrowError> {
    let page = match file_of(flags, file) {
        Some(file) => pool_page_of(file).map_err(BorrowError::File)?,
        None if flags & libc::MAP_HUGETLB == 0 => None,
        // Zero is the host's default size, which is unknown here.
        None => Some(1 << ((flags >> libc::MAP_HUGE_SHIFT) & libc::MAP_HUGE_MASK)),
    };
    match page {
        None => Ok(HugePages::Off),
        Some(0x20_0000) => Ok(HugePages::Pool2M),
        Some(0x4000_0000) => Ok(HugePages::Pool1G),
        Some(_) => Err(BorrowError::PageSize),
    }
}

/// The page size of the pool, if the file consists of pool pages.
fn pool_page_of(file: &FileOffset) -> io::Result<Option<u64>> {
    let mut system = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and the kernel writes at most one `statfs`.
    check(unsafe { libc::fstatfs(file.file().as_raw_fd(), system.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so the kernel has filled it.
    let system = unsafe { system.assume_init() };
    let is_pool = system.f_type == libc::HUGETLBFS_MAGIC;
    Ok(is_pool.then(|| u64::try_from(system.f_bsize).unwrap_or_default()))
}
