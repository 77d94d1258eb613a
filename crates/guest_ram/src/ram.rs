//! The guest's RAM as a whole: its configuration, changes to it, and access to it.

use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use page_range::{Gpa, PageCount, PageRange, PageRangeSet};
use thiserror::Error;
use vm_memory::{
    GuestAddressSpace, GuestMemoryAtomic, GuestMemoryLoadGuard, GuestRegionCollection,
};

use crate::device_memory::DeviceMemory;
use crate::discard::{DiscardError, ProvideError};
use crate::extent::Extent;
use crate::extents::Extents;
use crate::hot_add::{AddError, HotAdd};
use crate::huge_pages::PoolFiles;
use crate::layout::boot_ram_ranges;
use crate::mapping::{Mapping, MemoryKind, Request};
use crate::{HugePages, PoolError, RamRegion};

/// The memory to map.
#[derive(Clone, Copy, Debug, Default)]
pub struct RamConfig {
    /// Size of boot RAM.
    pub size: PageCount,
    /// The kind of memory. Huge pages of the host's pool are always a memfd.
    pub kind: MemoryKind,
    /// Size of the pages that back it.
    pub huge_pages: HugePages,
    /// How much can be added later; zero for none. Until it is added, it takes only address space
    /// of this process.
    pub hot_add: PageCount,
    /// The most regions that added memory may have: the VM's free memory slots.
    pub max_pieces: u32,
}

/// A part of guest memory, as [`RamConfig`] divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RamPart {
    /// [`RamConfig::size`].
    Boot,
    /// [`RamConfig::hot_add`].
    HotAdd,
}

impl fmt::Display for RamPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Boot => "the guest's boot memory",
            Self::HotAdd => "memory that the guest may get later",
        })
    }
}

