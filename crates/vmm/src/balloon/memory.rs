//! A machine's memory as described to the device: boot RAM, and where more can be added.

use guest_ram::{GuestRam, HIGH_RAM_START};
use page_range::{Gpa, PageCount, PageRange};
use vmbus_kvm::{HotAdd, MachineMemory};

use crate::memory::{BootMemory, MemoryPlan};

/// A guest whose RAM ends above this has larger memory blocks (Linux `arch/x86/mm/init_64.c`).
const LARGE_BLOCKS_FROM: u64 = 64 << 30;
/// Linux's smallest and largest memory blocks, in bytes.
const SMALLEST_BLOCK: u64 = 128 << 20;
const LARGEST_BLOCK: u64 = 2 << 30;

/// Describes `memory` to the device.
pub(super) fn describe(plan: &MemoryPlan, memory: &BootMemory) -> MachineMemory {
    let BootMemory { ram, target } = memory;
    MachineMemory { boot_ram: ram.pages().clone(), hot_add: hot_add(plan, ram), target: *target }
}

/// The memory that can be added; `None` if the guest boots with all it can have.
fn hot_add(plan: &MemoryPlan, ram: &GuestRam) -> Option<HotAdd> {
    let capacity = plan.maximum.saturating_sub(ram.pages().len());
    let start = ram.end().max(HIGH_RAM_START).gpfn()?;
    let window = PageRange::between(start, plan.address_end)?;
    let least_alignment = least_alignment(plan, ram.end(), capacity);
    (!capacity.is_zero()).then_some(HotAdd { window, capacity, least_alignment })
}

/// A memory slot holds exactly one block, so that the guest can reach nothing beyond it.
fn least_alignment(plan: &MemoryPlan, boot_end: Gpa, capacity: PageCount) -> PageCount {
    let slot = capacity.get().div_ceil(plan.max_pieces.max(1).into()).next_power_of_two();
    block_size(boot_end).max(plan.huge_pages.page_size()).max(PageCount::new(slot))
}

/// The memory block size of a Linux guest whose RAM ends at `end`. Its driver may report less
/// (Linux 6.1 `hv_balloon.c` always reports 128 MiB). For smaller guests, one huge page.
fn block_size(end: Gpa) -> PageCount {
    let mut block = LARGEST_BLOCK;
    if end.get() < LARGE_BLOCKS_FROM {
        block = 2 << 20;
    }
    while block > SMALLEST_BLOCK && !end.get().is_multiple_of(block) {
        block /= 2;
    }
    PageCount::from_bytes(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_linux() {
        let mib = |end: u64| block_size(Gpa::new(end)).bytes() >> 20;
        assert_eq!(mib(5 << 30), 2);
        assert_eq!(mib(64 << 30), 2048);
        assert_eq!(mib((64 << 30) + (512 << 20)), 512);
        assert_eq!(mib((64 << 30) + (128 << 20)), 128);
        assert_eq!(mib((64 << 30) + (3 << 20)), 128);
    }
}
