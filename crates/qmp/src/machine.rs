//! The interface between a monitor and the machine it controls.

use crate::dynamic_memory::DynamicMemoryInfo;
use crate::memory_device::MemoryDevice;
use crate::services::IntegrationServicesInfo;
use qapi_qmp::{HvBalloonInfo, MemoryInfo, RunState};
use qapi_spec::ErrorClass;
use serde_json::Value;

/// The machine a [`Server`](crate::Server) controls.
///
/// Methods are called on the clients' threads, several at a time. They must return promptly (hand
/// the work over instead of waiting for the guest) and must not drop the server.
pub trait Machine: Send + Sync {
    /// The machine's run state, as `query-status` reports it.
    fn status(&self) -> RunState;

    /// Asks the guest to become `bytes` bytes large. Returns at once; the guest follows later or
    /// not at all. If it has this size already, the machine should send
    /// [`Event::BalloonChange`](crate::Event::BalloonChange) all the same: a client may be waiting
    /// for it.
    ///
    /// `bytes` is between 1 and `i64::MAX`.
    ///
    /// # Errors
    /// [`MonitorError::no_balloon_device`], no guest that can balloon, or a target that cannot be
    /// met. The text says which and, for a target, gives the limits.
    fn balloon(&self, bytes: u64) -> Result<(), MonitorError>;

    /// The guest's present size in bytes.
    ///
    /// # Errors
    /// [`MonitorError::no_balloon_device`]. As in QEMU, it does not matter whether a guest driver
    /// has the device open: without one the guest has all its memory.
    fn query_balloon(&self) -> Result<u64, MonitorError>;

    /// Holds the guest: when this returns, none of its vCPUs runs. Without effect on a guest that is
    /// held. The machine sends [`Event::Stop`](crate::Event::Stop) when it has stopped running, and
    /// [`status`](Self::status) says `paused`.
    ///
    /// A machine that is held still takes targets, and can be reset, in which case it does not start
    /// before [`cont`](Self::cont), and ended.
    ///
    /// # Errors
    /// A machine that cannot be held need not implement it.
    fn stop(&self) -> Result<(), MonitorError> {
        Err(MonitorError::generic("this machine cannot be paused"))
    }

    /// Lets a guest that is held go on. Without effect on one that runs. The machine sends
    /// [`Event::Resume`](crate::Event::Resume) when it goes on.
    ///
    /// # Errors
    /// As [`stop`](Self::stop).
    fn cont(&self) -> Result<(), MonitorError> {
        Err(MonitorError::generic("this machine cannot be paused"))
    }

    /// Asks the guest's operating system to shut down, as a power button does. Returns at once; the guest
    /// follows later or not at all. The machine sends
    /// [`Event::Powerdown`](crate::Event::Powerdown) when it has asked.
    ///
    /// # Errors
    /// The guest cannot be asked: the text says why, and what to do. A machine without a way to ask need
    /// not implement it.
    fn system_powerdown(&self) -> Result<(), MonitorError> {
        Err(MonitorError::generic(
            "this machine cannot ask its guest to shut down; end it with quit",
        ))
    }

    /// Starts a reset of the whole machine.
    fn system_reset(&self);

    /// Starts to end the machine and its process.
    fn quit(&self);

    /// The balloon's state and accounting, in more detail than QEMU's commands:
    /// `x-query-dynamic-memory`.
    ///
    /// # Errors
    /// As [`query_balloon`](Self::query_balloon). A machine without such accounting need not
    /// implement it.
    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        Err(MonitorError::generic("this machine does not report its balloon's state"))
    }

    /// Which services the guest has, and whether it answers: `x-query-integration-services`.
    ///
    /// # Errors
    /// A machine without such services need not implement it.
    fn integration_services(&self) -> Result<IntegrationServicesInfo, MonitorError> {
        Err(MonitorError::generic("this machine has no integration services"))
    }

    /// What the machine did last, thread by thread, as far as it keeps a record:
    /// `x-dump-flight-recorder`. Its form may change with any version. This may take a few seconds.
    ///
    /// # Errors
    /// A machine that keeps no record need not implement it.
    fn flight_recorder(&self) -> Result<Value, MonitorError> {
        Err(MonitorError::generic("this machine has no flight recorder"))
    }

    /// The guest's newest memory pressure report: `query-hv-balloon-status-report`.
    ///
    /// # Errors
    /// [`MonitorError::status_report_no_device`], [`MonitorError::status_report_not_enabled`] or
    /// [`MonitorError::status_report_none_yet`].
    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        Err(MonitorError::status_report_not_enabled())
    }

    /// The devices that can add memory to the guest: `query-memory-devices`. A machine without any
    /// need not implement it.
    fn memory_devices(&self) -> Vec<MemoryDevice> {
        Vec::new()
    }

    /// The memory the guest booted with and the memory added since, in bytes, ballooned or not:
    /// `query-memory-size-summary`.
    ///
    /// # Errors
    /// A machine without such accounting need not implement it.
    fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        Err(MonitorError::generic("this machine does not report the size of its memory"))
    }
}

/// A command's failure, as reported to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct MonitorError {
    /// QEMU's error class, for programs.
    pub class: ErrorClass,
    /// The text, for people.
    pub desc: String,
}

impl MonitorError {
    /// An error of QEMU's generic class, for everything without a class of its own.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }

    /// There is a balloon device, or could be, but no guest driver uses it.
    pub fn device_not_active(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::DeviceNotActive, desc: desc.into() }
    }

    /// The answer to `balloon` and `query-balloon` on a machine without a balloon device, in QEMU's
    /// words and class (`system/balloon.c`).
    pub fn no_balloon_device() -> Self {
        Self::device_not_active("No balloon device has been activated")
    }

    /// The answer to `query-hv-balloon-status-report` on a machine without the device. This text
    /// and the next two are QEMU's, all of the generic class (`hw/hyperv/hv-balloon.c`).
    pub fn status_report_no_device() -> Self {
        Self::generic("no hv-balloon device present")
    }

    /// The answer when status reports are switched off (QEMU: property `status-report=off`).
    pub fn status_report_not_enabled() -> Self {
        Self::generic("guest memory status reporting not enabled")
    }

    /// The answer before the guest's first report.
    pub fn status_report_none_yet() -> Self {
        Self::generic("no guest memory status report received yet")
    }

    /// There is no command of this name, in QEMU's words and class (`monitor/qmp.c`).
    pub fn unknown_command(name: &str) -> Self {
        Self::command_not_found(format!("The command {name} has not been found"))
    }

    /// The command does not exist, or is not allowed now.
    pub(crate) fn command_not_found(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }
}
