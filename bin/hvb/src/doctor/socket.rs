//! A machine behind its monitor.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use doctor::monitor::{self, Ask};
use doctor::{command_line, own};
use qmp::{Client, ClientError, MonitorError, Value, XQueryDynamicMemory};

use super::{Machine, file};

/// The longest message that is accepted, in bytes. What is asked for has some kilobytes.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Time limit for one answer, and for the whole conversation: a busy QEMU takes seconds.
const ANSWER: Duration = Duration::from_secs(10);
const CONVERSATION: Duration = Duration::from_secs(30);

/// Asks the machine at `socket`, and which process it is.
pub(super) fn read(socket: &Path) -> Result<(Machine, Option<u32>)> {
    let mut client = Client::connect_limited(socket, ANSWER, MAX_MESSAGE_BYTES)?;
    let pid = client.server_process();
    match client.run(&XQueryDynamicMemory {}) {
        Ok(info) => {
            let reports = match client.execute("query-hv-balloon-status-report", Value::Null) {
                Ok(_) => true,
                Err(ClientError::Command { desc, .. }) => {
                    desc != MonitorError::status_report_not_enabled().desc
                }
                Err(error) => return Err(error.into()),
            };
            let own = own::Own {
                name: crate::names::name_of(socket)
                    .map_or_else(|| socket.display().to_string(), str::to_owned),
                protocol: info.protocol_version,
                boot: info.boot,
                maximum: info.maximum,
                can_add: info.hot_add_alignment.is_some(),
                stopped: info.stopped,
                waiting: info.waiting,
                held: info.held,
                undiscarded: info.undiscarded,
                reports,
            };
            return Ok((Machine::Own(own), pid));
        }
        Err(ClientError::Command { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let version = &client.version().qemu;
    let version = (version.major, version.minor);
    let mut monitor = Monitor { client, socket, end: Instant::now() + CONVERSATION };
    let mut found = monitor::read(&mut monitor, version)?;
    let words = pid.and_then(|pid| file::words(&Path::new("/proc").join(pid.to_string())).ok());
    match words.and_then(|words| command_line::of_words(&words).ok()) {
        Some(invocation) => found.take_invisible(&invocation),
        None => {
            found.gaps.push("whether memory is locked, which the monitor does not show".to_owned())
        }
    }
    Ok((Machine::Qemu(Box::new(found)), pid))
}

struct Monitor<'a> {
    client: Client,
    socket: &'a Path,
    end: Instant,
}

impl Ask for Monitor<'_> {
    type Error = ClientError;

    fn ask(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<Result<Value, String>, ClientError> {
        if Instant::now() >= self.end {
            let (path, command) = (self.socket.to_owned(), command.to_owned());
            return Err(ClientError::Timeout { path, command, timeout: CONVERSATION });
        }
        match self.client.execute(command, arguments) {
            Ok(answer) => Ok(Ok(answer)),
            Err(ClientError::Command { desc, .. }) => Ok(Err(desc)),
            Err(error) => Err(error),
        }
    }
}
