//! A VM together with the memory it runs on.

// UNSAFETY: KVM is given raw addresses, which it uses on its own from then on.
#![expect(unsafe_code, reason = "memory slots hold raw addresses")]

use std::sync::atomic::AtomicU8;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Error, Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemoryRegion, MemoryRegionAddress, VolatileMemory};

/// The most regions a VM can have: 509 in older kernels, 32764 in others (Linux
/// `Documentation/virt/kvm/api.rst`, `KVM_CAP_NR_MEMSLOTS`).
#[must_use]
pub fn slot_limit(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX)
}

/// A VM with one memory slot per region. It holds each region for as long as its slot exists, so
/// that KVM never has the address of a mapping that is gone.
///
/// vCPUs keep the VM alive inside the kernel and may outlive this. Dropping it deletes all slots
/// first, so that such a vCPU finds no memory; a region whose slot KVM does not delete is leaked,
/// since a vCPU can still write to it. The thread that drops this last therefore makes the ioctl
/// [`KVM_SET_USER_MEMORY_REGION`](crate::ioctl_numbers::KVM_SET_USER_MEMORY_REGION). If the system
/// call filter of that thread may forbid it, call [`GuestVm::remove_all`] first.
#[derive(Debug)]
pub struct GuestVm<R> {
    fd: VmFd,
    /// The content of each slot, by slot number.
    slots: Mutex<Vec<Option<Slot<R>>>>,
}

/// A slot that exists in KVM.
#[derive(Debug)]
struct Slot<R> {
    region: Arc<R>,
    start: GuestAddress,
    /// It was to be removed, and KVM refused.
    is_left_over: bool,
}

impl<R: GuestMemoryRegion + 'static> GuestVm<R> {
    /// Gives `regions` to the VM, which has no memory slots yet.
    ///
    /// # Errors
    /// As [`GuestVm::add`].
    pub fn new(fd: VmFd, regions: impl IntoIterator<Item = Arc<R>>) -> Result<Self, Error> {
        let vm = Self { fd, slots: Mutex::default() };
        for region in regions {
            vm.add(region)?;
        }
        Ok(vm)
    }

    /// Gives one more region to the VM. A running guest sees it at once.
    ///
    /// First removes what an earlier [`GuestVm::remove`] could not.
    ///
    /// # Errors
    /// `EINVAL` for a region whose host memory is not one slice ([`GuestMemoryRegion::get_slice`]),
    /// and if all slots are in use; `EEXIST` if it overlaps another region; otherwise KVM's error.
    /// Apart from such leftovers the VM is unchanged.
    pub fn add(&self, region: Arc<R>) -> Result<(), Error> {
        let start = region.start_addr();
        let (userspace_addr, memory_size) =
            host_memory(&*region).ok_or(Error::new(libc::EINVAL))?;
        let mut slots = self.slots();
        self.remove_leftovers(&mut slots)?;
        let index = first_free(&slots);
        let slot = kvm_userspace_memory_region {
            slot: number(index)?,
            guest_phys_addr: start.0,
            memory_size,
            userspace_addr,
            flags: 0,
        };
        // SAFETY: address and size are those of a `VolatileSlice`, which only unsafe code can
        // forge: it is memory that may be written at any time for as long as the region is
        // borrowed. A borrow may last as long as an `Arc` is held, and `slots` holds one until KVM
        // has let go of the memory; if this is forgotten or KVM refuses, it does so for ever, as
        // the region is `'static`.
        unsafe { self.fd.set_user_memory_region(slot) }?;
        let taken = Some(Slot { region, start, is_left_over: false });
        match slots.get_mut(index) {
            Some(free) => *free = taken,
            None => slots.push(taken),
        }
        Ok(())
    }
}

impl<R> GuestVm<R> {
    /// KVM's handle of the VM.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Removes the region that starts at `start` and lets go of it. When this returns, the guest
    /// can no longer reach it.
    ///
    /// # Errors
    /// `ENOENT` if no region starts there; otherwise KVM's error, for example if the host has no
    /// memory for its lists. The guest can then still reach the region, until the next attempt or
    /// [`GuestVm::add`].
    pub fn remove(&self, start: GuestAddress) -> Result<(), Error> {
        let mut slots = self.slots();
        let starts_there = |slot: &Option<Slot<R>>| slot.as_ref().is_some_and(|s| s.start == start);
        let index = slots.iter().position(starts_there).ok_or(Error::new(libc::ENOENT))?;
        self.clear(&mut slots, index)
    }

    /// Removes all regions, each as [`GuestVm::remove`] does. Dropping this then makes no further
    /// system call for them.
    ///
    /// # Errors
    /// KVM's error for the first region that it did not let go of; the others are gone.
    pub fn remove_all(&self) -> Result<(), Error> {
        let mut slots = self.slots();
        let mut result = Ok(());
        for index in 0..slots.len() {
            result = result.and(self.clear(&mut slots, index));
        }
        result
    }

    fn remove_leftovers(&self, slots: &mut [Option<Slot<R>>]) -> Result<(), Error> {
        let is_left_over = |slot: &Option<Slot<R>>| slot.as_ref().is_some_and(|s| s.is_left_over);
        while let Some(index) = slots.iter().position(is_left_over) {
            self.clear(slots, index)?;
        }
        Ok(())
    }

    fn clear(&self, slots: &mut [Option<Slot<R>>], index: usize) -> Result<(), Error> {
        let Some(entry) = slots.get_mut(index) else { return Ok(()) };
        let Some(taken) = entry else { return Ok(()) };
        let slot = kvm_userspace_memory_region {
            slot: number(index)?,
            guest_phys_addr: taken.start.0,
            memory_size: 0,
            userspace_addr: 0,
            flags: 0,
        };
        taken.is_left_over = true;
        // SAFETY: KVM deletes a slot of size zero and keeps no address of it.
        unsafe { self.fd.set_user_memory_region(slot) }?;
        *entry = None;
        Ok(())
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Option<Slot<R>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Drop for GuestVm<R> {
    fn drop(&mut self) {
        // Regions that remain are leaked.
        let _ = self.remove_all();
        for slot in std::mem::take(&mut *self.slots()).into_iter().flatten() {
            std::mem::forget(slot.region);
        }
    }
}

/// Address and size of the host memory behind a region.
///
/// Not [`GuestMemoryRegion::get_host_address`]: the trait is safe, so any implementation may return
/// any address there. A slice carries the promise of the unsafe code that made it.
fn host_memory<R: GuestMemoryRegion>(region: &R) -> Option<(u64, u64)> {
    let len = usize::try_from(region.len()).ok()?;
    let slice = region.get_slice(MemoryRegionAddress(0), len).ok()?;
    if slice.len() != len {
        return None;
    }
    // A reference into the slice, and so an address that is valid for as long as the slice.
    let first = slice.get_atomic_ref::<AtomicU8>(0).ok()?;
    Some((std::ptr::from_ref(first) as u64, len as u64))
}

fn number(index: usize) -> Result<u32, Error> {
    u32::try_from(index).map_err(|_| Error::new(libc::EINVAL))
}

/// Slots are few, so the numbers of deleted ones are reused.
fn first_free<T>(slots: &[Option<T>]) -> usize {
    slots.iter().position(Option::is_none).unwrap_or(slots.len())
}

#[cfg(test)]
mod tests {
    use super::first_free;

    #[test]
    fn numbers_of_removed_slots_are_used_again() {
        assert_eq!(first_free::<()>(&[]), 0);
        assert_eq!(first_free(&[Some(()), None, Some(()), None]), 1);
        assert_eq!(first_free(&[Some(()), Some(())]), 2);
    }
}
