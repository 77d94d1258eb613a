//! Guest memory for emulated devices, whose addresses come from the guest.

use std::sync::{Arc, RwLockReadGuard};

use page_range::{Gpfn, PAGE_SIZE, PageCount, PageRange, PageRangeSet};
use vm_memory::guest_memory::{Error as AccessError, GuestMemorySliceIterator};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestRegionCollection, Permissions,
};

use crate::RamRegion;

/// Guest memory while a device accesses it, from [`GuestRam::device_memory`].
///
/// It contains memory added before, and no memory removed before. While it exists, no memory is
/// removed ([`GuestRam::remove`] waits) and no page goes back to the host's pool
/// ([`GuestRam::discard`] waits). A page that is there already cannot be accessed: the access fails,
/// where a touch would end the process with SIGBUS if the pool is empty. Pages that do not come from
/// the pool are always accessible, for the kernel allocates them on first touch.
///
/// This is a [`GuestMemory`], and so all that works on such memory, a `virtio-queue` for example,
/// keeps these promises.
///
/// [`GuestRam::device_memory`]: crate::GuestRam::device_memory
/// [`GuestRam::remove`]: crate::GuestRam::remove
/// [`GuestRam::discard`]: crate::GuestRam::discard
#[derive(Debug)]
pub struct DeviceMemory<'a> {
    memory: Arc<GuestRegionCollection<RamRegion>>,
    absent: Vec<RwLockReadGuard<'a, PageRangeSet>>,
    _in_use: RwLockReadGuard<'a, ()>,
}

impl<'a> DeviceMemory<'a> {
    pub(crate) fn new(
        memory: Arc<GuestRegionCollection<RamRegion>>,
        in_use: RwLockReadGuard<'a, ()>,
        absent: Vec<RwLockReadGuard<'a, PageRangeSet>>,
    ) -> Self {
        Self { memory, absent, _in_use: in_use }
    }

    /// Whether the host's pool has some of these bytes.
    fn is_absent(&self, start: GuestAddress, count: usize) -> bool {
        let touches =
            |range| self.absent.iter().any(|set| set.intersection(range).next().is_some());
        !self.absent.is_empty() && pages(start, count).is_some_and(touches)
    }
}

/// The pages that hold some bytes; `None` if there are none, or the sum overflows.
fn pages(start: GuestAddress, count: usize) -> Option<PageRange> {
    let last = start.0.checked_add(u64::try_from(count.checked_sub(1)?).ok()?)?;
    let page = |address: u64| Gpfn::new(address / PAGE_SIZE);
    PageRange::between(page(start.0)?, page(last)?.checked_add(PageCount::new(1))?)
}

impl GuestMemory for DeviceMemory<'_> {
    type PhysicalMemory = GuestRegionCollection<RamRegion>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        GuestMemoryBackend::check_range(&*self.memory, addr, count) && !self.is_absent(addr, count)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, AccessError> {
        if self.is_absent(addr, count) {
            return Err(AccessError::InvalidGuestAddress(addr));
        }
        Ok(GuestMemoryBackend::get_slices(&*self.memory, addr, count))
    }
}
