//! A VM together with the memory it runs on.

// UNSAFETY: KVM is told raw addresses that it reaches on its own from then on.
#![expect(unsafe_code, reason = "memory slots hold raw addresses")]

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Error, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// A VM with one memory slot per region of `M`. It owns the memory, so that KVM never holds the
/// address of a mapping that is gone. vCPUs keep the VM alive inside the kernel: they must be
/// dropped before, or hold the memory themselves.
#[derive(Debug)]
pub struct GuestVm<M> {
    fd: VmFd,
    memory: M,
}

impl<M: GuestMemoryBackend> GuestVm<M> {
    /// Gives `memory` to the VM.
    ///
    /// # Errors
    /// `EINVAL` for a region without a host mapping; else what KVM says.
    pub fn new(fd: VmFd, memory: M) -> Result<Self, Error> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let host_address = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| Error::new(libc::EINVAL))?;
            let slot = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host_address as u64,
                flags: 0,
            };
            // SAFETY: the region says that it maps `len` bytes at this address, and `Self` keeps
            // it mapped for as long as the VM may run.
            unsafe { fd.set_user_memory_region(slot) }?;
        }
        Ok(Self { fd, memory })
    }

    /// KVM's side of the VM.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// The memory.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}
