//! The answer to `query-qmp-schema`, made from the tables of commands and events.

use super::{Choice, EMPTY, Member, Object, Type, Variants};
use qapi_qmp::{
    JSONType, SchemaInfo, SchemaInfoArray, SchemaInfoBase, SchemaInfoBuiltin, SchemaInfoCommand,
    SchemaInfoEnum, SchemaInfoEnumMember, SchemaInfoEvent, SchemaInfoObject,
    SchemaInfoObjectMember, SchemaInfoObjectVariant,
};
use serde_json::Value;
use std::collections::BTreeSet;

/// A command: name, arguments, type of the answer.
pub(crate) type DescribedCommand = (&'static str, &'static [Member], Type);

/// An event: name, data.
pub(crate) type DescribedEvent = (&'static str, &'static [Member]);

/// Describes commands and events, and all types that they refer to, each once.
pub(crate) fn describe(
    commands: impl Iterator<Item = DescribedCommand>,
    events: impl Iterator<Item = DescribedEvent>,
) -> Vec<SchemaInfo> {
    let mut schema = Schema::default();
    for (name, arguments, answer) in commands {
        let arg_type = schema.arguments(name, arguments);
        let ret_type = schema.refer(answer);
        let command = SchemaInfoCommand { allow_oob: None, arg_type, ret_type };
        schema.infos.push((command, base(name)).into());
    }
    for (name, data) in events {
        let event = SchemaInfoEvent { arg_type: schema.arguments(name, data) };
        schema.infos.push((event, base(name)).into());
    }
    schema.infos
}

#[derive(Default)]
struct Schema {
    infos: Vec<SchemaInfo>,
    /// The types described so far.
    types: BTreeSet<String>,
}

impl Schema {
    /// The name of the type of a command's arguments or an event's data.
    fn arguments(&mut self, of: &str, members: &'static [Member]) -> String {
        if members.is_empty() {
            return self.refer(Type::Object(&EMPTY));
        }
        let name = format!("{of}-arguments");
        let object = self.object(members, None);
        self.infos.push((object, base(&name)).into());
        name
    }

    /// The name of a type, which is described if it was not yet.
    fn refer(&mut self, kind: Type) -> String {
        let name = name(kind);
        if !self.types.insert(name.clone()) {
            return name;
        }
        let base = base(&name);
        let info = match kind {
            Type::Int | Type::Size => (builtin(JSONType::int), base).into(),
            Type::Text => (builtin(JSONType::string), base).into(),
            Type::Flag => (builtin(JSONType::boolean), base).into(),
            Type::Any => (builtin(JSONType::value), base).into(),
            Type::Choice(choice) => (words(choice), base).into(),
            Type::List(element) => {
                (SchemaInfoArray { element_type: self.refer(*element) }, base).into()
            }
            Type::Object(Object { members, variants, .. }) => {
                (self.object(members, variants.as_ref()), base).into()
            }
        };
        self.infos.push(info);
        name
    }

    fn object(
        &mut self,
        members: &'static [Member],
        variants: Option<&'static Variants>,
    ) -> SchemaInfoObject {
        let member = |member: &Member| SchemaInfoObjectMember {
            // Says that the member is optional, and nothing of a default.
            default: matches!(member, Member::Optional(..)).then_some(Value::Null),
            features: None,
            name: member.name().to_owned(),
            type_: self.refer(member.kind()),
        };
        let members = members.iter().map(member).collect();
        let cases = |cases: &'static [(&'static str, &'static Object)]| {
            let variant = |&(case, object): &(&str, &'static Object)| SchemaInfoObjectVariant {
                case: case.to_owned(),
                type_: self.refer(Type::Object(object)),
            };
            cases.iter().map(variant).collect()
        };
        SchemaInfoObject {
            members,
            tag: variants.map(|variants| variants.tag.to_owned()),
            variants: variants.map(|variants| variants.cases).map(cases),
        }
    }
}

fn base(name: &str) -> SchemaInfoBase {
    SchemaInfoBase { features: None, name: name.to_owned() }
}

/// The name of a type. Clients must not give it a meaning.
fn name(kind: Type) -> String {
    match kind {
        Type::Int | Type::Size => "int".to_owned(),
        Type::Text => "str".to_owned(),
        Type::Flag => "bool".to_owned(),
        Type::Any => "any".to_owned(),
        Type::Choice(choice) => choice.name.to_owned(),
        Type::List(element) => format!("[{}]", name(*element)),
        Type::Object(object) => object.name.to_owned(),
    }
}

fn builtin(json_type: JSONType) -> SchemaInfoBuiltin {
    SchemaInfoBuiltin { json_type }
}

#[expect(deprecated, reason = "older clients read `values`")]
fn words(choice: &Choice) -> SchemaInfoEnum {
    let member = |word: &&str| SchemaInfoEnumMember { features: None, name: (*word).to_owned() };
    SchemaInfoEnum {
        members: choice.words.iter().map(member).collect(),
        values: choice.words.iter().map(|word| (*word).to_owned()).collect(),
    }
}
