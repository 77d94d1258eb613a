//! A piece of guest RAM as a region of `vm-memory`.

use std::sync::Arc;

use page_range::PageRange;
use vm_memory::guest_memory::Error as AccessError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use crate::mapping::Mapping;

/// A contiguous piece of guest RAM. The host memory behind it is contiguous too, and stays mapped for
/// as long as the region lives.
#[derive(Debug)]
pub struct RamRegion {
    range: PageRange,
    mapping: Arc<Mapping>,
    /// Where the region begins in the mapping, in bytes.
    offset: usize,
    len: usize,
    /// Where the region lies in the memfd.
    file: Option<FileOffset>,
}

impl RamRegion {
    /// `None` if the range does not fit into the mapping.
    pub(crate) fn new(range: PageRange, mapping: Arc<Mapping>, offset: usize) -> Option<Self> {
        let len = usize::try_from(range.count().bytes()).ok()?;
        mapping.slice(offset, len)?;
        let file = mapping.memfd();
        let file = file.map(|file| FileOffset::from_arc(Arc::clone(file), offset as u64));
        Some(Self { range, mapping, offset, len, file })
    }

    /// The guest pages of the region.
    #[must_use]
    pub fn range(&self) -> PageRange {
        self.range
    }

    /// Where `count` bytes at `address` lie in the mapping; `None` if they are not all in the region.
    fn offset_of(&self, address: MemoryRegionAddress, count: usize) -> Option<usize> {
        let start = usize::try_from(address.0).ok()?;
        (start.checked_add(count)? <= self.len).then(|| self.offset + start)
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.len as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.range.start().gpa().get())
    }

    fn bitmap(&self) {}

    /// The memfd, for other processes to map.
    fn file_offset(&self) -> Option<&FileOffset> {
        self.file.as_ref()
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8, AccessError> {
        self.offset_of(addr, 1)
            .and_then(|offset| self.mapping.host_address(offset))
            .ok_or(AccessError::InvalidBackendAddress)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_>, AccessError> {
        self.offset_of(offset, count)
            .and_then(|offset| self.mapping.slice(offset, count))
            .ok_or(AccessError::InvalidBackendAddress)
    }
}

impl GuestMemoryRegionBytes for RamRegion {}
