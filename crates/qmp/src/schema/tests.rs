use super::types::SCHEMA_INFO;
use super::*;
use crate::commands;
use crate::event::EVENTS;
use crate::machine::Machine;
use crate::{
    DynamicMemoryInfo, HvBalloonDevice, HvBalloonInfo, IntegrationServicesInfo, MemoryDevice,
    MemoryInfo, RunState, qapi,
};
use serde::Serialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

impl Object {
    /// Asserts that `full` has all members of this object, and `empty` those that are required.
    pub(crate) fn assert_names(&self, full: &Value, empty: &impl Serialize) {
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect();
        let expected = |wanted: &dyn Fn(&Member) -> bool| {
            let members = self.members.iter().filter(|member| wanted(member));
            members.map(|member| member.name().to_owned()).collect::<BTreeSet<_>>()
        };
        assert_eq!(expected(&|_| true), names(full));
        let empty = serde_json::to_value(empty).unwrap();
        assert_eq!(expected(&|member| matches!(member, Member::Required(..))), names(&empty));
        for value in [full, &empty] {
            assert_eq!(check("", self.members.iter(), value.as_object().unwrap()), Ok(()));
        }
    }
}

/// A machine that answers everything.
struct Answering;

impl Machine for Answering {
    fn status(&self) -> RunState {
        RunState::paused
    }
    fn balloon(&self, _: u64) -> Result<(), MonitorError> {
        Ok(())
    }
    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(u64::MAX)
    }
    fn stop(&self) -> Result<(), MonitorError> {
        Ok(())
    }
    fn cont(&self) -> Result<(), MonitorError> {
        Ok(())
    }
    fn system_powerdown(&self) -> Result<(), MonitorError> {
        Ok(())
    }
    fn system_reset(&self) {}
    fn quit(&self) {}
    fn integration_services(&self) -> Result<IntegrationServicesInfo, MonitorError> {
        Ok(IntegrationServicesInfo::default())
    }
    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        Ok(DynamicMemoryInfo::default())
    }
    fn flight_recorder(&self) -> Result<Value, MonitorError> {
        Ok(json!([1, { "a": null }]))
    }
    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        Ok(HvBalloonInfo { committed: 1, available: u64::MAX })
    }
    fn memory_devices(&self) -> Vec<MemoryDevice> {
        let device = HvBalloonDevice { memaddr: Some(1 << 32), ..HvBalloonDevice::default() };
        vec![MemoryDevice::HvBalloon(device), MemoryDevice::HvBalloon(HvBalloonDevice::default())]
    }
    fn memory_size_summary(&self) -> Result<MemoryInfo, MonitorError> {
        Ok(MemoryInfo { base_memory: u64::MAX, plugged_memory: None })
    }
}

fn answer(name: &str) -> Value {
    let arguments = match name {
        "balloon" => json!({ "value": 4096 }),
        "human-monitor-command" => json!({ "command-line": "info status" }),
        _ => json!({}),
    };
    let Value::Object(arguments) = arguments else { unreachable!() };
    commands::find(name).unwrap().run(&Answering, arguments).unwrap()
}

fn schema() -> BTreeMap<String, Value> {
    let Value::Array(infos) = answer("query-qmp-schema") else { panic!("no list") };
    let count = infos.len();
    let named = |info: Value| (info["name"].as_str().unwrap().to_owned(), info);
    let infos: BTreeMap<_, _> = infos.into_iter().map(named).collect();
    assert_eq!(infos.len(), count, "a name is used twice");
    infos
}

#[test]
fn every_answer_is_what_the_schema_says() {
    for command in commands::all() {
        let answer = answer(command.name);
        assert_eq!(command.answer.check(command.name, &answer), Ok(()), "{answer}");
    }
}

#[test]
fn the_schema_lists_the_commands_and_events_that_there_are() {
    let schema = schema();
    let of_type = |wanted: &str| {
        let names = schema.iter().filter(|(_, info)| info["meta-type"] == wanted);
        names.map(|(name, _)| name.as_str()).collect::<BTreeSet<_>>()
    };
    let listed = answer("query-commands");
    let listed = listed.as_array().unwrap().iter().map(|info| info["name"].as_str().unwrap());
    assert_eq!(of_type("command"), listed.collect());
    assert_eq!(of_type("event"), EVENTS.iter().map(|kind| kind.name).collect());
}

#[test]
fn every_type_that_the_schema_names_is_in_it_and_every_type_in_it_is_named() {
    let schema = schema();
    let mut named = BTreeSet::new();
    for info in schema.values() {
        let lists = [&info["members"], &info["variants"]].map(Value::as_array);
        let inner = lists.into_iter().flatten().flatten().map(|member| &member["type"]);
        let own = ["arg-type", "ret-type", "element-type"].map(|key| &info[key]);
        named.extend(own.into_iter().chain(inner).filter_map(Value::as_str));
    }
    let is_type = |info: &Value| info["meta-type"] != "command" && info["meta-type"] != "event";
    let types = schema.iter().filter(|(_, info)| is_type(info)).map(|(name, _)| name.as_str());
    assert_eq!(named, types.collect());
}

#[test]
fn commands_and_unions_are_described_as_qemu_does() {
    let schema = schema();
    assert_eq!(
        schema["balloon"],
        json!({
            "name": "balloon", "meta-type": "command",
            "arg-type": "balloon-arguments", "ret-type": "empty",
        })
    );
    assert_eq!(
        schema["human-monitor-command-arguments"],
        json!({
            "name": "human-monitor-command-arguments", "meta-type": "object",
            "members": [
                { "name": "command-line", "type": "str" },
                { "name": "cpu-index", "type": "int", "default": null },
            ],
        })
    );
    let stop = json!({ "name": "STOP", "meta-type": "event", "arg-type": "empty" });
    assert_eq!(schema["STOP"], stop);
    let device = &schema["MemoryDeviceInfo"];
    assert_eq!(device["tag"], "type");
    let variant = json!([{ "case": "hv-balloon", "type": "HvBalloonDeviceInfoWrapper" }]);
    assert_eq!(device["variants"], variant);
    let integer = json!({ "name": "int", "meta-type": "builtin", "json-type": "int" });
    assert_eq!(schema["int"], integer);
}

#[test]
fn clients_of_qemu_understand_the_schema() {
    let infos: Vec<qapi::SchemaInfo> = serde_json::from_value(answer("query-qmp-schema")).unwrap();
    assert_eq!(infos.len(), schema().len());
}

#[test]
fn a_value_of_another_form_is_told_with_its_place() {
    static INFO: Type = Type::Object(&SCHEMA_INFO);
    let wrong = |value: Value| Type::List(&INFO).check("list", &value).unwrap_err().desc;
    let in_array = |info: Value| wrong(json!([info]));
    assert_eq!(wrong(json!({})), "Invalid parameter type for 'list', expected: array");
    assert_eq!(in_array(json!(1)), "Invalid parameter type for 'list[0]', expected: object");
    assert_eq!(in_array(json!({ "name": "n" })), "Parameter 'list[0].meta-type' is missing");
    assert_eq!(
        in_array(json!({ "name": "n", "meta-type": "x" })),
        "Parameter 'list' does not accept value 'x'"
    );
    assert_eq!(
        in_array(json!({ "name": "n", "meta-type": "event" })),
        "Parameter 'list[0].arg-type' is missing"
    );
    assert_eq!(
        in_array(json!({ "name": "n", "meta-type": "alternate", "tag": "t" })),
        "Parameter 'list[0].tag' is unexpected"
    );
}
