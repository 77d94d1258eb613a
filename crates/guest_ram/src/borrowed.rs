//! Discards on memory that another VMM has mapped.

use std::sync::Arc;

use page_range::{Gpa, PageCount, PageRange, PageRangeSet};
use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{FileOffset, GuestMemoryRegion, GuestRegionMmap};

use crate::discard::{DiscardError, ProvideError};
use crate::extent::Extent;
use crate::extents::Extents;
use crate::mapping::{BorrowError, borrow};

/// A region of another VMM's memory was refused.
#[derive(Debug, Error)]
#[error("cannot discard pages of the guest memory at {start}")]
pub struct RegionError {
    /// The guest address of the region.
    pub start: Gpa,
    /// The reason.
    #[source]
    pub source: BorrowError,
}

/// The memory of a guest that another VMM has mapped with `vm-memory`, for discards like those of
/// [`GuestRam`](crate::GuestRam).
///
/// ```
/// use guest_ram::BorrowedRam;
/// use page_range::{Gpfn, PageCount, PageRange};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
/// let ram = BorrowedRam::new(memory.iter())?;
/// memory.write_obj(7_u8, GuestAddress(0x3000))?;
/// ram.discard(&[PageRange::new(Gpfn::new(3).unwrap(), PageCount::new(1))?])?;
/// assert_eq!(memory.read_obj::<u8>(GuestAddress(0x3000))?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// How a region is discarded depends on how it was mapped:
///
/// | memory | call | the page afterwards |
/// |---|---|---|
/// | private, anonymous | `MADV_DONTNEED` | zeros |
/// | shared, with a file or memfd | `fallocate` `PUNCH_HOLE` at the page's place in the file | zeros, in all mappings |
/// | shared, without a file | `MADV_REMOVE` | zeros, in all mappings |
/// | private, with a file | `MADV_DONTNEED` | the file's content |
///
/// The file behind a private mapping is not changed: it may be a snapshot from which other guests
/// start. Memory from the host's pool can be discarded as whole huge pages only.
///
/// # The caller's responsibilities
///
/// - **Pinned pages.** A device passed through with VFIO, and anything else that pins memory (RDMA,
///   registered io_uring buffers), keeps using the page that the guest had before. Discarding it
///   frees nothing, and on its next touch the guest gets a different page from the device's: data
///   is lost. Do not discard while such a device is attached, in this process or in one that shares
///   the memory. The same holds while a snapshot is taken or received (postcopy).
/// - **Dirty bitmaps.** A discard changes pages and marks none as dirty. If a migration has sent a
///   page before its discard, the destination still has the old content: discard it there as well.
/// - **Locked memory** (`mlock`) cannot be discarded: the kernel refuses, and the call returns an
///   error.
///
/// # What keeps the memory mapped
///
/// Each region's mapping is held from [`BorrowedRam::insert`] to [`BorrowedRam::remove`] or the
/// drop. So memory that the VMM takes out of the guest is unmapped only once it is removed here
/// too. Regions made from a raw address (`build_raw`) are refused, because holding them does not
/// keep their memory mapped.
#[derive(Debug, Default)]
pub struct BorrowedRam {
    extents: Vec<Extent>,
}