/// Guest memory could not be set up.
#[derive(Debug, Error)]
pub enum RamError {
    /// The size is zero, or more than the guest's address space holds.
    #[error("a guest cannot have {0} pages of memory")]
    Size(PageCount),
    /// The host has no room for the memory.
    #[error("cannot map {bytes} bytes for {part}: ask for less, or free memory on the host")]
    Map {
        /// What the memory is for.
        part: RamPart,
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The size is not a multiple of the huge page size.
    #[error("guest memory of {bytes} bytes is not a multiple of its huge pages of {size}")]
    NotWhole {
        /// Bytes asked for.
        bytes: u64,
        /// The page size.
        size: HugePages,
    },
    /// The host's pool has too few huge pages, or none of this size.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// A guest's memory as an address space that can grow.
pub type RamAddressSpace = GuestMemoryAtomic<GuestRegionCollection<RamRegion>>;

/// The RAM of one guest: its boot RAM, and memory added later.
///
/// All methods may be called from several threads. The crate documentation says [what keeps the
/// memory mapped](crate#what-keeps-memory-mapped).
#[derive(Debug)]
pub struct GuestRam {
    memory: RamAddressSpace,
    boot: Vec<Extent>,
    boot_regions: Vec<Arc<RamRegion>>,
    pages: PageRangeSet,
    hot_add: Option<HotAdd>,
    /// Read by devices while they access memory, written when memory is removed.
    in_use: RwLock<()>,
}

impl GuestRam {
    /// Maps boot RAM and reserves address space for memory that can be added. The host allocates
    /// nothing until the guest touches it, except that boot RAM from the pool of huge pages is
    /// reserved there now.
    ///
    /// # Errors
    /// [`RamError`] if the sizes make no sense or the host has no room for them.
    pub fn new(config: &RamConfig) -> Result<Self, RamError> {
        let ranges = boot_ram_ranges(config.size);
        let pages: PageRangeSet = ranges.iter().copied().collect();
        if pages.is_empty() || pages.len() != config.size {
            return Err(RamError::Size(config.size));
        }
        check_whole(config.size, config.huge_pages)?;
        check_whole(config.hot_add, config.huge_pages)?;
        if config.huge_pages.from_pool() {
            // Opens the files now: an error may have to be explained after the process was
            // confined.
            PoolFiles::of(config.huge_pages);
        }
        let boot = map_boot(config, &ranges)?;
        let boot_regions: Vec<_> =
            boot.iter().filter_map(|extent| extent.region(extent.range()).map(Arc::new)).collect();
        let memory = GuestRegionCollection::from_arc_regions(boot_regions.clone())
            .map_err(|_| RamError::Size(config.size))?;
        let memory = GuestMemoryAtomic::new(memory);
        let hot_add = map_hot_add(config)?;
        Ok(Self { memory, boot, boot_regions, pages, hot_add, in_use: RwLock::default() })
    }

    /// A snapshot of the memory, for all code that works on `vm-memory` traits. It does not include
    /// memory added later, and keeps memory removed later mapped, so take a new one for each use.
    #[must_use]
    pub fn memory(&self) -> GuestMemoryLoadGuard<GuestRegionCollection<RamRegion>> {
        self.memory.memory()
    }

    /// The same snapshot for long-term use, such as the rings of a channel while it is open.
    #[must_use]
    pub fn snapshot(&self) -> Arc<GuestRegionCollection<RamRegion>> {
        self.memory.memory().into_inner()
    }

    /// The memory as an address space, for code that takes snapshots of it itself.
    #[must_use]
    pub fn address_space(&self) -> RamAddressSpace {
        self.memory.clone()
    }

    /// The memory as a device may access it now: see [`DeviceMemory`]. Take one for each piece of
    /// work and drop it before the next wait, since it delays removals and discards.
    #[must_use]
    pub fn device_memory(&self) -> DeviceMemory<'_> {
        let in_use = self.in_use.read().unwrap_or_else(PoisonError::into_inner);
        let absent = self.extents().all().filter_map(Extent::hold_absent).collect();
        DeviceMemory::new(self.snapshot(), in_use, absent)
    }

    /// The regions of boot RAM, lowest first.
    #[must_use]
    pub fn boot_regions(&self) -> Vec<Arc<RamRegion>> {
        self.boot_regions.clone()
    }

    /// All current regions: those of boot RAM, then those added, in no particular order.
    #[must_use]
    pub fn regions(&self) -> Vec<Arc<RamRegion>> {
        let mut regions = self.boot_regions();
        if let Some(hot_add) = &self.hot_add {
            regions.extend_from_slice(hot_add.lock().pieces());
        }
        regions
    }

    /// All pages of boot RAM.
    #[must_use]
    pub fn pages(&self) -> &PageRangeSet {
        &self.pages
    }

    /// The first address above boot RAM.
    #[must_use]
    pub fn end(&self) -> Gpa {
        self.pages.iter().map(|range| range.end().gpa()).max().unwrap_or_default()
    }

    /// Adds memory at `range`, which lies `offset` pages above the start of the memory that can be
    /// added. The first addition determines where that start lies in the guest; all later ones must
    /// agree with it.
    ///
    /// Returns the new regions. The caller gives them to the VM, and calls [`GuestRam::remove`] if
    /// that fails; [`RamBackend`](crate::RamBackend) does both. A region is one block of
    /// `alignment` pages, or as many blocks as it takes to keep the number of regions within
    /// [`RamConfig::max_pieces`]; it may then hold more than `range`. Pool pages are allocated for
    /// `range` only. That takes long, because the kernel clears them now.
    ///
    /// # Errors
    /// [`AddError`]; nothing was added then.
    pub fn add(
        &self,
        range: PageRange,
        offset: PageCount,
        alignment: PageCount,
    ) -> Result<Vec<Arc<RamRegion>>, AddError> {
        let none = AddError::Capacity { range, offset, capacity: PageCount::ZERO };
        let hot_add = self.hot_add.as_ref().ok_or(none)?;
        let mut added = hot_add.lock();
        let placed = hot_add.place(range, offset, &self.pages)?;
        let extent = placed.as_ref().or(hot_add.extent());
        let extent = extent.ok_or(AddError::AddressSpace { range, offset })?;
        let pieces = hot_add.missing_pieces(extent, &added, range, alignment)?;
        let provided = extent.provide(range)?;
        if !self.publish(added.pieces().iter().chain(&pieces)) {
            for range in provided {
                extent.take_back(range);
            }
            return Err(AddError::Occupied(range));
        }
        hot_add.settle(placed);
        added.insert(range, &pieces);
        Ok(pieces)
    }

    /// Removes added memory and returns the regions that are now empty. A region that holds other
    /// added memory as well stays.
    ///
    /// The pages keep their content and the host memory behind them. The caller takes the regions
    /// out of the VM, so that the guest cannot fill them again, and then calls
    /// [`GuestRam::discard`] for `range`. If the range is added again before that, the guest finds
    /// the old content there.
    ///
    /// # Errors
    /// [`DiscardError::NotRam`] for pages that cannot have been added.
    pub fn remove(&self, range: PageRange) -> Result<Vec<Arc<RamRegion>>, DiscardError> {
        let hot_add = self.hot_add.as_ref().filter(|_| self.addable(range) == Some(range));
        let hot_add = hot_add.ok_or(DiscardError::NotRam(range))?;
        let mut added = hot_add.lock();
        let gone = added.remove(range);
        if !gone.is_empty() {
            self.publish(added.pieces());
        }
        Ok(gone)
    }

    /// Gives pages back to the host; the guest then reads zeros there. Pool pages can be given back
    /// as whole huge pages only, and the guest must not touch them until they are
    /// [provided](GuestRam::provide) again: if the pool is empty by then, a touch ends the process.
    ///
    /// Adjacent ranges are merged, and many go into one system call, since a call costs far more
    /// than a page. Ranges in ascending order are fastest. Memory that was removed or not yet added
    /// counts as RAM here.
    ///
    /// Tries every range and reports the first failure.
    ///
    /// # Errors
    /// [`DiscardError`] for pages that are not RAM or not whole huge pages, and if a system call
    /// fails.
    pub fn discard(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard(ranges)
    }

    /// As [`GuestRam::discard`], for pages that remain the guest's, and that it may touch at any time:
    /// those that it reports as free. Pages of the host's pool stay as they are, since a touch would
    /// end the process if the pool is empty by then.
    ///
    /// May be called on the thread of a vCPU, while another thread changes the memory. A range that is
    /// not aligned to 2 MiB costs mappings, as in a balloon, until the next [`GuestRam::settle`].
    ///
    /// # Errors
    /// As [`GuestRam::discard`].
    pub fn discard_free(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard_free(ranges)
    }

    /// Whether [`GuestRam::discard_free`] has any effect: not on pages of the host's pool.
    #[must_use]
    pub fn can_discard_free(&self) -> bool {
        self.boot.iter().any(|extent| !extent.has_pool_pages())
    }

    /// As [`GuestRam::discard`], for a caller that leaves all pages with the guest after a failure:
    /// provides pool pages again that are already gone. If the pool has given them to others in the
    /// meantime, the guest's next touch needs a free huge page.
    ///
    /// # Errors
    /// As [`GuestRam::discard`].
    pub fn discard_or_undo(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.extents().discard_or_undo(ranges)
    }

    /// Allocates discarded pages of the pool again, all of them or none; they contain zeros. Does
    /// nothing for other pages, which the kernel allocates on first touch.
    ///
    /// # Errors
    /// [`ProvideError`] for pages that are not RAM or not whole huge pages, and if the pool has too
    /// few.
    pub fn provide(&self, ranges: &[PageRange]) -> Result<(), ProvideError> {
        self.extents().provide(ranges)
    }

    /// Lets memory have transparent huge pages again where it has been returned to the guest. Of all
    /// pages discarded before, only `out` are still with the host.
    ///
    /// [`GuestRam::discard`] keeps a huge page that it discards a part of from being made whole,
    /// since the host would have to provide the discarded part again. It is not told when pages are
    /// returned, for the guest's first touch brings them back; without this call they come and stay
    /// as small pages. A call takes time in proportion to the number of ranges, so make one when many
    /// pages have been returned. Pages that are discarded while it runs may be missing in `out`, so
    /// make it on the thread that discards.
    ///
    /// The kernel's refusal is no error: memory stays as it is until the next call.
    pub fn settle(&self, out: &PageRangeSet) {
        self.extents().settle(out);
    }

    /// The part of a range that may have been added.
    pub(crate) fn addable(&self, range: PageRange) -> Option<PageRange> {
        self.hot_add.as_ref().and_then(HotAdd::extent)?.range().intersection(range)
    }

    /// All memory, added or not.
    fn extents(&self) -> Extents<'_> {
        Extents::new(&self.boot, self.hot_add.as_ref().and_then(HotAdd::extent))
    }

