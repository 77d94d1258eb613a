//! The machine as the monitor sees it.

use page_range::PageCount;
use qmp::{DynamicMemoryInfo, HvBalloonInfo, Machine, MonitorError, RunState};

use crate::control::{Cause, Control, ControlSender};
use crate::device_loop::DeviceHandle;

/// The monitor's view; methods are called on its threads.
pub(crate) struct Monitored {
    pub(crate) device: DeviceHandle,
    pub(crate) control: ControlSender,
    pub(crate) status_reports: bool,
}

impl Machine for Monitored {
    fn status(&self) -> RunState {
        RunState::running
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        match self.device.set_target(PageCount::from_bytes(bytes)) {
            Some(result) => result.map_err(|error| MonitorError::generic(error.to_string())),
            None => Err(MonitorError::generic("the machine has ended, or its device has failed")),
        }
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(self.device.snapshot().actual.bytes())
    }

    fn system_reset(&self) {
        self.device.announce_reset();
        self.control.send(Control::Reset(Cause::Monitor));
    }

    fn quit(&self) {
        self.control.send(Control::Shutdown(Cause::Monitor));
    }

    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        let device = self.device.snapshot();
        Ok(DynamicMemoryInfo {
            state: device.state.as_str().into(),
            actual: device.actual.bytes(),
            target: device.target.map(PageCount::bytes),
            ready_in_ms: device
                .ready_in
                .map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            stopped: device.last_stop.map(|reason| reason.to_string()),
            ..DynamicMemoryInfo::default()
        })
    }

    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        if !self.status_reports {
            return Err(MonitorError::status_report_not_enabled());
        }
        let report =
            self.device.snapshot().status.ok_or_else(MonitorError::status_report_none_yet)?;
        Ok(HvBalloonInfo {
            committed: report.committed.bytes(),
            available: report.available.bytes(),
        })
    }
}
