//! The guest's RAM as a whole.

use std::io;

use page_range::{Gpa, PageCount, PageRange, PageRangeSet};
use thiserror::Error;
use vm_memory::guest_memory::Error as AccessError;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use crate::discard::DiscardError;
use crate::layout::boot_ram_ranges;
use crate::mapping::{Backend, Mapping};

/// Size of the pages that back guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Pages of 4 KiB only.
    Off,
    /// Transparent huge pages are asked for; the kernel gives them where it can.
    #[default]
    Transparent,
}

/// What to map.
#[derive(Clone, Copy, Debug)]
pub struct RamConfig {
    /// Size of boot RAM.
    pub size: PageCount,
    /// What it is made of.
    pub backend: Backend,
    /// The pages that back it.
    pub huge_pages: HugePages,
}

/// Guest memory could not be set up.
#[derive(Debug, Error)]
pub enum RamError {
    /// The size is zero or leaves the address space.
    #[error("guest memory of {0} pages is not possible")]
    Size(PageCount),
    /// The host did not give the memory.
    #[error("cannot map {bytes} bytes of guest memory; ask for less with --memory")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The RAM of one guest.
#[derive(Debug)]
pub struct GuestRam {
    memory: GuestRegionCollection<RamRegion>,
    pages: PageRangeSet,
}

impl GuestRam {
    /// Maps boot RAM. Nothing is allocated until the guest touches it.
    ///
    /// # Errors
    /// [`RamError`] where the size makes no sense or the host has no room for it.
    pub fn new(config: &RamConfig) -> Result<Self, RamError> {
        let ranges = boot_ram_ranges(config.size);
        let pages: PageRangeSet = ranges.iter().copied().collect();
        if pages.is_empty() || pages.len() != config.size {
            return Err(RamError::Size(config.size));
        }
        let regions = ranges
            .into_iter()
            .map(|range| RamRegion::new(range, config))
            .collect::<Result<Vec<_>, _>>()?;
        let memory = GuestRegionCollection::from_regions(regions)
            .map_err(|_| RamError::Size(config.size))?;
        Ok(Self { memory, pages })
    }

    /// The memory, for everything that works on `vm-memory` traits.
    #[must_use]
    pub fn memory(&self) -> &GuestRegionCollection<RamRegion> {
        &self.memory
    }

    /// All pages of RAM.
    #[must_use]
    pub fn pages(&self) -> &PageRangeSet {
        &self.pages
    }

    /// The first address above all RAM.
    #[must_use]
    pub fn end(&self) -> Gpa {
        self.memory.iter().map(|region| region.range.end().gpa()).max().unwrap_or_default()
    }

    /// Gives pages back to the host; the guest reads zeros there afterwards. Neighbouring ranges
    /// are merged first, since the system call costs far more than the page.
    ///
    /// Every range is tried; the first failure is reported.
    ///
    /// # Errors
    /// [`DiscardError`] for pages that are not RAM, and where the kernel refuses.
    pub fn discard(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        crate::discard::discard(&self.memory, ranges)
    }

    /// Gives all pages back to the host: the state of a machine that was just switched on.
    ///
    /// # Errors
    /// As [`GuestRam::discard`].
    pub fn discard_all(&self) -> Result<(), DiscardError> {
        self.discard(&self.pages.iter().collect::<Vec<_>>())
    }
}

/// A run of guest RAM with one mapping behind it.
#[derive(Debug)]
pub struct RamRegion {
    range: PageRange,
    mapping: Mapping,
}

impl RamRegion {
    fn new(range: PageRange, config: &RamConfig) -> Result<Self, RamError> {
        let bytes = range.count().bytes();
        let start = range.start().gpa();
        let failed = |source| RamError::Map { bytes, source };
        let len = usize::try_from(bytes).map_err(|_| RamError::Size(config.size))?;
        let mapping = Mapping::new(config.backend, start.get(), len).map_err(failed)?;
        // A kernel built without transparent huge pages refuses; small pages work as well.
        let _ = mapping.advise_huge_pages(config.huge_pages == HugePages::Transparent);
        Ok(Self { range, mapping })
    }

    /// The guest pages of the region.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.range
    }

    pub(crate) fn discard(&self, part: PageRange) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let offset = PageCount::new(part.start().get())
            .checked_sub(PageCount::new(self.range.start().get()))
            .and_then(|pages| usize::try_from(pages.bytes()).ok())
            .ok_or_else(invalid)?;
        let count = usize::try_from(part.count().bytes()).map_err(|_| invalid())?;
        self.mapping.discard(offset, count)
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.len() as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.range.start().gpa().get())
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, AccessError> {
        usize::try_from(addr.0)
            .ok()
            .and_then(|offset| self.mapping.host_address(offset))
            .ok_or(AccessError::InvalidBackendAddress)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, AccessError> {
        usize::try_from(offset.0)
            .ok()
            .and_then(|offset| self.mapping.slice(offset, count))
            .ok_or(AccessError::InvalidBackendAddress)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}
