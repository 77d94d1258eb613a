//! What stands in for the device in a build without the feature `hv-balloon`: the bus is there and
//! offers nothing.

use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use event_manager::EventOps;
use page_range::PageCount;
use qmp::{DynamicMemoryInfo, EventSender, HvBalloonInfo, MemoryDevice, MemoryInfo, MonitorError};

use crate::bus::GuestCalls;
use crate::config::Config;
use crate::confine::Confinement;
use crate::device_loop::LoopHandle;
use crate::error::MachineError;
use crate::machine::MachineHandle;
use crate::memory::{Kept, MemoryMap};

/// Whether this build has the device.
pub const HAS_BALLOON: bool = false;

/// Nobody can ask for anything.
pub(crate) enum Request {}

/// What the answers are made from.
pub(crate) struct Setup {
    memory: PageCount,
}

impl Setup {
    pub(crate) fn new(
        _: &Config,
        memory: &MemoryMap,
        _: bool,
        _: Arc<OnceLock<EventSender>>,
    ) -> Result<Self, MachineError> {
        Ok(Self { memory: memory.boot_ram.len() })
    }
}

pub(crate) struct Balloon;

impl Balloon {
    pub(crate) fn start(
        setup: Setup,
        _: &GuestCalls,
        _: &LoopHandle,
        _: &Confinement,
    ) -> io::Result<(Self, Operator)> {
        Ok((Self, Operator { memory: setup.memory }))
    }

    pub(crate) fn attach(&mut self, _: &MachineHandle, _: MemoryMap) {}

    pub(crate) fn begin_detach(&mut self) {}

    pub(crate) fn is_quiet(&self) -> bool {
        true
    }

    pub(crate) fn finish_detach(&mut self, done: Sender<Kept>) {
        let _ = done.send(Kept::default());
    }

    pub(crate) fn on_request(&mut self, request: Request) {
        match request {}
    }

    /// The bus has nothing to open.
    pub(crate) fn on_bus_action(&mut self, _: vmbus::Action, _: &mut EventOps<'_>) {}

    pub(crate) fn on_signal(&mut self) {}

    pub(crate) fn receive(&mut self) {}

    pub(crate) fn act(&mut self) {}

    pub(crate) fn finish_close(&mut self, _: &mut EventOps<'_>) {}

    pub(crate) fn publish(&self) {}

    pub(crate) fn is_blocked(&self) -> bool {
        false
    }

    pub(crate) fn due(&self) -> Option<Duration> {
        None
    }

    pub(crate) fn on_time(&mut self) -> bool {
        false
    }
}

/// Answers as a machine without the device does.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    memory: PageCount,
}

impl Operator {
    pub(crate) fn announce_reset(&self) {}

    pub(crate) fn balloon(&self, _: u64) -> Result<(), MonitorError> {
        Err(absent())
    }

    pub(crate) fn query_balloon(&self) -> Result<u64, MonitorError> {
        Err(absent())
    }

    pub(crate) fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        Err(absent())
    }

    pub(crate) fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        Err(MonitorError::status_report_no_device())
    }

    pub(crate) fn memory_devices(&self) -> Vec<MemoryDevice> {
        Vec::new()
    }

    pub(crate) fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        Ok(MemoryInfo { base_memory: self.memory.bytes(), plugged_memory: Some(0) })
    }
}

/// QEMU's error, and why.
fn absent() -> MonitorError {
    let mut error = MonitorError::no_balloon_device();
    error.desc.push_str(": this program was built without its feature hv-balloon");
    error
}
