//! Discarding memory that another VMM has mapped.

use std::sync::Arc;

use page_range::{Gpa, PageCount, PageRange, PageRangeSet};
use thiserror::Error;
use vm_memory::bitmap::Bitmap;
use vm_memory::{FileOffset, GuestMemoryRegion, GuestRegionMmap};

use crate::discard::{DiscardError, ProvideError};
use crate::extent::Extent;
use crate::extents::Extents;
use crate::mapping::{BorrowError, borrow};

/// A region of another VMM's memory was not taken.
#[derive(Debug, Error)]
#[error("cannot discard pages of the guest memory at {start}")]
pub struct RegionError {
    /// The guest address of the region.
    pub start: Gpa,
    /// What is in the way.
    #[source]
    pub source: BorrowError,
}

/// The memory of a guest that another VMM has mapped with `vm-memory`, to be discarded as that of
/// [`GuestRam`](crate::GuestRam) is.
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
/// How a region is discarded follows from how it was mapped:
///
/// | memory | call | the page afterwards |
/// |---|---|---|
/// | private, anonymous | `MADV_DONTNEED` | zeros |
/// | shared, with a file or memfd | `fallocate` `PUNCH_HOLE` at the page's place in the file | zeros, for all who map it |
/// | shared, without a file | `MADV_REMOVE` | zeros, for all who map it |
/// | private, with a file | `MADV_DONTNEED` | what the file has there |
///
/// The file behind a private mapping is left alone: it may be a snapshot that other guests start
/// from. Memory of the host's pool of huge pages goes as whole huge pages only.
///
/// # What the caller answers for
///
/// - **Pinned pages.** A device passed through with VFIO, and whatever else pins memory (RDMA,
///   registered io_uring buffers), goes on using the page that the guest had before. Discarding it
///   frees nothing, and the next touch gives the guest another page than the device's: data is
///   lost. Do not discard while such a device is attached, in this process or in one that shares
///   the memory. The same holds while a snapshot is taken or received (postcopy).
/// - **Dirty bitmaps.** A discard changes pages and marks none. A migration that has sent a page
///   before its discard leaves the old content at the destination: discard it there as well.
/// - **Locked memory** (`mlock`) cannot be discarded: the kernel refuses, and that is reported.
///
/// # What keeps the memory mapped
///
/// Each region's mapping is held from [`BorrowedRam::insert`] to [`BorrowedRam::remove`], or to the
/// drop. Memory that the VMM has taken out of the guest is therefore unmapped only when it was
/// removed here too. Regions made from a raw address (`build_raw`) are refused: holding them does
/// not keep their memory mapped.
#[derive(Debug, Default)]
pub struct BorrowedRam {
    extents: Vec<Extent>,
}

impl BorrowedRam {
    /// Takes all regions of a guest, such as `memory.iter()` of a `GuestMemoryMmap`. Regions that
    /// are added to the guest later are [inserted](BorrowedRam::insert).
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

    /// Takes one more region. All its pages count as present: pool pages that the VMM leaves to
    /// the guest's first touch are not allocated here.
    ///
    /// Asks the kernel (`fstatfs`) whether a file is one of huge pages.
    ///
    /// # Errors
    /// [`RegionError`] for a region from a raw address, one that overlaps another or is not whole
    /// pages, and for huge pages of an unknown size.
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

    /// Lets go of the region that has exactly these pages. Returns whether there is one.
    pub fn remove(&mut self, range: PageRange) -> bool {
        let before = self.extents.len();
        self.extents.retain(|extent| extent.range() != range);
        self.extents.len() < before
    }

    /// All pages of all regions, those that cannot be discarded included.
    #[must_use]
    pub fn pages(&self) -> PageRangeSet {
        self.extents.iter().map(Extent::range).collect()
    }

    /// The largest unit in which pages are discarded, in pages of 4 KiB: one without huge pages of
    /// the host's pool.
    #[must_use]
    pub fn unit(&self) -> PageCount {
        self.extents.iter().map(Extent::unit).max().unwrap_or(PageCount::new(1))
    }

    /// Gives pages back to the host. Pool pages must be [provided](BorrowedRam::provide) before
    /// the guest touches them again.
    ///
    /// Neighbouring ranges are merged, and many go with one system call where the kernel can do
    /// that; ranges in ascending order are fastest. Every range is tried; the first failure is
    /// reported.
    ///
    /// # Errors
    /// [`DiscardError`] for pages outside all regions, in a region that is mapped read-only, or
    /// that are not whole huge pages, and where the kernel refuses.
    pub fn discard(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard(ranges)
    }

    /// As [`BorrowedRam::discard`], for a caller that leaves all pages with the guest after a
    /// failure: pool pages that are gone by then are provided again, if the pool still has them.
    ///
    /// # Errors
    /// As [`BorrowedRam::discard`].
    pub fn discard_or_undo(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard_or_undo(ranges)
    }

    /// Allocates pool pages that were discarded; their content is zero. All of them, or none.
    /// Does nothing for other pages: the kernel allocates them when they are touched.
    ///
    /// # Errors
    /// [`ProvideError`] for pages outside all regions or that are not whole huge pages, and where
    /// the pool has no more.
    pub fn provide(&self, ranges: &[PageRange]) -> Result<(), ProvideError> {
        self.extents().provide(ranges)
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
