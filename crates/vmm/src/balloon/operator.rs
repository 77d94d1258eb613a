//! The device as an operator sees and controls it; usable on any thread.

use std::sync::Arc;

use hv_balloon::{Refusal, Snapshot, StateName};
use page_range::PageCount;
use qmp::{
    DynamicMemoryInfo, HvBalloonDevice, HvBalloonInfo, MemoryDevice, MemoryInfo, MonitorError,
};
use vmbus_kvm::{HostSnapshot, SetTargetError};

use super::Device;
use super::notices::DEVICE_ID;
use super::resident::unexplained;
use crate::devices::MachineDevices;
use crate::error::VmmError;
use crate::machine::Vm;
use crate::memory::{BootMemory, Kept};
use crate::monitor::Balloon;

impl Balloon for Device {
    fn start_machine(
        &self,
        memory: &BootMemory,
        vm: &Arc<Vm>,
        devices: &Arc<MachineDevices>,
    ) -> Result<(), VmmError> {
        self.start(memory, vm, devices)
    }

    fn stop_machine(&self) -> Kept {
        self.stop()
    }

    fn announce_reset(&self) {
        self.memory.announce_reset();
    }

    fn set_target(&self, bytes: u64) -> Result<(), MonitorError> {
        match self.memory.set_target(PageCount::from_bytes(bytes)) {
            Ok(target) => {
                self.tell_if_there(target);
                Ok(())
            }
            Err(SetTargetError::Target(error)) => Err(MonitorError::generic(error.to_string())),
            Err(SetTargetError::Stopped(_)) => {
                Err(MonitorError::generic("the machine has ended, or its device has failed"))
            }
        }
    }

    fn actual(&self) -> u64 {
        self.snapshot().actual.bytes()
    }

    fn dynamic_memory(&self) -> DynamicMemoryInfo {
        // Before the books: pages that are discarded in between are explained then, too.
        let resident = self.resident.bytes();
        let HostSnapshot { device, reported, .. } = self.memory.snapshot();
        // What no kernel uses may still hold what an earlier one left in it.
        let provided = device.actual.saturating_add(device.unconfirmed);
        DynamicMemoryInfo {
            state: device.state.as_str().into(),
            waiting: waiting(&device).map(Into::into),
            actual: device.actual.bytes(),
            target: device.target.map(PageCount::bytes),
            maximum: device.maximum.bytes(),
            boot: device.boot.bytes(),
            hot_added: device.hot_added.bytes(),
            assigned: device.assigned.bytes(),
            ballooned: device.ballooned.bytes(),
            unconfirmed: device.unconfirmed.bytes(),
            in_flight: device.in_flight.bytes(),
            held: device.held.bytes(),
            undiscarded: device.undiscarded.bytes(),
            foreign: device.foreign.bytes(),
            reported: self
                .plan
                .takes_reports
                .then(|| qmp::Reported { bytes: reported.pages.bytes(), calls: reported.calls }),
            resident,
            unexplained: resident.map_or(0, |resident| unexplained(resident, provided.bytes())),
            ready_in_ms: device
                .ready_in
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            stopped: device.last_stop.map(|reason| reason.to_string()),
            last_refusal: device.last_refusal.map(last_refusal),
            guest_os_id: device.guest_os_id,
            guest_os: device.guest_os_id.and_then(os_name),
            protocol_version: device.version.map(|version| version.to_string()),
            hot_add_alignment: device.alignment.map(PageCount::bytes),
            faults: device.faults.iter().collect(),
        }
    }

    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        if !self.status_reports {
            return Err(MonitorError::status_report_not_enabled());
        }
        let report = self.snapshot().status.ok_or_else(MonitorError::status_report_none_yet)?;
        Ok(HvBalloonInfo {
            committed: report.committed.bytes(),
            available: report.available.bytes(),
        })
    }

    fn memory_devices(&self) -> Vec<MemoryDevice> {
        let device = self.snapshot();
        vec![MemoryDevice::HvBalloon(HvBalloonDevice {
            id: Some(DEVICE_ID.into()),
            memaddr: device.hot_add_base.map(|page| page.gpa().get()),
            max_size: device.hot_add_capacity.bytes(),
            memdev: None,
            size: device.hot_added.bytes(),
        })]
    }

    fn memory_size_summary(&self) -> MemoryInfo {
        let device = self.snapshot();
        MemoryInfo {
            base_memory: device.boot.bytes(),
            plugged_memory: Some(device.hot_added.bytes()),
        }
    }
}

impl Device {
    fn snapshot(&self) -> Snapshot {
        self.memory.snapshot().device
    }
}

/// Why the device cannot act on a target now.
fn waiting(device: &Snapshot) -> Option<&'static str> {
    match device.state {
        StateName::Closed | StateName::Closing => Some(
            "no balloon driver (hv_balloon, dmvsc.sys) runs in the guest; a target is kept until \
             one does",
        ),
        StateName::AwaitVersion | StateName::AwaitCaps => {
            Some("the guest's balloon driver is starting")
        }
        StateName::Settling => {
            Some("the guest has only just booted and must be left alone; see --settle")
        }
        StateName::Pausing => Some("the guest gave less than asked for and is asked again soon"),
        _ if device.awaits_report => Some(
            "the guest's kernel started after memory was added; its next status report tells whether \
             it has that memory (Linux sends none in its first 45 seconds)",
        ),
        _ => None,
    }
}

fn last_refusal((target, refusal): (PageCount, Refusal)) -> qmp::Refusal {
    qmp::Refusal { target: target.bytes(), reason: refusal.to_string() }
}

/// The operating system in `HV_X64_MSR_GUEST_OS_ID` (TLFS; Linux `hv_generate_guest_id`). With bit
/// 63 set it is an open source system: its type from bit 56, its version from bit 16. Otherwise the
/// fields are Microsoft's vendor, system and version.
fn os_name(id: u64) -> Option<String> {
    let byte = |shift: u32| id >> shift & 0xff;
    match (id >> 63, byte(56) & 0x7f) {
        _ if id == 0 => None,
        (1, 1) => Some(format!("Linux {}.{}.{}", byte(32), byte(24), byte(16))),
        (1, 2) => Some("FreeBSD".into()),
        (1, other) => Some(format!("open source system {other}")),
        // Vendor 1 is Microsoft, system 4 Windows NT.
        _ if id >> 48 == 1 && byte(40) == 4 => {
            Some(format!("Windows NT {}.{} build {}", byte(32), byte(24), id & 0xffff))
        }
        _ => Some(format!("unknown system {id:#x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::os_name;

    #[test]
    fn guests_are_named_by_what_they_say() {
        let name = |id| os_name(id).unwrap();
        assert_eq!(name(0x8100_0006_01b0_0000), "Linux 6.1.176");
        assert_eq!(name(0x0001_040a_0000_4f7c), "Windows NT 10.0 build 20348");
        assert_eq!(name(0x8200_0000_0000_0000), "FreeBSD");
        assert!(name(0x7777).starts_with("unknown"));
        assert_eq!(os_name(0), None);
    }
}
