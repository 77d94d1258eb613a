//! The Dynamic Memory device of a VM: on the bus, under an operator, over resets.

mod notices;
mod operator;

use std::sync::{Arc, OnceLock};

use guest_ram::{GuestRam, RamBackend};
use qmp::EventSender;
use vmbus_kvm::{
    DynamicMemoryHandle, HostBuilder, HotAdd, MachineMemory, NoMachine, Settle, VmSlots,
};

use crate::config::{Config, SettleTime};
use crate::error::VmmError;
use crate::machine::{Platform, Vm};
use crate::memory::{Kept, MemoryMap, ToAdd};
use crate::monitor::Balloon;
use crate::watch::GuestLog;
use notices::Notices;

/// The device.
struct Device {
    memory: DynamicMemoryHandle<Platform>,
    status_reports: bool,
}

/// Puts the device on the bus, for a guest with memory `map` at first.
pub(crate) fn attach(
    host: &mut HostBuilder<Platform>,
    config: &Config,
    map: &MemoryMap,
    monitor: &Arc<OnceLock<EventSender>>,
    log: GuestLog,
) -> Result<Arc<dyn Balloon>, VmmError> {
    let settings = vmbus_kvm::Config {
        boot_ram: map.boot_ram.clone(),
        settle: match config.settle {
            SettleTime::Auto => Settle::Auto,
            SettleTime::Fixed(wait) => Settle::Fixed(wait),
        },
        status_reports: config.status_reports,
        hot_add: map.to_add.map(hot_add),
        discard_unit: map.discard_unit,
        ..vmbus_kvm::Config::default()
    };
    let this = Arc::new(OnceLock::new());
    let notices = Notices::new(Arc::clone(monitor), log, Arc::clone(&this));
    let memory = host.dynamic_memory(settings, NoMachine, notices)?;
    // Set once: here.
    let _ = this.set(memory.clone());
    Ok(Arc::new(Device { memory, status_reports: config.status_reports }))
}

impl Device {
    fn start(&self, ram: &Arc<GuestRam>, vm: &Arc<Vm>, map: MemoryMap) -> Result<(), VmmError> {
        let backend = RamBackend::new(Arc::clone(ram), VmSlots(Arc::clone(vm)));
        self.memory.replace_backend(backend)?;
        let MemoryMap { boot_ram, to_add, target, .. } = map;
        let memory = MachineMemory { boot_ram, hot_add: to_add.map(hot_add), target };
        Ok(self.memory.next_machine(memory)?)
    }

    fn stop(&self) -> Kept {
        let vmbus_kvm::Kept { size, target, set_since } = self.memory.take_kept();
        // The memory goes with the machine. This fails where all of the host has ended.
        let _ = self.memory.replace_backend(NoMachine);
        Kept { size, target, set_since }
    }
}

fn hot_add(memory: ToAdd) -> HotAdd {
    let ToAdd { window, capacity, least_alignment } = memory;
    HotAdd { window, capacity, least_alignment }
}
