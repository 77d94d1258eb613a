//! A VM's Dynamic Memory device: attached to the bus, controlled by an operator, kept across
//! resets.

mod memory;
mod notices;
mod operator;
mod resident;
mod slots;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use guest_ram::RamBackend;
use page_range::PageCount;
use qmp::EventSender;
use vmbus_kvm::{
    BusHandle, DynamicMemoryHandle, FreePages, HostBuilder, MachineMemory, NoMachine, Settle,
    VmSlots,
};

use crate::config::Config;
use crate::devices::MachineDevices;
use crate::error::VmmError;
use crate::machine::{Platform, Vm};
use crate::memory::{BootMemory, Kept, MemoryPlan};
use crate::monitor::Balloon;
use crate::watch::GuestLog;
use notices::{Alignment, Notices, Repeat};
use resident::Resident;
use slots::Slots;

/// The device.
struct Device {
    memory: DynamicMemoryHandle<Platform>,
    plan: MemoryPlan,
    status_reports: bool,
    bus: BusHandle,
    repeat: Repeat,
    alignment: Alignment,
    resident: Resident,
}

/// The device's configuration, for a guest that first has the memory `first`.
pub(crate) fn settings(
    config: &Config,
    plan: &MemoryPlan,
    first: &BootMemory,
) -> vmbus_kvm::Config {
    let MachineMemory { boot_ram, hot_add, .. } = memory::describe(plan, first);
    vmbus_kvm::Config {
        boot_ram,
        settle: config.settle.map_or(Settle::Auto, Settle::Fixed),
        status_reports: config.status_reports,
        hot_add,
        discard_unit: plan.huge_pages.page_size(),
        ..vmbus_kvm::Config::default()
    }
}

/// Puts the device on the bus, for a guest that first has the memory `first`.
pub(crate) fn attach(
    host: &mut HostBuilder<Platform>,
    config: &Config,
    plan: &MemoryPlan,
    first: &BootMemory,
    monitor: &Arc<OnceLock<EventSender>>,
    log: GuestLog,
) -> Result<Arc<dyn Balloon>, VmmError> {
    let settings = settings(config, plan, first);
    let this = Arc::new(OnceLock::new());
    let (repeat, alignment) = (Repeat::default(), Alignment::default());
    let notices = Notices::new(
        Arc::clone(monitor),
        log,
        Arc::clone(&this),
        repeat.clone(),
        alignment.clone(),
    );
    let memory = host.dynamic_memory(settings, NoMachine, notices)?;
    // Set only once, here.
    let _ = this.set(memory.clone());
    let resident = Resident::new(plan.huge_pages.from_pool());
    let status_reports = config.status_reports;
    let bus = host.handle();
    let plan = *plan;
    Ok(Arc::new(Device { memory, plan, status_reports, bus, repeat, alignment, resident }))
}

impl Device {
    fn start(
        &self,
        memory: &BootMemory,
        vm: &Arc<Vm>,
        devices: &Arc<MachineDevices>,
    ) -> Result<(), VmmError> {
        let slots = Slots { vm: VmSlots(Arc::clone(vm)), devices: Arc::clone(devices) };
        let backend = RamBackend::new(Arc::clone(&memory.ram), slots);
        self.memory.replace_backend(backend)?;
        let ram = || Arc::clone(&memory.ram) as Arc<dyn FreePages>;
        self.memory.report_free_pages(self.plan.takes_reports.then(ram));
        Ok(self.memory.next_machine(memory::describe(&self.plan, memory))?)
    }

    /// Has the size told to the monitor's clients if it is the target already: a client that waits
    /// for `BALLOON_CHANGE` would wait for ever.
    fn tell_if_there(&self, target: PageCount) {
        if self.memory.snapshot().device.actual == target {
            self.repeat.ask();
            self.bus.wake();
        }
    }

    fn stop(&self) -> Kept {
        let vmbus_kvm::Kept { size, target, set_since } = self.memory.take_kept();
        // The memory goes with the machine.
        self.memory.report_free_pages(None);
        // This fails only if the whole host has ended.
        let _ = self.memory.replace_backend(NoMachine);
        Kept { size, target, set_since, alignment: self.alignment.take() }
    }
}
