//! The command table: name, arguments, phase and action of each command.

use crate::dynamic_memory::DynamicMemoryInfo;
use crate::event::value_of;
use crate::hmp;
use crate::machine::{Machine, MonitorError};
use qapi_qmp::{
    BalloonInfo, CommandInfo, RunState, StatusInfo, VersionInfo, VersionTriple, balloon,
    human_monitor_command,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// A command's arguments, checked against the table.
pub(crate) type Arguments = Map<String, Value>;

/// One row of the table.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) phase: Phase,
    arguments: &'static [Argument],
    run: fn(&dyn Machine, Arguments) -> Answer,
}

/// When a command is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Only before the client has negotiated.
    Negotiation,
    /// Only after.
    Command,
}

struct Argument {
    name: &'static str,
    kind: Kind,
    required: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Integer,
    Text,
    /// A list of names drawn from an empty set: no capability is optional in this server.
    Capabilities,
}

type Answer = Result<Value, MonitorError>;

const COMMANDS: &[Command] = &[
    Command {
        name: "qmp_capabilities",
        phase: Phase::Negotiation,
        arguments: &[Argument { name: "enable", kind: Kind::Capabilities, required: false }],
        run: |_, _| Ok(json!({})),
    },
    Command {
        name: "balloon",
        phase: Phase::Command,
        arguments: &[Argument { name: "value", kind: Kind::Integer, required: true }],
        run: set_balloon,
    },
    Command {
        name: "human-monitor-command",
        phase: Phase::Command,
        arguments: &[
            Argument { name: "command-line", kind: Kind::Text, required: true },
            Argument { name: "cpu-index", kind: Kind::Integer, required: false },
        ],
        run: human_monitor,
    },
    plain("query-balloon", |machine, _| {
        let actual = i64::try_from(machine.query_balloon()?).unwrap_or(i64::MAX);
        Ok(value_of(BalloonInfo { actual }))
    }),
    plain("query-commands", |_, _| Ok(value_of(names().collect::<Vec<_>>()))),
    plain("query-hv-balloon-status-report", |machine, _| machine.status_report().map(value_of)),
    plain("query-memory-devices", |machine, _| Ok(value_of(machine.memory_devices()))),
    plain("query-memory-size-summary", |machine, _| machine.memory_size_summary().map(value_of)),
    plain("query-status", |machine, _| {
        let status = machine.status();
        Ok(value_of(StatusInfo { running: status == RunState::running, status }))
    }),
    plain("query-version", |_, _| Ok(value_of(version()))),
    plain("quit", |machine, _| {
        machine.quit();
        Ok(json!({}))
    }),
    plain("system_reset", |machine, _| {
        machine.system_reset();
        Ok(json!({}))
    }),
    plain("x-dump-flight-recorder", |machine, _| machine.flight_recorder()),
    plain("x-query-dynamic-memory", |machine, _| machine.dynamic_memory().map(value_of)),
];

/// The row for this name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

/// The version in `query-version` and the greeting: the QEMU whose behaviour this server follows,
/// and the name of the program that really answers.
pub(crate) fn version() -> VersionInfo {
    VersionInfo {
        qemu: VersionTriple { major: 10, minor: 0, micro: 0 },
        package: concat!("hv-balloon ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

impl Command {
    /// Checks the arguments and runs the command.
    pub(crate) fn run(&self, machine: &dyn Machine, arguments: Arguments) -> Answer {
        for expected in self.arguments {
            match arguments.get(expected.name) {
                Some(value) => expected.check(value)?,
                None if expected.required => {
                    let desc = format!("Parameter '{}' is missing", expected.name);
                    return Err(MonitorError::generic(desc));
                }
                None => {}
            }
        }
        let known = |name: &str| self.arguments.iter().any(|expected| expected.name == name);
        if let Some(name) = arguments.keys().find(|name| !known(name)) {
            return Err(MonitorError::generic(format!("Parameter '{name}' is unexpected")));
        }
        (self.run)(machine, arguments)
    }
}

impl Argument {
    fn check(&self, value: &Value) -> Result<(), MonitorError> {
        let (fits, expected) = match self.kind {
            Kind::Integer => (value.is_i64(), "integer"),
            Kind::Text => (value.is_string(), "string"),
            Kind::Capabilities => return self.check_capabilities(value),
        };
        if fits { Ok(()) } else { Err(wrong_type(self.name, expected)) }
    }

    fn check_capabilities(&self, value: &Value) -> Result<(), MonitorError> {
        let names = value.as_array().ok_or_else(|| wrong_type(self.name, "array"))?;
        match names.first() {
            None => Ok(()),
            Some(Value::String(name)) => Err(MonitorError::generic(format!(
                "Parameter '{}' does not accept value '{name}'",
                self.name
            ))),
            Some(_) => Err(wrong_type(&format!("{}[0]", self.name), "string")),
        }
    }
}

const fn plain(name: &'static str, run: fn(&dyn Machine, Arguments) -> Answer) -> Command {
    Command { name, phase: Phase::Command, arguments: &[], run }
}

fn names() -> impl Iterator<Item = CommandInfo> {
    COMMANDS.iter().map(|command| CommandInfo { name: command.name.to_owned() })
}

fn set_balloon(machine: &dyn Machine, arguments: Arguments) -> Answer {
    let balloon { value } = typed(arguments)?;
    let bytes = u64::try_from(value).ok().filter(|&bytes| bytes > 0);
    let bytes = bytes.ok_or_else(|| MonitorError::generic("Parameter 'value' expects a size"))?;
    machine.balloon(bytes)?;
    Ok(json!({}))
}

fn human_monitor(machine: &dyn Machine, arguments: Arguments) -> Answer {
    let human_monitor_command { command_line, .. } = typed(arguments)?;
    Ok(Value::String(hmp::execute(machine, &command_line)))
}

fn typed<T: for<'de> Deserialize<'de>>(arguments: Arguments) -> Result<T, MonitorError> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|error| MonitorError::generic(error.to_string()))
}

fn wrong_type(name: &str, expected: &str) -> MonitorError {
    MonitorError::generic(format!("Invalid parameter type for '{name}', expected: {expected}"))
}

/// `x-query-dynamic-memory` as a typed command, for [`Client::run`](crate::Client::run).
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct XQueryDynamicMemory {}

impl qapi_spec::Command for XQueryDynamicMemory {
    type Ok = DynamicMemoryInfo;

    const NAME: &'static str = "x-query-dynamic-memory";
    const ALLOW_OOB: bool = false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_all_listed() {
        let mut listed: Vec<_> = names().map(|info| info.name).collect();
        assert_eq!(listed.len(), COMMANDS.len());
        listed.sort_unstable();
        listed.dedup();
        assert_eq!(listed.len(), COMMANDS.len());
    }
}
