//! A machine's memory slots, and the devices that must hear of each change to its memory.

use std::io;
use std::sync::Arc;

use guest_ram::{MemorySlots, RamRegion};
use vm_memory::GuestAddress;
use vmbus_kvm::VmSlots;

use crate::devices::MachineDevices;

pub(super) struct Slots {
    pub(super) vm: VmSlots,
    pub(super) devices: Arc<MachineDevices>,
}

impl MemorySlots for Slots {
    fn add(&self, region: Arc<RamRegion>) -> io::Result<()> {
        self.vm.add(region)?;
        self.devices.memory_changed();
        Ok(())
    }

    fn remove(&self, start: GuestAddress) -> io::Result<()> {
        // What they access is discarded after this.
        self.devices.memory_changed();
        self.vm.remove(start)
    }
}
