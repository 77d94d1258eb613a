//! Three kinds of guest memory.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_model::vmbus::SharedMemory;
use guest_ram::{GuestRam, RamConfig, RamRegion};
use kvm_hyperv::memory::GuestBusMemory;
use page_range::{Gpa, PageCount};
use vm_memory::GuestRegionCollection;
use vmbus::{AccessError, GuestMemory};

/// Room for the rings of all measurements.
const PAGES: PageCount = PageCount::new(1024);

/// A plain byte array on one thread: the least that a copy can cost.
#[derive(Debug)]
pub struct ByteArray(RefCell<Vec<u8>>);

/// 4 MiB of [`ByteArray`].
#[must_use]
pub fn byte_array() -> ByteArray {
    ByteArray(RefCell::new(vec![0; len()]))
}

/// 4 MiB of anonymous memory, as `hvb` maps it for a guest.
///
/// # Panics
/// If the host has no memory.
#[must_use]
pub fn real_memory() -> GuestBusMemory<Arc<GuestRegionCollection<RamRegion>>> {
    let config = RamConfig { size: PAGES, ..RamConfig::default() };
    GuestBusMemory::new(GuestRam::new(&config).expect("there are 4 MiB").snapshot())
}

/// 4 MiB of atomic words, which two threads may share without unsafe code.
#[must_use]
pub fn shared_memory() -> Arc<SharedMemory> {
    Arc::new(SharedMemory::new(len() >> 12))
}

fn len() -> usize {
    usize::try_from(PAGES.bytes()).unwrap_or(0)
}

impl ByteArray {
    fn range(gpa: Gpa, len: usize) -> Result<Range<usize>, AccessError> {
        let error = AccessError { gpa, len };
        let start = usize::try_from(gpa.get()).map_err(|_| error)?;
        Ok(start..start.checked_add(len).ok_or(error)?)
    }
}

impl GuestMemory for ByteArray {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let len = buf.len();
        let bytes = self.0.borrow();
        let range = Self::range(gpa, len)?;
        buf.copy_from_slice(bytes.get(range).ok_or(AccessError { gpa, len })?);
        Ok(())
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        let len = buf.len();
        let mut bytes = self.0.borrow_mut();
        let range = Self::range(gpa, len)?;
        bytes.get_mut(range).ok_or(AccessError { gpa, len })?.copy_from_slice(buf);
        Ok(())
    }

    fn load_u32(&self, gpa: Gpa, _: Ordering) -> Result<u32, AccessError> {
        let mut word = [0; 4];
        self.read(gpa, &mut word)?;
        Ok(u32::from_le_bytes(word))
    }

    fn store_u32(&self, gpa: Gpa, value: u32, _: Ordering) -> Result<(), AccessError> {
        self.write(gpa, &value.to_le_bytes())
    }
}
