//! What stands behind a monitor: the machine, as far as the monitor needs to know it.

use qapi_qmp::{HvBalloonInfo, RunState};
use qapi_spec::ErrorClass;
use serde::{Deserialize, Serialize};

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
    /// No balloon device, no capable guest, or a target that cannot be met; the text says which
    /// and, for a target, what the limits are.
    fn balloon(&self, bytes: u64) -> Result<(), MonitorError>;

    /// The guest's present size in bytes.
    ///
    /// # Errors
    /// `DeviceNotActive` from a machine without a balloon device. Whether a guest driver has the
    /// device open does not matter, as in QEMU: without one the guest has all its memory.
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
    /// No device, reports not enabled, or none received yet.
    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        Err(MonitorError::generic("guest memory status reporting not enabled"))
    }
}

/// What `x-query-dynamic-memory` returns. Sizes are in bytes.
///
/// Once [`Machine::balloon`] has returned, `target` and `stopped` are those of that call: a client
/// that waits for the guest must not see why an earlier target was not reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DynamicMemoryInfo {
    /// What the device is doing, as one lower-case word.
    pub state: String,
    /// The guest's present size.
    pub actual: u64,
    /// The size last asked for, rounded as the device rounds; absent when none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// How long until the device will act on a target, in milliseconds, while it waits for a guest
    /// that has only just started; absent when it acts at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_in_ms: Option<u64>,
    /// Why the guest stays short of the target; absent while it moves towards it or has reached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
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

    /// No such command, or not now.
    pub(crate) fn command_not_found(desc: impl Into<String>) -> Self {
        Self { class: ErrorClass::CommandNotFound, desc: desc.into() }
    }
}
