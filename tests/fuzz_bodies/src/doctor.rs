//! Machines that `hvb doctor` is shown: a report, or an error for the user.

use std::convert::Infallible;

use doctor::monitor::{self, Ask};
use doctor::{Description, Report, Unreadable, command_line, examine, libvirt};
use serde_json::Value;

/// The text is a command line, a file that it names, a domain, and what a monitor answers.
pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut read = |name: &str| match name.len() % 2 {
        0 => Ok(text.to_owned()),
        _ => Err("no such file".to_owned()),
    };
    match command_line::of_text(text) {
        Ok(found) => check(&|| Description::of_options(&found, &mut |name| read_again(text, name))),
        Err(error) => complain(&error),
    }
    match libvirt::read(text, &mut read) {
        Ok(found) => check(&|| found.clone()),
        Err(error) => complain(&error),
    }
    let mut answers = Answers { lines: text.lines().collect(), at: 0 };
    let Ok(found) = monitor::read(&mut answers, (10, 0));
    check(&|| found.clone());
}

fn read_again(text: &str, name: &str) -> Result<String, String> {
    if name.is_empty() { Err("no name".to_owned()) } else { Ok(text.to_owned()) }
}

fn complain(error: &Unreadable) {
    assert!(!error.to_string().is_empty());
}

/// The same machine has the same report, which says something and is whole as JSON.
fn check(describe: &dyn Fn() -> Description) {
    let report = Report { sections: vec![examine(&describe())] };
    assert_eq!(report, Report { sections: vec![examine(&describe())] });
    assert!(report.to_string().lines().count() >= 2);
    let written = serde_json::to_string(&report).unwrap();
    let read: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(
        read["sections"][0]["findings"].as_array().map(Vec::len),
        Some(report.sections[0].findings.len())
    );
}

/// A monitor that answers one line after the other.
struct Answers<'a> {
    lines: Vec<&'a str>,
    at: usize,
}

impl Ask for Answers<'_> {
    type Error = Infallible;

    fn ask(&mut self, command: &str, _: Value) -> Result<Result<Value, String>, Infallible> {
        let line = self.lines.get(self.at).copied();
        self.at += 1;
        let answer = line.and_then(|line| serde_json::from_str(line).ok());
        Ok(answer.ok_or_else(|| format!("{command}: none")))
    }
}
