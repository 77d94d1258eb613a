//! The memory types of the crate `guest_ram` as backends.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use guest_ram::{BorrowedRam, GuestRam, MemorySlots, RamBackend, RamRegion};
use kvm_hyperv::vm::GuestVm;
use page_range::{PageCount, PageRange, PageRangeSet};
use vm_memory::GuestAddress;

use super::backend::{BackendError, MemoryBackend};
use crate::FreePages;

impl<S: MemorySlots + Send + 'static> MemoryBackend for RamBackend<S> {
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(Self::discard(self, ranges)?)
    }

    fn provide(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(Self::provide(self, ranges)?)
    }

    fn settle(&mut self, out: &PageRangeSet) {
        Self::settle(self, out);
    }

    fn add(
        &mut self,
        range: PageRange,
        offset: PageCount,
        alignment: PageCount,
    ) -> Result<(), BackendError> {
        Ok(Self::add(self, range, offset, alignment)?)
    }

    fn remove(&mut self, range: PageRange) -> Result<(), BackendError> {
        Ok(Self::remove(self, range)?)
    }
}

/// Memory that the VMM has mapped. It can be ballooned. A VMM that adds memory as well wraps this
/// in a backend of its own.
impl MemoryBackend for BorrowedRam {
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(self.discard_or_undo(ranges)?)
    }

    fn provide(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(Self::provide(self, ranges)?)
    }

    fn settle(&mut self, out: &PageRangeSet) {
        Self::settle(self, out);
    }

    fn add(&mut self, _: PageRange, _: PageCount, _: PageCount) -> Result<(), BackendError> {
        Err("this machine has no memory to add".into())
    }

    fn remove(&mut self, _: PageRange) -> Result<(), BackendError> {
        // Nothing was ever added.
        Ok(())
    }
}

impl FreePages for GuestRam {
    fn discard(&self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(self.discard_free(ranges)?)
    }
}

impl FreePages for BorrowedRam {
    fn discard(&self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(self.discard_free(ranges)?)
    }
}

/// For a VMM that adds memory: a vCPU that reports pages waits while another thread has the lock for
/// writing.
impl FreePages for RwLock<BorrowedRam> {
    fn discard(&self, ranges: &[PageRange]) -> Result<(), BackendError> {
        Ok(self.read().unwrap_or_else(PoisonError::into_inner).discard_free(ranges)?)
    }
}

/// The memory slots of a VM.
#[derive(Debug)]
pub struct VmSlots(pub Arc<GuestVm<RamRegion>>);

impl MemorySlots for VmSlots {
    fn add(&self, region: Arc<RamRegion>) -> io::Result<()> {
        self.0.add(region).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }

    fn remove(&self, start: GuestAddress) -> io::Result<()> {
        self.0.remove(start).map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

#[cfg(test)]
mod tests {
    use page_range::Gpfn;

    use super::super::backend::WorkError;
    use super::*;

    #[test]
    fn what_the_host_lacks_for_a_slot_is_told_with_a_remedy() {
        let range = PageRange::new(Gpfn::default(), PageCount::new(1)).unwrap();
        let source = io::Error::from_raw_os_error(libc::ENOMEM);
        let error = guest_ram::BackendError::AddSlot { range, source };
        let error = WorkError { what: "add memory to the guest", source: error.into() };
        let text = error.to_string();
        assert!(
            text.starts_with("cannot add memory to the guest; free memory on the host"),
            "{text}"
        );
    }
}
