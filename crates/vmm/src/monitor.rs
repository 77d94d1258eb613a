//! The machine as the monitor sees it.

use qmp::{
    DynamicMemoryInfo, HvBalloonInfo, Machine, MemoryDevice, MemoryInfo, MonitorError, RunState,
};

use crate::balloon::Operator;
use crate::control::{Cause, Control, ControlSender};

/// The monitor's view; methods are called on its threads.
pub(crate) struct Monitored {
    pub(crate) balloon: Operator,
    pub(crate) control: ControlSender,
}

impl Machine for Monitored {
    fn status(&self) -> RunState {
        RunState::running
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        self.balloon.balloon(bytes)
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        self.balloon.query_balloon()
    }

    fn system_reset(&self) {
        self.balloon.announce_reset();
        self.control.send(Control::Reset(Cause::Monitor));
    }

    fn quit(&self) {
        self.control.send(Control::Shutdown(Cause::Monitor));
    }

    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        self.balloon.dynamic_memory()
    }

    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        self.balloon.status_report()
    }

    fn memory_devices(&self) -> Vec<MemoryDevice> {
        self.balloon.memory_devices()
    }

    fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        self.balloon.memory_size_summary()
    }
}
