//! Monitor connections, with errors worded for the command line.

use anyhow::{Result, anyhow};
use qmp::{Client, ClientError, ErrorClass};
use std::path::Path;
use std::time::Duration;

/// Time limit for one answer of a monitor. A busy QEMU takes seconds.
const ANSWER: Duration = Duration::from_secs(10);

/// Connects to the monitor at `socket`.
pub(crate) fn connect(socket: &Path) -> Result<Client> {
    Ok(Client::connect(socket, ANSWER)?)
}

/// Adds the socket and, if known, a remedy to a command's failure.
pub(crate) fn explain(socket: &Path, error: ClientError) -> anyhow::Error {
    let socket = socket.display();
    if error.is_class(&ErrorClass::DeviceNotActive) {
        return anyhow!(
            "{socket}: {error}: the guest's driver has not opened the device, or there is none; check the guest's kernel log"
        );
    }
    match error {
        ClientError::Command { .. } | ClientError::Answer { .. } => anyhow!("{socket}: {error}"),
        error => error.into(),
    }
}
