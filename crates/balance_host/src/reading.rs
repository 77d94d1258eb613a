//! What is known of a VM through its monitor.

use balancer::{Aged, GuestReport};
use serde::{Deserialize, Serialize};

/// A figure and when it was true, in milliseconds of the daemon's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped<T> {
    /// The figure.
    pub value: T,
    /// When it was true.
    pub at_ms: u64,
}

impl<T> Stamped<T> {
    pub(crate) fn aged(self, now_ms: u64) -> Aged<T> {
        Aged { value: self.value, age_ms: now_ms.saturating_sub(self.at_ms) }
    }
}

/// What a VM can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The memory it boots with.
    pub boot_kib: u64,
    /// The most it can have.
    pub maximum_kib: u64,
}

/// What a monitor said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// What the VM can be.
    pub facts: Facts,
    /// What it has.
    pub actual: Stamped<u64>,
    /// What its guest says.
    pub report: Option<Stamped<GuestReport>>,
    /// Whether the guest can be expected to report.
    pub can_report: bool,
    /// The size that the VM was last told, if the monitor tells.
    pub told_kib: Option<u64>,
    /// Why the VM does not follow, in the monitor's words.
    pub obstacle: Option<String>,
}

/// The longest text of a monitor that is kept, in characters.
const MAX_TEXT: usize = 240;

/// A monitor's words as they are kept: it may say anything, of any length, and a host may have many.
pub(crate) fn short(text: &str) -> String {
    let mut words: String = text.chars().take(MAX_TEXT).collect();
    if words.len() < text.len() {
        words.push('…');
    }
    words.replace(char::is_control, " ")
}

/// How a VM's monitor can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Link {
    /// Nobody has tried yet.
    #[default]
    New,
    /// It answers.
    Up,
    /// It does not answer, for this reason. The VM may run all the same.
    Down(String),
    /// There is no such process any more.
    Gone(String),
}

impl Link {
    /// What is wrong.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::New | Self::Up => None,
            Self::Down(reason) | Self::Gone(reason) => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_s_words_are_cut_and_keep_to_their_line() {
        assert_eq!(short("no\n\x1b[2Jroom"), "no  [2Jroom");
        assert_eq!(short(&"é".repeat(240)), "é".repeat(240));
        assert_eq!(short(&"é".repeat(1 << 20)), format!("{}…", "é".repeat(240)));
    }
}
