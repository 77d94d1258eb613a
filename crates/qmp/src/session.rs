//! One client's session: which commands it may use, and the answer to each.

use crate::command_set::CommandSet;
use crate::commands::{self, Arguments};
use crate::framer::FrameError;
use crate::machine::MonitorError;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The longest command accepted, in bytes. QEMU takes 64 MiB; ours need a few hundred bytes.
pub const MAX_COMMAND_BYTES: usize = 64 * 1024;

/// A session with one client.
pub(crate) struct Session {
    commands: Arc<dyn CommandSet>,
    has_negotiated: bool,
}

/// A command as received, with its outer shape checked.
#[derive(Debug)]
struct Request {
    name: String,
    arguments: Arguments,
}

impl Session {
    /// A session that has not negotiated yet.
    pub(crate) fn new(commands: Arc<dyn CommandSet>) -> Self {
        Self { commands, has_negotiated: false }
    }

    /// The server's first message, sent before the client says anything.
    pub(crate) fn greeting() -> Value {
        json!({ "QMP": { "version": commands::version(), "capabilities": [] } })
    }

    /// Whether the client has negotiated.
    pub(crate) fn has_negotiated(&self) -> bool {
        self.has_negotiated
    }

    /// Executes the client's message and returns the answer, success or failure.
    pub(crate) fn answer(&mut self, message: Result<Value, FrameError>) -> Value {
        let mut message = match message {
            Ok(Value::Object(message)) => message,
            Ok(_) => {
                return failure(&MonitorError::generic("QMP input must be a JSON object"), None);
            }
            Err(error) => return failure(&MonitorError::generic(error.to_string()), None),
        };
        let id = message.remove("id");
        match Request::parse(message).and_then(|request| self.execute(request)) {
            Ok(value) => with_id("return", value, id),
            Err(error) => failure(&error, id),
        }
    }

    fn execute(&mut self, request: Request) -> Result<Value, MonitorError> {
        let is_negotiation = request.name == commands::NEGOTIATION;
        match (self.has_negotiated, is_negotiation) {
            (false, false) => Err(MonitorError::command_not_found(
                "Expecting capabilities negotiation with 'qmp_capabilities'",
            )),
            (true, true) => Err(MonitorError::command_not_found(
                "Capabilities negotiation is already complete, command ignored",
            )),
            (true, false) => self.commands.execute(&request.name, request.arguments),
            (false, true) => {
                let answer = commands::negotiate(&request.arguments)?;
                self.has_negotiated = true;
                Ok(answer)
            }
        }
    }
}

impl Request {
    fn parse(message: Map<String, Value>) -> Result<Self, MonitorError> {
        let mut name = None;
        let mut arguments = Arguments::new();
        for (key, value) in message {
            match (&*key, value) {
                ("execute", Value::String(value)) => name = Some(value),
                ("execute", _) => {
                    return Err(input("QMP input member 'execute' must be a string"));
                }
                ("arguments", Value::Object(value)) => arguments = value,
                ("arguments", _) => {
                    return Err(input("QMP input member 'arguments' must be an object"));
                }
                _ => return Err(input(&format!("QMP input member '{key}' is unexpected"))),
            }
        }
        let name = name.ok_or_else(|| input("QMP input lacks member 'execute'"))?;
        Ok(Self { name, arguments })
    }
}

fn input(desc: &str) -> MonitorError {
    MonitorError::generic(desc)
}

fn failure(error: &MonitorError, id: Option<Value>) -> Value {
    with_id("error", json!({ "class": error.class, "desc": error.desc }), id)
}