    /// Makes boot RAM and `pieces` the memory that [`GuestRam::memory`] shows. `false` if they
    /// overlap.
    fn publish<'a>(&self, pieces: impl IntoIterator<Item = &'a Arc<RamRegion>>) -> bool {
        let mut regions: Vec<Arc<RamRegion>> =
            self.boot_regions.iter().cloned().chain(pieces.into_iter().cloned()).collect();
        regions.sort_by_key(|region| region.range());
        let Ok(memory) = GuestRegionCollection::from_arc_regions(regions) else {
            return false;
        };
        // Once this returns, no device accesses memory that is gone.
        let _unused = self.in_use.write().unwrap_or_else(PoisonError::into_inner);
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).replace(memory);
        true
    }
}

fn check_whole(size: PageCount, huge_pages: HugePages) -> Result<(), RamError> {
    if size.get().is_multiple_of(huge_pages.page_size().get()) {
        Ok(())
    } else {
        Err(RamError::NotWhole { bytes: size.bytes(), size: huge_pages })
    }
}

fn map_boot(config: &RamConfig, ranges: &[PageRange]) -> Result<Vec<Extent>, RamError> {
    let map = |range: &PageRange| {
        let guest_address = range.start().gpa().get();
        let mapping = Mapping::new(&request(config, guest_address, range.count(), true)?)?;
        Ok(Extent::new(*range, Arc::new(mapping), config.huge_pages))
    };
    ranges
        .iter()
        .map(map)
        .collect::<io::Result<_>>()
        .map_err(|error| failed(config, RamPart::Boot, config.size, error))
}

