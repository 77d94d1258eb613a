//! A VM together with the memory it runs on.

// UNSAFETY: KVM is told raw addresses that it reaches on its own from then on.
#![expect(unsafe_code, reason = "memory slots hold raw addresses")]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Error, Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemoryRegion, MemoryRegionAddress};

/// How many regions a VM can have: 509 in older kernels, 32764 in others (Linux
/// `Documentation/virt/kvm/api.rst`, `KVM_CAP_NR_MEMSLOTS`).
#[must_use]
pub fn slot_limit(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_nr_memslots()).unwrap_or(u32::MAX)
}

/// A VM with one memory slot per region. It holds each region for as long as its slot exists, so
/// that KVM never has the address of a mapping that is gone. vCPUs keep the VM alive inside the
/// kernel: they must be dropped before, or hold the memory themselves.
#[derive(Debug)]
pub struct GuestVm<R> {
    // Before the slots: the VM goes first.
    fd: VmFd,
    /// What each slot holds, by slot number.
    slots: Mutex<Vec<Option<Slot<R>>>>,
}

/// A slot that KVM has.
#[derive(Debug)]
struct Slot<R> {
    region: Arc<R>,
    /// It was to be taken away, and KVM refused.
    is_left_over: bool,
}

impl<R: GuestMemoryRegion> GuestVm<R> {
    /// Gives `regions` to the VM.
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

    /// KVM's side of the VM.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Gives one more region to the VM. A running guest sees it at once.
    ///
    /// What an earlier [`GuestVm::remove`] could not take away is taken away first.
    ///
    /// # Errors
    /// `EINVAL` for a region without a host mapping, and where all slots are taken; `EEXIST` where
    /// it overlaps another; else what KVM says. The VM is as before then, but for such leftovers.
    pub fn add(&self, region: Arc<R>) -> Result<(), Error> {
        let userspace_addr = region
            .get_host_address(MemoryRegionAddress(0))
            .map_err(|_| Error::new(libc::EINVAL))? as u64;
        let mut slots = self.slots();
        self.remove_leftovers(&mut slots)?;
        let index = first_free(&slots);
        let slot = kvm_userspace_memory_region {
            slot: number(index)?,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr,
            flags: 0,
        };
        // SAFETY: the region says that it maps `len` bytes at this address. It stays mapped while
        // somebody holds it, and `slots` does until KVM has let go of it.
        unsafe { self.fd.set_user_memory_region(slot) }?;
        let taken = Some(Slot { region, is_left_over: false });
        match slots.get_mut(index) {
            Some(free) => *free = taken,
            None => slots.push(taken),
        }
        Ok(())
    }

    /// Takes the region that starts at `start` away and lets go of it. When this returns the guest
    /// cannot reach it any more.
    ///
    /// # Errors
    /// `ENOENT` where no region starts there; else what KVM says, for example where the host has no
    /// memory for its lists. Then the guest still reaches the region, until the next attempt or
    /// [`GuestVm::add`].
    pub fn remove(&self, start: GuestAddress) -> Result<(), Error> {
        let mut slots = self.slots();
        let starts_there =
            |slot: &Option<Slot<R>>| slot.as_ref().is_some_and(|s| s.region.start_addr() == start);
        let index = slots.iter().position(starts_there).ok_or(Error::new(libc::ENOENT))?;
        self.clear(&mut slots, index)
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
            guest_phys_addr: taken.region.start_addr().0,
            memory_size: 0,
            userspace_addr: 0,
            flags: 0,
        };
        taken.is_left_over = true;
        // SAFETY: a slot of size zero is one that KVM deletes; it keeps no address of it.
        unsafe { self.fd.set_user_memory_region(slot) }?;
        *entry = None;
        Ok(())
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Option<Slot<R>>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn number(index: usize) -> Result<u32, Error> {
    u32::try_from(index).map_err(|_| Error::new(libc::EINVAL))
}

/// Slots are few: the numbers of those that are gone are used again.
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