fn with_id(key: &str, value: Value, id: Option<Value>) -> Value {
    let mut answer = Map::new();
    answer.insert(key.to_owned(), value);
    if let Some(id) = id {
        answer.insert("id".to_owned(), id);
    }
    Value::Object(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command_set::MachineCommands;
    use crate::machine::Machine;
    use qapi_qmp::RunState;

    struct Small;

    impl Machine for Small {
        fn status(&self) -> RunState {
            RunState::prelaunch
        }
        fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
            match bytes {
                1 => Err(MonitorError::device_not_active("No balloon device has been activated")),
                _ => Ok(()),
            }
        }
        fn query_balloon(&self) -> Result<u64, MonitorError> {
            Ok(536_870_912)
        }
        fn stop(&self) -> Result<(), MonitorError> {
            Ok(())
        }
        fn system_reset(&self) {}
        fn quit(&self) {}
    }

    /// Messages of a client and QEMU 10.0's answers. Answers that do not depend on the machine were
    /// recorded from QEMU.
    const NEGOTIATING: &[(&str, &str)] = &[
        (
            r#"{"execute":"query-status"}"#,
            r#"{"error":{"class":"CommandNotFound","desc":"Expecting capabilities negotiation with 'qmp_capabilities'"}}"#,
        ),
        (
            r#"{"execute":"foo","id":[1,2]}"#,
            r#"{"id":[1,2],"error":{"class":"CommandNotFound","desc":"Expecting capabilities negotiation with 'qmp_capabilities'"}}"#,
        ),
        (
            r#"{"exec-oob":"query-status"}"#,
            r#"{"error":{"class":"GenericError","desc":"QMP input member 'exec-oob' is unexpected"}}"#,
        ),
        (
            r#"{"execute":"qmp_capabilities","arguments":{"enable":5}}"#,
            r#"{"error":{"class":"GenericError","desc":"Invalid parameter type for 'enable', expected: array"}}"#,
        ),
        (
            r#"{"execute":"qmp_capabilities","arguments":{"enable":[5]}}"#,
            r#"{"error":{"class":"GenericError","desc":"Invalid parameter type for 'enable[0]', expected: string"}}"#,
        ),
        (
            r#"{"execute":"qmp_capabilities","arguments":{"e":5}}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'e' is unexpected"}}"#,
        ),
    ];

    const NEGOTIATED: &[(&str, &str)] = &[
        (
            r#"{"execute":"qmp_capabilities"}"#,
            r#"{"error":{"class":"CommandNotFound","desc":"Capabilities negotiation is already complete, command ignored"}}"#,
        ),
        (
            r#"{"execute":"query-status","id":{"a":1}}"#,
            r#"{"return":{"status":"prelaunch","running":false},"id":{"a":1}}"#,
        ),
        (
            r#"{"execute":"query-status","id":null}"#,
            r#"{"return":{"status":"prelaunch","running":false},"id":null}"#,
        ),
        (
            r#"{"execute":"query-status","id":"x","foo":1}"#,
            r#"{"id":"x","error":{"class":"GenericError","desc":"QMP input member 'foo' is unexpected"}}"#,
        ),
        (
            r#"{"execute":5}"#,
            r#"{"error":{"class":"GenericError","desc":"QMP input member 'execute' must be a string"}}"#,
        ),
        (
            r#"{"id":7}"#,
            r#"{"id":7,"error":{"class":"GenericError","desc":"QMP input lacks member 'execute'"}}"#,
        ),
        ("[]", r#"{"error":{"class":"GenericError","desc":"QMP input must be a JSON object"}}"#),
        (
            r#"{"execute":"foo"}"#,
            r#"{"error":{"class":"CommandNotFound","desc":"The command foo has not been found"}}"#,
        ),
        (
            r#"{"execute":"query-status","arguments":{"x":1}}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'x' is unexpected"}}"#,
        ),
        (
            r#"{"execute":"query-status","arguments":5}"#,
            r#"{"error":{"class":"GenericError","desc":"QMP input member 'arguments' must be an object"}}"#,
        ),
        (
            r#"{"execute":"balloon"}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'value' is missing"}}"#,
        ),
        (
            r#"{"execute":"balloon","arguments":{"value":1.5}}"#,
            r#"{"error":{"class":"GenericError","desc":"Invalid parameter type for 'value', expected: integer"}}"#,
        ),
        (
            r#"{"execute":"balloon","arguments":{"value":18446744073709551615}}"#,
            r#"{"error":{"class":"GenericError","desc":"Invalid parameter type for 'value', expected: integer"}}"#,
        ),
        (
            r#"{"execute":"balloon","arguments":{"value":1,"z":2}}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'z' is unexpected"}}"#,
        ),
        (
            r#"{"execute":"balloon","arguments":{"value":0}}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'value' expects a size"}}"#,
        ),
        (
            r#"{"execute":"balloon","arguments":{"value":-1}}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'value' expects a size"}}"#,
        ),
        (
            r#"{"execute":"balloon","arguments":{"value":1}}"#,
            r#"{"error":{"class":"DeviceNotActive","desc":"No balloon device has been activated"}}"#,
        ),
        (r#"{"execute":"balloon","arguments":{"value":104857600}}"#, r#"{"return":{}}"#),
        (r#"{"execute":"query-balloon"}"#, r#"{"return":{"actual":536870912}}"#),
        (
            r#"{"execute":"human-monitor-command"}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'command-line' is missing"}}"#,
        ),
        (
            r#"{"execute":"human-monitor-command","arguments":{"command-line":7}}"#,
            r#"{"error":{"class":"GenericError","desc":"Invalid parameter type for 'command-line', expected: string"}}"#,
        ),
        (
            r#"{"execute":"human-monitor-command","arguments":{"command-line":"info balloon","cpu-index":0}}"#,
            r#"{"return":"balloon: actual=512\r\n"}"#,
        ),
        (r#"{"execute":"stop"}"#, r#"{"return":{}}"#),
        (
            r#"{"execute":"stop","arguments":{"x":1}}"#,
            r#"{"error":{"class":"GenericError","desc":"Parameter 'x' is unexpected"}}"#,
        ),
        (
            r#"{"execute":"cont"}"#,
            r#"{"error":{"class":"GenericError","desc":"this machine cannot be paused"}}"#,
        ),
        (r#"{"execute":"system_reset"}"#, r#"{"return":{}}"#),
        (r#"{"execute":"quit"}"#, r#"{"return":{}}"#),
    ];

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn compare(session: &mut Session, pairs: &[(&str, &str)]) {
        for (said, expected) in pairs {
            assert_eq!(session.answer(Ok(json(said))), json(expected), "{said}");
        }
    }

    #[test]
    fn answers_are_those_of_qemu() {
        let mut session = Session::new(Arc::new(MachineCommands(Arc::new(Small))));
        compare(&mut session, NEGOTIATING);
        assert!(!session.has_negotiated());
        compare(&mut session, &[(r#"{"execute":"qmp_capabilities"}"#, r#"{"return":{}}"#)]);
        assert!(session.has_negotiated());
        compare(&mut session, NEGOTIATED);
    }

    #[test]
    fn bytes_that_are_no_json_get_a_generic_error() {
        let mut session = Session::new(Arc::new(MachineCommands(Arc::new(Small))));
        assert_eq!(
            session.answer(Err(FrameError::Keyword("garbage".to_owned()))),
            json(
                r#"{"error":{"class":"GenericError","desc":"JSON parse error, invalid keyword 'garbage'"}}"#
            )
        );
    }

    #[test]
    fn the_greeting_names_version_and_capabilities() {
        let greeting = Session::greeting();
        assert_eq!(greeting["QMP"]["capabilities"], json("[]"));
        assert_eq!(greeting["QMP"]["version"]["qemu"]["major"], json("10"));
        let package = greeting["QMP"]["version"]["package"].as_str().unwrap();
        assert!(package.starts_with("hv-balloon "), "{package}");
    }
}