impl BorrowedRam {
    /// Takes all regions of a guest, such as `memory.iter()` of a `GuestMemoryMmap`.
    /// [Insert](BorrowedRam::insert) regions that are added to the guest later.
    ///
    /// # Errors
    /// As [`BorrowedRam::insert`].
    pub fn new<'a, B>(
        regions: impl IntoIterator<Item = &'a GuestRegionMmap<B>>,
    ) -> Result<Self, RegionError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let mut ram = Self::default();
        for region in regions {
            ram.insert(region)?;
        }
        Ok(ram)
    }

    /// Takes one more region. All its pages count as present: this does not allocate pool pages
    /// that the VMM leaves to the guest's first touch.
    ///
    /// Asks the kernel (`fstatfs`) whether a file consists of huge pages.
    ///
    /// # Errors
    /// [`RegionError`] for a region made from a raw address, for one that overlaps another or does
    /// not consist of whole pages, and for huge pages of an unknown size.
    pub fn insert<B>(&mut self, region: &GuestRegionMmap<B>) -> Result<(), RegionError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let start = Gpa::new(region.start_addr().0);
        let extent = extent(start, region).map_err(|source| RegionError { start, source })?;
        let range = extent.range();
        if self.extents().parts(range).next().is_some() {
            return Err(RegionError { start, source: BorrowError::Overlap });
        }
        let index = self.extents.partition_point(|other| other.range() < range);
        self.extents.insert(index, extent);
        Ok(())
    }

    /// Lets go of the region that has exactly these pages. Returns whether there was one.
    pub fn remove(&mut self, range: PageRange) -> bool {
        let before = self.extents.len();
        self.extents.retain(|extent| extent.range() != range);
        self.extents.len() < before
    }

    /// All pages of all regions, including those that cannot be discarded.
    #[must_use]
    pub fn pages(&self) -> PageRangeSet {
        self.extents.iter().map(Extent::range).collect()
    }

    /// The largest unit in which pages are discarded, in pages of 4 KiB; one if no region has huge
    /// pages of the host's pool.
    #[must_use]
    pub fn unit(&self) -> PageCount {
        self.extents.iter().map(Extent::unit).max().unwrap_or(PageCount::new(1))
    }

    /// Gives pages back to the host. Pool pages must be [provided](BorrowedRam::provide) before
    /// the guest touches them again.
    ///
    /// Adjacent ranges are merged, and many go into one system call if the kernel supports that;
    /// ranges in ascending order are fastest. Tries every range and reports the first failure.
    ///
    /// # Errors
    /// [`DiscardError`] for pages outside all regions, in a region that is mapped read-only, or
    /// that are not whole huge pages, and if a system call fails.
    pub fn discard(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard(ranges)
    }

    /// As [`BorrowedRam::discard`], for pages that remain the guest's, and that it may touch at any
    /// time: those that it reports as free. Pages of the host's pool stay as they are.
    ///
    /// # Errors
    /// As [`BorrowedRam::discard`].
    pub fn discard_free(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard_free(ranges)
    }

    /// As [`BorrowedRam::discard`], for a caller that leaves all pages with the guest after a
    /// failure: provides pool pages again that are already gone, if the pool still has them.
    ///
    /// # Errors
    /// As [`BorrowedRam::discard`].
    pub fn discard_or_undo(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard_or_undo(ranges)
    }

    /// Allocates discarded pool pages again, all of them or none; they contain zeros. Does nothing
    /// for other pages, which the kernel allocates on first touch.
    ///
    /// # Errors
    /// [`ProvideError`] for pages that are outside all regions or are not whole huge pages, and if
    /// the pool has too few.
    pub fn provide(&self, ranges: &[PageRange]) -> Result<(), ProvideError> {
        self.extents().provide(ranges)
    }

    /// Lets memory have transparent huge pages again where it has been returned to the guest; see
    /// [`GuestRam::settle`](crate::GuestRam::settle).
    pub fn settle(&self, out: &PageRangeSet) {
        self.extents().settle(out);
    }

    fn extents(&self) -> Extents<'_> {
        Extents::new(&self.extents, None)
    }
}

fn extent<B>(start: Gpa, region: &GuestRegionMmap<B>) -> Result<Extent, BorrowError>
where
    B: Bitmap + Send + Sync + 'static,
{
    let file_start = region.file_offset().map_or(0, FileOffset::start);
    let can_write = region.prot() & libc::PROT_WRITE != 0;
    let (mapping, huge_pages) = borrow(region.get_mmap())?;
    let unit = huge_pages.page_size().bytes();
    if [start.get(), region.len(), file_start].iter().any(|bytes| !bytes.is_multiple_of(unit)) {
        return Err(BorrowError::NotWhole { size: huge_pages });
    }
    let count = PageCount::from_bytes(region.len());
    let range = start.gpfn().and_then(|start| PageRange::new(start, count).ok());
    let range = range.ok_or(BorrowError::AddressSpace)?;
    let extent = Extent::new(range, Arc::new(mapping), huge_pages);
    Ok(if can_write { extent } else { extent.read_only() })
}
