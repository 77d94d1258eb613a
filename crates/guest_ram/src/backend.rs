//! Guest memory and the VM's memory slots, changed together.
//!
//! What a balloon and hot-add need of a VMM's memory: give pages back, take them again, add memory
//! to a running VM and take it out. The methods of [`RamBackend`] do so in an order in which the
//! guest never reaches memory that the host does not count as its own.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use page_range::{PageCount, PageRange};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryRegion};

use crate::{AddError, DiscardError, GuestRam, ProvideError, RamRegion};

/// The memory slots of a running VM, one for each region.
pub trait MemorySlots {
    /// Lets the guest reach a region. Whoever implements this keeps `region` for as long as the
    /// hypervisor has its address.
    ///
    /// # Errors
    /// Those of the hypervisor; the guest does not reach the region then. A region that
    /// [`MemorySlots::remove`] failed to take away is taken away first, or this fails.
    fn add(&self, region: Arc<RamRegion>) -> io::Result<()>;

    /// Takes the region that begins at `start` away from the guest.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where no region begins there, else those of the hypervisor; the
    /// guest may reach the region then.
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

/// Memory was not added, or not taken away.
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
        /// What the hypervisor said.
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
        /// What the hypervisor said.
        #[source]
        source: io::Error,
    },
    /// The memory is out of the VM, and the host did not get it back.
    #[error(transparent)]
    Discard(#[from] DiscardError),
}

/// A guest's memory with the slots of its VM.
#[derive(Debug)]
pub struct RamBackend<S> {
    ram: Arc<GuestRam>,
    slots: S,
}

impl<S: MemorySlots> RamBackend<S> {
    /// `slots` are those of a VM that has the regions of `ram`.
    #[must_use]
    pub fn new(ram: Arc<GuestRam>, slots: S) -> Self {
        Self { ram, slots }
    }

    /// The memory.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Gives pages back to the host: [`GuestRam::discard_or_undo`].
    ///
    /// # Errors
    /// As there. The guest may touch all of the pages then.
    pub fn discard(&self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.ram.discard_or_undo(ranges)
    }

    /// Makes discarded pages ready for the guest: [`GuestRam::provide`].
    ///
    /// # Errors
    /// As there.
    pub fn provide(&self, ranges: &[PageRange]) -> Result<(), ProvideError> {
        self.ram.provide(ranges)
    }

    /// Adds memory to the running VM, as [`GuestRam::add`] has it.
    ///
    /// # Errors
    /// [`BackendError`]; nothing was added then.
    pub fn add(
        &self,
        range: PageRange,
        offset: PageCount,
        alignment: PageCount,
    ) -> Result<(), BackendError> {
        for region in self.ram.add(range, offset, alignment)? {
            let pages = region.range();
            if let Err(source) = self.slots.add(region) {
                // The first error matters more than one met while undoing.
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
    /// [`BackendError`], the first one: all that can be done is done. Pages that the host could not
    /// get back keep their content if they are added again.
    pub fn remove(&self, range: PageRange) -> Result<(), BackendError> {
        let Some(range) = self.ram.addable(range) else { return Ok(()) };
        let mut result = Ok(());
        for region in self.ram.remove(range)? {
            match self.slots.remove(region.start_addr()) {
                Ok(()) => {}
                // It never came in: adding it failed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    let error = BackendError::RemoveSlot { range: region.range(), source };
                    result = result.and(Err(error));
                }
            }
        }
        match self.ram.discard(&[range]) {
            // The guest took a part of a huge page, and with it the host keeps all of that page.
            Ok(()) | Err(DiscardError::Unaligned { .. }) => result,
            Err(error) => result.and(Err(error.into())),
        }
    }
}
