//! What stands behind a monitor: the machine, as far as the monitor needs to know it.

use crate::dynamic_memory::DynamicMemoryInfo;
use crate::memory_device::MemoryDevice;
use qapi_qmp::{HvBalloonInfo, MemoryInfo, RunState};
use qapi_spec::ErrorClass;

/// The machine a [`Server`](crate::Server) controls.
///
/// Methods are called on the threads of the clients, several at a time. They must return promptly
/// (hand the work over, do not wait for the guest) and must not drop the server.
pub trait Machine: Send + Sync {
    /// Whether the machine runs, as `query-status` words it.
    fn status(&self) -> RunState;

    /// Asks for a guest of `bytes` bytes. Returns at once; the guest follows later or not at all.
    ///
    /// `bytes` is between 1 and `i64::MAX`.
    ///
    /// # Errors
    /// [`MonitorError::no_balloon_device`], no capable guest, or a target that cannot be met; the
    /// text says which and, for a target, what the limits are.
    fn balloon(&self, bytes: u64) -> Result<(), MonitorError>;

    /// The guest's present size in bytes.
    ///
    /// # Errors
    /// [`MonitorError::no_balloon_device`]. Whether a guest driver has the device open does not
    /// matter, as in QEMU: without one the guest has all its memory.
    fn query_balloon(&self) -> Result<u64, MonitorError>;

    /// Starts a reset of the whole machine.
    fn system_reset(&self);

    /// Starts the end of the machine and of its process.
    fn quit(&self);

    /// The balloon in more detail than QEMU's commands give: `x-query-dynamic-memory`.
    ///
    /// # Errors
    /// As [`query_balloon`](Self::query_balloon); machines that keep no such books need not
    /// implement it.
    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        Err(MonitorError::generic("this machine does not report its balloon's state"))
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

    /// The memory the guest booted with and what was added since, in bytes, ballooned or not:
    /// `query-memory-size-summary`.
    ///
    /// # Errors
    /// A machine that keeps no such books need not implement it.
    fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        Err(MonitorError::generic("this machine does not report the size of its memory"))
    }
}

/// A command's failure, as the client gets to see it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct MonitorError {
    /// QEMU's error class: programs look at it.
    pub class: ErrorClass,
    /// The text for people.
    pub desc: String,
}

impl MonitorError {
    /// An error of QEMU's class for everything that needs no class of its own.
    pub fn generic(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::GenericError, desc: desc.into() }
    }

    /// There is a balloon device, or could be, but no guest driver uses it.
    pub fn device_not_active(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::DeviceNotActive, desc: desc.into() }
    }

    /// What `balloon` and `query-balloon` answer on a machine without a balloon device. QEMU's
    /// words and class (`system/balloon.c`).
    pub fn no_balloon_device() -> Self {
        Self::device_not_active("No balloon device has been activated")
    }

    /// What `query-hv-balloon-status-report` answers on a machine without the device. This and the
    /// next two are QEMU's words, all of the generic class (`hw/hyperv/hv-balloon.c`).
    pub fn status_report_no_device() -> Self {
        Self::generic("no hv-balloon device present")
    }

    /// What it answers where the guest is not to report (QEMU: property `status-report=off`).
    pub fn status_report_not_enabled() -> Self {
        Self::generic("guest memory status reporting not enabled")
    }

    /// What it answers before the guest's first report.
    pub fn status_report_none_yet() -> Self {
        Self::generic("no guest memory status report received yet")
    }

    /// No such command, or not now.
    pub(crate) fn command_not_found(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }
}
