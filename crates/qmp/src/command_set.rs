//! Which commands a server has: those of a machine, or a program's own.

use std::sync::Arc;

use crate::commands;
use crate::machine::{Machine, MonitorError};
use serde_json::{Map, Value};

/// The commands of a server that does not control a machine: see
/// [`Server::start_for`](crate::Server::start_for).
///
/// Methods are called on the clients' threads, several at a time. They must return promptly and must
/// not drop the server.
pub trait CommandSet: Send + Sync {
    /// Executes a command and returns its answer. `qmp_capabilities` never gets here.
    ///
    /// # Errors
    /// [`MonitorError::unknown_command`], or the command failed: the text says why and what to do.
    fn execute(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, MonitorError>;
}

/// The commands of a machine, in the table of `commands.rs`.
pub(crate) struct MachineCommands(pub(crate) Arc<dyn Machine>);

impl CommandSet for MachineCommands {
    fn execute(&self, name: &str, arguments: Map<String, Value>) -> Result<Value, MonitorError> {
        let command = commands::find(name).ok_or_else(|| MonitorError::unknown_command(name))?;
        command.run(&*self.0, arguments)
    }
}
