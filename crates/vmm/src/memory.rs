//! How much memory a machine gets, at its start and after each reset, and where more may go.

use std::sync::Arc;

use guest_ram::{GuestRam, HIGH_RAM_START, HugePages, MemoryKind, RamConfig, RamError};
use kvm_ioctls::Kvm;
use page_range::{Gpa, Gpfn, PageCount, PageRange, PageRangeSet};

use crate::boot::cpu;
use crate::config::{Config, OnReset};
use crate::error::VmmError;

/// Most memory slots for added memory: with more to add, blocks are larger.
const MAX_PIECES: u32 = 1024;

/// Memory slots for everything else.
const OTHER_SLOTS: u32 = 16;

/// A guest whose RAM ends above this has larger memory blocks (Linux `arch/x86/mm/init_64.c`).
const LARGE_BLOCKS_FROM: u64 = 64 << 30;
/// Linux' smallest and largest memory blocks, in bytes.
const SMALLEST_BLOCK: u64 = 128 << 20;
const LARGEST_BLOCK: u64 = 2 << 30;

/// What a VM may have for memory in all its life.
pub(crate) struct MemoryPlan {
    boot: PageCount,
    maximum: PageCount,
    huge_pages: HugePages,
    on_reset: OnReset,
    /// The page after the last one the guest can address.
    address_end: Gpfn,
    max_pieces: u32,
}

/// The memory of one machine.
pub(crate) struct BootMemory {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) map: MemoryMap,
}

/// A machine's memory as the device is to know it.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "hv-balloon"), expect(dead_code, reason = "for the device"))]
pub(crate) struct MemoryMap {
    pub(crate) boot_ram: PageRangeSet,
    pub(crate) to_add: Option<ToAdd>,
    /// Pages the host can only discard together; the same for all machines of a VM.
    pub(crate) discard_unit: PageCount,
    /// The size to bring the guest to once it can be asked.
    pub(crate) target: Option<PageCount>,
}

/// Memory that may be added.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "hv-balloon"), expect(dead_code, reason = "for the device"))]
pub(crate) struct ToAdd {
    /// Where it may go.
    pub(crate) window: PageRange,
    pub(crate) capacity: PageCount,
    pub(crate) least_alignment: PageCount,
}

/// What a machine that is taken away leaves behind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    /// The size the guest had.
    pub(crate) size: Option<PageCount>,
    /// The target it was on its way to.
    pub(crate) target: Option<PageCount>,
    /// The target set since the reset was asked for.
    pub(crate) set_since: Option<PageCount>,
}

impl MemoryPlan {
    /// Checks the sizes asked for against what the guest can address.
    pub(crate) fn new(config: &Config, kvm: &Kvm) -> Result<Self, VmmError> {
        let bits = cpu::address_bits(kvm)?;
        let address_end = Gpa::new(1_u64.checked_shl(bits).unwrap_or(u64::MAX));
        let plan = Self {
            boot: PageCount::from_bytes(config.memory_bytes),
            maximum: PageCount::from_bytes(config.max_memory_bytes.max(config.memory_bytes)),
            huge_pages: config.huge_pages,
            on_reset: config.on_reset,
            address_end: address_end.gpfn().unwrap_or(Gpfn::MAX),
            max_pieces: kvm_hyperv::vm::slot_limit(kvm).saturating_sub(OTHER_SLOTS).min(MAX_PIECES),
        };
        // The hole below 4 GiB takes a part of the address space.
        let room = Gpfn::distance_from(plan.address_end, Gpfn::default());
        let hole = HIGH_RAM_START.get().saturating_sub(guest_ram::LOW_RAM_LIMIT.get());
        let most = room.saturating_sub(PageCount::from_bytes(hole));
        if plan.maximum > most {
            let option = if plan.boot > most { "--memory" } else { "--max-memory" };
            return Err(VmmError::AddressWidth { option, bits, most: most.bytes() });
        }
        Ok(plan)
    }

    /// The page after the last one the guest can address.
    pub(crate) fn address_end(&self) -> Gpfn {
        self.address_end
    }

    /// The memory to start with.
    pub(crate) fn first(&self) -> Result<BootMemory, VmmError> {
        Ok(self.provide(self.boot, None)?)
    }

    /// The memory after a reset of a machine that left `kept`.
    ///
    /// With `boot-size` only a target set since the reset was asked for counts. A guest that is to
    /// keep a size above its boot size boots with it. One below boots with its
    /// boot size, since a kernel may not start in less, and is shrunk once its driver is there:
    /// until then it only takes from the host what it touches.
    pub(crate) fn after_reset(&self, kept: Kept) -> Result<BootMemory, VmmError> {
        if self.on_reset == OnReset::BootSize {
            return Ok(self.provide(self.boot, kept.set_since)?);
        }
        let size = kept.size.unwrap_or(self.boot);
        let unit = self.huge_pages.page_size();
        let size = size.align_up(unit).unwrap_or(size).min(self.maximum);
        let target = kept.set_since.or(kept.target);
        if size > self.boot {
            match self.provide(size, target) {
                Ok(memory) => return Ok(memory),
                Err(error) => tracing::warn!(
                    "the guest cannot keep its size and boots with its boot size: {}",
                    crate::error::chain(&error)
                ),
            }
        }
        Ok(self.provide(self.boot, target.or((size < self.boot).then_some(size)))?)
    }

    fn provide(&self, boot: PageCount, target: Option<PageCount>) -> Result<BootMemory, RamError> {
        let capacity = self.maximum.saturating_sub(boot);
        let ram = GuestRam::new(&RamConfig {
            size: boot,
            kind: MemoryKind::Anonymous,
            huge_pages: self.huge_pages,
            hot_add: capacity,
            max_pieces: self.max_pieces,
        })?;
        let map = self.describe(&ram, capacity, target);
        Ok(BootMemory { ram: Arc::new(ram), map })
    }

    /// One memory slot holds one block, so that the guest reaches nothing beyond it.
    fn least_alignment(&self, boot_end: Gpa, capacity: PageCount) -> PageCount {
        let slot = capacity.get().div_ceil(self.max_pieces.max(1).into()).next_power_of_two();
        block_size(boot_end).max(self.huge_pages.page_size()).max(PageCount::new(slot))
    }

    fn describe(
        &self,
        ram: &GuestRam,
        capacity: PageCount,
        target: Option<PageCount>,
    ) -> MemoryMap {
        let start = ram.end().max(HIGH_RAM_START).gpfn();
        let window = start.and_then(|start| PageRange::between(start, self.address_end));
        let to_add = window.filter(|_| !capacity.is_zero()).map(|window| ToAdd {
            window,
            capacity,
            least_alignment: self.least_alignment(ram.end(), capacity),
        });
        let discard_unit = self.huge_pages.page_size();
        MemoryMap { boot_ram: ram.pages().clone(), to_add, discard_unit, target }
    }
}

/// The memory blocks of a Linux guest whose RAM ends at `end`: what its driver says may be less
/// (Linux 6.1 `hv_balloon.c` always says 128 MiB). For smaller guests, one huge page.
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
