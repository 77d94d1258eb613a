//! The types of what goes over the wire: arguments, answers and events.
//!
//! The tables of commands and events refer to these types. Arguments are checked against them, and
//! `query-qmp-schema` is made of them ([`describe()`]); so neither can differ from what the monitor
//! does. Tests check the answers.

mod describe;
#[cfg(test)]
mod tests;
pub(crate) mod types;

use crate::machine::MonitorError;
use serde_json::{Map, Value};

pub(crate) use describe::describe;

/// A type. As in QEMU's schema, a client learns of both kinds of integers only that they are one.
#[derive(Clone, Copy)]
pub(crate) enum Type {
    /// A number that fits into `i64`.
    Int,
    /// A number that fits into `u64`.
    Size,
    Text,
    Flag,
    /// Anything.
    Any,
    Choice(&'static Choice),
    List(&'static Self),
    Object(&'static Object),
}

/// One of a few words.
pub(crate) struct Choice {
    pub(crate) name: &'static str,
    pub(crate) words: &'static [&'static str],
}

/// An object, or a union if it has variants.
pub(crate) struct Object {
    pub(crate) name: &'static str,
    pub(crate) members: &'static [Member],
    pub(crate) variants: Option<Variants>,
}

/// The further members of a union, which depend on the word in its member `tag`.
pub(crate) struct Variants {
    pub(crate) tag: &'static str,
    pub(crate) cases: &'static [(&'static str, &'static Object)],
}

/// A member of an object, or an argument.
#[derive(Clone, Copy)]
pub(crate) enum Member {
    Required(&'static str, Type),
    Optional(&'static str, Type),
}

/// What a command without result returns.
pub(crate) static EMPTY: Object = Object::new("empty", &[]);

impl Member {
    const fn name(self) -> &'static str {
        match self {
            Self::Required(name, _) | Self::Optional(name, _) => name,
        }
    }

    const fn kind(self) -> Type {
        match self {
            Self::Required(_, kind) | Self::Optional(_, kind) => kind,
        }
    }
}

impl Object {
    pub(crate) const fn new(name: &'static str, members: &'static [Member]) -> Self {
        Self { name, members, variants: None }
    }

    /// The members that an object with these values can have.
    fn members(&self, values: &Map<String, Value>) -> impl Iterator<Item = &'static Member> {
        let variant = self.variants.as_ref().and_then(|variants| {
            let word = values.get(variants.tag)?.as_str()?;
            variants.cases.iter().find(|(case, _)| *case == word)
        });
        self.members.iter().chain(variant.map_or(&[][..], |(_, object)| object.members))
    }
}

/// Checks an object against its members, in QEMU's words. `path` is where the object is; empty for
/// a command's arguments.
pub(crate) fn check(
    path: &str,
    members: impl Iterator<Item = &'static Member> + Clone,
    values: &Map<String, Value>,
) -> Result<(), MonitorError> {
    for member in members.clone() {
        let at = inside(path, member.name());
        match (member, values.get(member.name())) {
            (_, Some(value)) => member.kind().check(&at, value)?,
            (Member::Required(..), None) => {
                return Err(MonitorError::generic(format!("Parameter '{at}' is missing")));
            }
            (Member::Optional(..), None) => {}
        }
    }
    let is_known = |name: &str| members.clone().any(|member| member.name() == name);
    match values.keys().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => {
            let name = inside(path, name);
            Err(MonitorError::generic(format!("Parameter '{name}' is unexpected")))
        }
    }
}

impl Type {
    /// Checks the value at `path`.
    pub(crate) fn check(self, path: &str, value: &Value) -> Result<(), MonitorError> {
        let (fits, expected) = match self {
            Self::Int => (value.is_i64(), "integer"),
            Self::Size => (value.is_u64(), "integer"),
            Self::Text => (value.is_string(), "string"),
            Self::Flag => (value.is_boolean(), "boolean"),
            Self::Any => (true, "any"),
            Self::Choice(choice) => {
                let word = value.as_str().ok_or_else(|| wrong_type(path, "string"))?;
                if choice.words.contains(&word) {
                    return Ok(());
                }
                // Of a list, the name alone.
                let name = path.split('[').next().unwrap_or_default();
                let desc = format!("Parameter '{name}' does not accept value '{word}'");
                return Err(MonitorError::generic(desc));
            }
            Self::List(element) => {
                let values = value.as_array().ok_or_else(|| wrong_type(path, "array"))?;
                return values.iter().enumerate().try_for_each(|(index, value)| {
                    element.check(&format!("{path}[{index}]"), value)
                });
            }
            Self::Object(object) => {
                let values = value.as_object().ok_or_else(|| wrong_type(path, "object"))?;
                let members: Vec<_> = object.members(values).collect();
                return check(path, members.iter().copied(), values);
            }
        };
        if fits { Ok(()) } else { Err(wrong_type(path, expected)) }
    }
}

fn inside(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn wrong_type(name: &str, expected: &str) -> MonitorError {
    MonitorError::generic(format!("Invalid parameter type for '{name}', expected: {expected}"))
}