/// Where added memory will lie in the guest is not known yet, except that a huge page begins there.
fn map_hot_add(config: &RamConfig) -> Result<Option<HotAdd>, RamError> {
    let RamConfig { hot_add: size, huge_pages, max_pieces, .. } = *config;
    if size.is_zero() {
        return Ok(None);
    }
    let mapping = request(config, 0, size, false)
        .and_then(|request| Mapping::new(&request))
        .map_err(|error| failed(config, RamPart::HotAdd, size, error))?;
    Ok(Some(HotAdd::new(mapping, huge_pages, size, max_pieces)))
}

fn request(
    config: &RamConfig,
    guest_address: u64,
    size: PageCount,
    reserve: bool,
) -> io::Result<Request> {
    let len = usize::try_from(size.bytes()).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let RamConfig { kind, huge_pages, .. } = *config;
    Ok(Request { kind, huge_pages, guest_address, len, reserve })
}

/// Everything mapped before the failure is unmapped by now, so the pool's free pages count towards
/// all of `size`.
fn failed(config: &RamConfig, part: RamPart, size: PageCount, error: io::Error) -> RamError {
    let bytes = size.bytes();
    if !config.huge_pages.from_pool() {
        return RamError::Map { part, bytes, source: error };
    }
    match PoolError::explain(config.huge_pages, bytes, error) {
        Ok(error) => error.into(),
        Err(source) => RamError::Map { part, bytes, source },
    }
}
