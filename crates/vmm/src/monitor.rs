//! The machine as the monitor sees it.

use std::sync::{Arc, OnceLock};

use page_range::PageCount;
use qmp::{
    DynamicMemoryInfo, Event, EventSender, HvBalloonInfo, IntegrationServicesInfo, Machine,
    MemoryDevice, MemoryInfo, MonitorError, RunState, Value,
};
use vmbus_kvm::BusHandle;

use crate::brake::{self, Brake};
use crate::control::{Cause, Control, ControlSender};
use crate::devices::MachineDevices;
use crate::error::VmmError;
use crate::flight_recorder::Recorder;
use crate::machine::Vm;
use crate::memory::{BootMemory, Kept};
use crate::services::Services;

/// The balloon device, for the operator and for the code that resets the machine. Usable on any
/// thread.
pub(crate) trait Balloon: Send + Sync {
    /// Takes over the memory of the machine that starts next.
    fn start_machine(
        &self,
        memory: &BootMemory,
        vm: &Arc<Vm>,
        devices: &Arc<MachineDevices>,
    ) -> Result<(), VmmError>;

    /// Lets go of the machine that has stopped, and returns what it leaves behind.
    fn stop_machine(&self) -> Kept;

    /// Announces a reset: targets set from now on are for the machine after it.
    fn announce_reset(&self);

    /// Sets a target size.
    fn set_target(&self, bytes: u64) -> Result<(), MonitorError>;

    /// The guest's size in bytes.
    fn actual(&self) -> u64;

    fn dynamic_memory(&self) -> DynamicMemoryInfo;

    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError>;

    fn memory_devices(&self) -> Vec<MemoryDevice>;

    fn memory_size_summary(&self) -> MemoryInfo;
}

/// Why no guest follows its target while it is held.
const PAUSED: &str = "the machine is paused; a target is kept until it continues (cont)";

/// The monitor's view of the machine; methods are called on the monitor's threads.
pub(crate) struct Monitored {
    /// `None` in a program built without the device.
    pub(crate) balloon: Option<Arc<dyn Balloon>>,
    pub(crate) services: Services,
    pub(crate) boot_memory: PageCount,
    pub(crate) control: ControlSender,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) brake: Arc<Brake>,
    pub(crate) bus: BusHandle,
    /// The monitor's clients, once there is a monitor.
    pub(crate) events: Arc<OnceLock<EventSender>>,
}

impl Monitored {
    fn balloon(&self) -> Result<&dyn Balloon, MonitorError> {
        self.balloon.as_deref().ok_or_else(|| {
            // QEMU's error, with the reason added.
            let mut error = MonitorError::no_balloon_device();
            error.desc.push_str(": this program was built without its feature hv-balloon");
            error
        })
    }

    fn emit(&self, event: &Event) {
        if let Some(clients) = self.events.get() {
            clients.emit(event);
        }
    }
}

impl Machine for Monitored {
    fn status(&self) -> RunState {
        self.brake.status()
    }

    fn stop(&self) -> Result<(), MonitorError> {
        self.brake.stop(brake::PATIENCE, || {
            // A guest that is held cannot answer, so the time it has for that stops too.
            self.bus.stop_clock();
            self.emit(&Event::Stop);
        });
        Ok(())
    }

    fn cont(&self) -> Result<(), MonitorError> {
        self.brake.cont(|| {
            self.bus.continue_clock();
            self.services.set_clock();
            self.emit(&Event::Resume);
        });
        Ok(())
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        self.balloon()?.set_target(bytes)
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(self.balloon()?.actual())
    }

    fn system_powerdown(&self) -> Result<(), MonitorError> {
        Ok(self.services.power_down()?)
    }

    fn system_reset(&self) {
        if let Some(balloon) = &self.balloon {
            balloon.announce_reset();
        }
        self.control.send(Control::Reset(Cause::Monitor));
    }

    fn quit(&self) {
        self.control.send(Control::Shutdown(Cause::Monitor));
    }

    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        let mut memory = self.balloon()?.dynamic_memory();
        if self.status() != RunState::running {
            memory.waiting = Some(PAUSED.into());
            // No time passes for the device.
            memory.ready_in_ms = None;
        }
        Ok(memory)
    }

    fn integration_services(&self) -> Result<IntegrationServicesInfo, MonitorError> {
        Ok(self.services.info())
    }

    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        let balloon = self.balloon.as_ref().ok_or_else(MonitorError::status_report_no_device)?;
        balloon.status_report()
    }

    fn flight_recorder(&self) -> Result<Value, MonitorError> {
        Ok(self.recorder.dump())
    }

    fn memory_devices(&self) -> Vec<MemoryDevice> {
        self.balloon.as_ref().map_or_else(Vec::new, |balloon| balloon.memory_devices())
    }

    fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        Ok(match &self.balloon {
            Some(balloon) => balloon.memory_size_summary(),
            None => MemoryInfo { base_memory: self.boot_memory.bytes(), plugged_memory: Some(0) },
        })
    }
}
