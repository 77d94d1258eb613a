//! The command table: name, arguments, answer and action of each command.

use crate::dynamic_memory::DynamicMemoryInfo;
use crate::event::{EVENTS, value_of};
use crate::hmp;
use crate::machine::{Machine, MonitorError};
use crate::schema::Member::{Optional, Required};
use crate::schema::{self, Member, Type, types};
use crate::services::IntegrationServicesInfo;
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
    arguments: &'static [Member],
    pub(crate) answer: Type,
    run: fn(&dyn Machine, Arguments) -> Answer,
}

/// The command that begins a session; it is allowed only before all others.
pub(crate) const NEGOTIATION: &str = "qmp_capabilities";

type Answer = Result<Value, MonitorError>;

/// The result of a command that returns nothing.
const NOTHING: Type = Type::Object(&schema::EMPTY);

static COMMANDS: &[Command] = &[
    Command {
        name: NEGOTIATION,
        arguments: CAPABILITIES,
        answer: NOTHING,
        run: |_, _| Ok(json!({})),
    },
    Command {
        name: "balloon",
        arguments: &[Required("value", Type::Int)],
        answer: NOTHING,
        run: set_balloon,
    },
    plain("cont", NOTHING, |machine, _| machine.cont().map(nothing)),
    Command {
        name: "human-monitor-command",
        arguments: &[Required("command-line", Type::Text), Optional("cpu-index", Type::Int)],
        answer: Type::Text,
        run: human_monitor,
    },
    plain("query-balloon", Type::Object(&types::BALLOON_INFO), |machine, _| {
        let actual = i64::try_from(machine.query_balloon()?).unwrap_or(i64::MAX);
        Ok(value_of(BalloonInfo { actual }))
    }),
    plain("query-commands", Type::List(&Type::Object(&types::COMMAND_INFO)), |_, _| {
        Ok(value_of(names().collect::<Vec<_>>()))
    }),
    plain("query-hv-balloon-status-report", Type::Object(&types::HV_BALLOON_INFO), |machine, _| {
        machine.status_report().map(value_of)
    }),
    plain(
        "query-memory-devices",
        Type::List(&Type::Object(&types::MEMORY_DEVICE)),
        |machine, _| Ok(value_of(machine.memory_devices())),
    ),
    plain("query-memory-size-summary", Type::Object(&types::MEMORY_INFO), |machine, _| {
        machine.memory_size_summary().map(value_of)
    }),
    plain("query-qmp-schema", Type::List(&Type::Object(&types::SCHEMA_INFO)), |_, _| {
        let commands = COMMANDS.iter().map(|it| (it.name, it.arguments, it.answer));
        Ok(value_of(schema::describe(commands, EVENTS.iter().map(|it| (it.name, it.data)))))
    }),
    plain("query-status", Type::Object(&types::STATUS_INFO), |machine, _| {
        let status = machine.status();
        Ok(value_of(StatusInfo { running: status == RunState::running, status }))
    }),
    plain("query-version", Type::Object(&types::VERSION_INFO), |_, _| Ok(value_of(version()))),
    plain("quit", NOTHING, |machine, _| {
        machine.quit();
        Ok(json!({}))
    }),
    plain("stop", NOTHING, |machine, _| machine.stop().map(nothing)),
    plain("system_powerdown", NOTHING, |machine, _| machine.system_powerdown().map(nothing)),
    plain("system_reset", NOTHING, |machine, _| {
        machine.system_reset();
        Ok(json!({}))
    }),
    plain("x-dump-flight-recorder", Type::Any, |machine, _| machine.flight_recorder()),
    plain("x-query-dynamic-memory", Type::Object(&types::DYNAMIC_MEMORY), |machine, _| {
        machine.dynamic_memory().map(value_of)
    }),
    plain(
        "x-query-integration-services",
        Type::Object(&types::INTEGRATION_SERVICES),
        |machine, _| machine.integration_services().map(value_of),
    ),
];

/// What a client may say when it negotiates.
const CAPABILITIES: &[Member] = &[Optional("enable", Type::List(&CAPABILITY))];
static CAPABILITY: Type = Type::Choice(&types::CAPABILITY);

/// Carries out the negotiation, which is the same for all command sets.
pub(crate) fn negotiate(arguments: &Arguments) -> Answer {
    schema::check("", CAPABILITIES.iter(), arguments)?;
    Ok(json!({}))
}

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
        schema::check("", self.arguments.iter(), &arguments)?;
        (self.run)(machine, arguments)
    }
}

const fn plain(
    name: &'static str,
    answer: Type,
    run: fn(&dyn Machine, Arguments) -> Answer,
) -> Command {
    Command { name, arguments: &[], answer, run }
}

fn nothing((): ()) -> Value {
    json!({})
}

fn names() -> impl Iterator<Item = CommandInfo> {
    COMMANDS.iter().map(|command| CommandInfo { name: command.name.to_owned() })
}

fn set_balloon(machine: &dyn Machine, arguments: Arguments) -> Answer {
    let balloon { value } = typed(arguments)?;
    let bytes = u64::try_from(value).ok().filter(|&bytes| bytes > 0);
    let bytes = bytes.ok_or_else(|| MonitorError::generic("Parameter 'value' expects a size"))?;
    machine.balloon(bytes).map(nothing)
}

fn human_monitor(machine: &dyn Machine, arguments: Arguments) -> Answer {
    let human_monitor_command { command_line, .. } = typed(arguments)?;
    Ok(Value::String(hmp::execute(machine, &command_line)))
}

fn typed<T: for<'de> Deserialize<'de>>(arguments: Arguments) -> Result<T, MonitorError> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|error| MonitorError::generic(error.to_string()))
}

/// `x-query-dynamic-memory` as a typed command, for [`Client::run`](crate::Client::run).
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct XQueryDynamicMemory {}

impl qapi_spec::Command for XQueryDynamicMemory {
    type Ok = DynamicMemoryInfo;

    const NAME: &'static str = "x-query-dynamic-memory";
    const ALLOW_OOB: bool = false;
}

/// `x-query-integration-services` as a typed command, for [`Client::run`](crate::Client::run).
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct XQueryIntegrationServices {}

impl qapi_spec::Command for XQueryIntegrationServices {
    type Ok = IntegrationServicesInfo;

    const NAME: &'static str = "x-query-integration-services";
    const ALLOW_OOB: bool = false;
}

#[cfg(test)]
pub(crate) fn all() -> &'static [Command] {
    COMMANDS
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
