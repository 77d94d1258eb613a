//! What was found, and how to put it right.

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// It is as it should be.
    Fine,
    /// Worth knowing.
    Note,
    /// It could not be looked at.
    Unknown,
    /// Dynamic Memory works, with less than it could do.
    Limits,
    /// Dynamic Memory does not work.
    Stops,
}

impl Level {
    /// One word, for a table.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Note => "note",
            Self::Unknown => "unknown",
            Self::Limits => "limits",
            Self::Stops => "STOPS",
        }
    }
}

/// A family of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guest {
    /// Linux, by `hv_balloon`.
    Linux,
    /// Windows, by `dmvsc.sys`.
    Windows,
}

/// The guests that a finding concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guests {
    /// All.
    All,
    /// Linux only.
    Linux,
    /// Windows only.
    Windows,
}

impl Guests {
    /// Whether a guest of this family is among them. A guest that is not known may be.
    #[must_use]
    pub fn has(self, guest: Option<Guest>) -> bool {
        match (self, guest) {
            (Self::All, _) | (_, None) => true,
            (Self::Linux, Some(guest)) => guest == Guest::Linux,
            (Self::Windows, Some(guest)) => guest == Guest::Windows,
        }
    }
}

/// What puts a finding right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Remedy {
    /// What to do with the text, as in `add to the value of -cpu`.
    pub how: String,
    /// The exact text.
    pub text: String,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Finding {
    /// A name that stays the same.
    pub id: &'static str,
    /// How much it matters.
    pub level: Level,
    /// The guests that it concerns.
    pub guests: Guests,
    /// What is so.
    pub what: String,
    /// Why that matters.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// How to put it right.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Remedy>,
}

impl Finding {
    /// A finding about all guests, without a remedy.
    pub(crate) fn new(id: &'static str, level: Level, what: impl Into<String>) -> Self {
        let (what, why) = (what.into(), String::new());
        Self { id, level, guests: Guests::All, what, why, remedies: Vec::new() }
    }

    pub(crate) fn because(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    pub(crate) fn only(self, guests: Guests) -> Self {
        Self { guests, ..self }
    }

    pub(crate) fn remedy(mut self, how: impl Into<String>, text: impl Into<String>) -> Self {
        self.remedies.push(Remedy { how: how.into(), text: text.into() });
        self
    }
}

/// All findings about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Section {
    /// The thing: `host`, or a VM.
    pub title: String,
    /// What was found, in the order in which things depend on each other.
    pub findings: Vec<Finding>,
    /// All remedies for the VM's definition together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub together: Vec<Remedy>,
}

/// All that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The host, and the VM if one was asked for.
    pub sections: Vec<Section>,
}

impl Report {
    /// The most that any finding says.
    #[must_use]
    pub fn level(&self) -> Level {
        let all = self.sections.iter().flat_map(|section| &section.findings);
        all.map(|finding| finding.level).max().unwrap_or(Level::Fine)
    }
}
