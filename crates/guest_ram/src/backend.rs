//! Guest memory and the VM's memory slots, changed together.
//!
//! This is what a balloon and hot-add need of a VMM's memory: discarding pages, providing them
//! again, adding memory to a running VM and removing it. The methods of [`RamBackend`] work in an
//! order in which the guest never reaches memory that the host does not count as the guest's.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use page_range::{PageCount, PageRange, PageRangeSet};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryRegion};

use crate::{AddError, DiscardError, GuestRam, ProvideError, RamRegion};

/// The memory slots of a running VM, one for each region.
pub trait MemorySlots {
    /// Lets the guest reach a region. The implementation must keep `region` for as long as the
    /// hypervisor has its address.
    ///
    /// # Errors
    /// The hypervisor's; the guest then does not reach the region. A region that
    /// [`MemorySlots::remove`] failed to take away is removed first, or this fails.
    fn add(&self, region: Arc<RamRegion>) -> io::Result<()>;

    /// Takes the region that begins at `start` away from the guest.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if no region begins there, or the hypervisor's error; the guest
    /// may then still reach the region.
    fn remove(&self, start: GuestAddress) -> io::Result<()>;
}

impl<S: Deref<Target: MemorySlots>> MemorySlots for S {
    fn add(&self, region: Arc<RamRegion>) -> io::Result<()> {
        self.deref().add(region)
    }

    fn remove(&self, start: GuestAddress) -> io::Result<()> {
        self.deref().remove(start)
    }
}

/// Memory could not be added or removed.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The memory does not fit, or the host does not have it.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The VM did not take a region. Nothing was added.
    #[error("cannot give the VM memory at pages {range}")]
    AddSlot {
        /// The region.
        range: PageRange,
        /// The hypervisor's error.
        #[source]
        source: io::Error,
    },
    /// The VM did not let go of a region.
    #[error(
        "cannot take memory at pages {range} out of the VM: the guest can reach it until memory is \
         added again"
    )]
    RemoveSlot {
        /// The region.
        range: PageRange,
        /// The hypervisor's error.
        #[source]
        source: io::Error,
    },
    /// The memory is out of the VM, but the host did not get it back.
    #[error(transparent)]
    Discard(#[from] DiscardError),
}

/// A guest's memory and the memory slots of its VM.
#[derive(Debug)]
pub struct RamBackend<S> {
    ram: Arc<GuestRam>,
    slots: S,
}

impl<S: MemorySlots> RamBackend<S> {
    /// `slots` belong to a VM that has the regions of `ram`.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, slots: S) -> Self {
        Self { ram, slots }
    }

    /// The memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Gives pages back to the host; see [`GuestRam::discard_or_undo`].
    ///
    /// # Errors
    /// As [`GuestRam::discard_or_undo`]. The guest may then touch all of the pages.
    pub fn discard(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.ram.discard_or_undo(ranges)
    }

    /// Makes discarded pages ready for the guest; see [`GuestRam::provide`].
    ///
    /// # Errors
    /// As [`GuestRam::provide`].
    pub fn provide(&self, ranges: &[PageRange]) -> Result<(), ProvideError> {
        self.ram.provide(ranges)
    }

    /// Lets returned memory have transparent huge pages again; see [`GuestRam::settle`].
    pub fn settle(&self, out: &PageRangeSet) {
        self.ram.settle(out);
    }

    /// Adds memory to the running VM; for the parameters see [`GuestRam::add`].
    ///
    /// # Errors
    /// [`BackendError`]; nothing was added.
    pub fn add(
        &self,
        range: PageRange,
        offset: PageCount,
        alignment: PageCount,
    ) -> Result<(), BackendError> {
        for region in self.ram.add(range, offset, alignment)? {
            let pages = region.range();
            if let Err(source) = self.slots.add(region) {
                // The first error matters more than one met while undoing the addition.
                let _ = self.remove(range);
                return Err(BackendError::AddSlot { range: pages, source });
            }
        }
        Ok(())
    }

    /// Takes added memory out of the running VM and gives it back to the host. Skips pages that
    /// cannot have been added.
    ///
    /// # Errors
    /// The first [`BackendError`]; everything that could be done has been done. Pages that the host
    /// could not get back keep their content if they are added again.
    pub fn remove(&self, range: PageRange) -> Result<(), BackendError> {
        let Some(range) = self.ram.addable(range) else { return Ok(()) };
        let mut result = Ok(());
        for region in self.ram.remove(range)? {
            match self.slots.remove(region.start_addr()) {
                Ok(()) => {}
                // It was never added to the VM: adding it failed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    let error = BackendError::RemoveSlot { range: region.range(), source };
                    result = result.and(Err(error));
                }
            }
        }
        match self.ram.discard(&[range]) {
            // The guest took part of a huge page, so the host keeps all of that page.
            Ok(()) | Err(DiscardError::Unaligned { .. }) => result,
            Err(error) => result.and(Err(error.into())),
        }
    }
}
