//! Guest memory in the initial state of a measurement.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use guest_ram::{GuestRam, LOW_RAM_LIMIT, RamConfig, RamRegion};
use kvm_hyperv::memory::GuestBusMemory;
use page_range::{Gpfn, PageCount, PageRange};
use vm_memory::GuestRegionCollection;

use crate::scenario::Scenario;
use crate::vm::Vm;

/// The memory that the guest keeps: the rings, and the code that dirties the rest.
const KERNEL: PageCount = PageCount::from_bytes(32 << 20);

/// The largest pool in MiB: all memory lies below the hole.
pub(crate) const MAX_MIB: u64 = (LOW_RAM_LIMIT.get() >> 20) - 32;

/// A guest's memory, with a VM on it if there is KVM.
pub(crate) struct GuestMemory {
    // Dropped before the memory, since a vCPU keeps the VM alive inside the kernel.
    vm: Option<Vm>,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) regions: Vec<Arc<RamRegion>>,
    /// The ranges that the guest gives.
    pub(crate) pieces: Vec<PageRange>,
    /// The range that contains the pieces.
    pool: PageRange,
    scenario: Scenario,
}

impl GuestMemory {
    /// Memory that nobody has touched.
    pub(crate) fn new(scenario: Scenario, mib: u64, with_vm: bool) -> Result<Self> {
        let pool = PageCount::from_bytes(mib << 20);
        let ram = GuestRam::new(&RamConfig {
            size: KERNEL.saturating_add(pool),
            kind: scenario.kind,
            huge_pages: scenario.huge_pages(),
            ..Default::default()
        })?;
        let start = Gpfn::new(KERNEL.get()).context("small")?;
        let pool = PageRange::new(start, pool)?;
        let vm = with_vm.then(|| Vm::new(&ram)).transpose()?;
        let (pieces, regions) = (scenario.pieces.of(pool), ram.boot_regions());
        Ok(Self { vm, ram: Arc::new(ram), regions, pieces, pool, scenario })
    }

    /// Makes the guest write to the whole pool, if the scenario requires it.
    pub(crate) fn prepare(&mut self) -> Result<()> {
        match &mut self.vm {
            _ if !self.scenario.is_dirty => Ok(()),
            Some(vm) => vm.dirty(&self.ram, self.pool),
            None => dirty(&self.ram, self.pool),
        }
    }

    /// The number of pages in all pieces.
    pub(crate) fn given(&self) -> PageCount {
        self.pieces.iter().fold(PageCount::ZERO, |sum, piece| sum.saturating_add(piece.count()))
    }
}

/// Guest memory as the rings see it.
pub(crate) type BusMemory = GuestBusMemory<Arc<GuestRegionCollection<RamRegion>>>;

pub(crate) fn bus_memory(ram: &GuestRam) -> BusMemory {
    GuestBusMemory::new(ram.snapshot())
}

fn dirty(ram: &GuestRam, pages: PageRange) -> Result<()> {
    let memory = bus_memory(ram);
    for page in pages.start().get()..pages.end().get() {
        let gpa = Gpfn::new(page).context("small")?.gpa();
        vmbus::GuestMemory::store_u32(&memory, gpa, 1, Ordering::Relaxed)?;
    }
    Ok(())
}
