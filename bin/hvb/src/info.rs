//! `hvb info`: the state of a running machine.

use crate::cli::InfoArgs;
use crate::monitor::{connect, explain};
use crate::report;
use crate::size::human;
use anyhow::Result;
use qmp::{Client, ClientError, DynamicMemoryInfo, Value, XQueryDynamicMemory, qapi};
use std::time::Duration;

/// What our own server calls itself; QEMU has its distribution's package here.
const OUR_PACKAGE: &str = "hv-balloon ";

/// Prints a small table.
pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let mut client = connect(&args.socket)?;
    let mut rows = vec![
        ("socket", args.socket.display().to_string()),
        ("monitor", monitor(client.version())),
        ("status", status(&mut client).map_err(|error| explain(&args.socket, error))?),
        ("memory", memory(&mut client).map_err(|error| explain(&args.socket, error))?),
    ];
    if let Some(status) = optional(client.run(&XQueryDynamicMemory {}))? {
        rows.extend(balloon(&status));
    }
    if let Some(report) = optional(client.run(&qapi::query_hv_balloon_status_report {}))? {
        let (committed, available) = (human(report.committed), human(report.available));
        rows.push(("guest", format!("{committed} committed, {available} available")));
    }
    rows.iter().try_for_each(|(name, value)| report::line(&format!("{name:<8} {value}")))
}

fn monitor(version: &qapi::VersionInfo) -> String {
    let qapi::VersionTriple { major, minor, micro } = version.qemu;
    // Older QEMUs put the package in parentheses themselves.
    let package = version.package.trim().trim_matches(['(', ')']);
    match package {
        "" => format!("QEMU {major}.{minor}.{micro}"),
        _ if package.starts_with(OUR_PACKAGE) => {
            format!("{package} (QMP as in QEMU {major}.{minor})")
        }
        _ => format!("QEMU {major}.{minor}.{micro} ({package})"),
    }
}

fn status(client: &mut Client) -> Result<String, ClientError> {
    // Not the typed command: a newer QEMU may have a state that the type has not.
    let answer = client.execute("query-status", Value::Null)?;
    let status = answer.get("status").and_then(Value::as_str);
    Ok(status.unwrap_or("unknown").to_owned())
}

fn memory(client: &mut Client) -> Result<String, ClientError> {
    match client.run(&qapi::query_balloon {}) {
        Ok(info) => Ok(human(info.actual.unsigned_abs())),
        Err(ClientError::Command { desc, .. }) => Ok(format!("unknown: {desc}")),
        Err(error) => Err(error),
    }
}

fn balloon(status: &DynamicMemoryInfo) -> Vec<(&'static str, String)> {
    let mut state = status.state.clone();
    if let Some(ms) = status.ready_in_ms {
        state += &format!(", ready in {:.0?}", Duration::from_secs(ms.div_ceil(1000)));
    }
    if let Some(reason) = &status.stopped {
        state += &format!(", stopped short of the target: {reason}");
    }
    let target = status.target.map_or_else(|| "none".to_owned(), human);
    vec![("target", target), ("balloon", state)]
}

/// The answer to a command that not every monitor has, or that fails where there is nothing to say.
fn optional<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::Command { .. } | ClientError::Answer { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(package: &str) -> qapi::VersionInfo {
        let qemu = qapi::VersionTriple { major: 10, minor: 0, micro: 2 };
        qapi::VersionInfo { qemu, package: package.to_owned() }
    }

    #[test]
    fn monitors_are_named() {
        assert_eq!(monitor(&version("")), "QEMU 10.0.2");
        assert_eq!(monitor(&version(" (Debian 1)")), "QEMU 10.0.2 (Debian 1)");
        assert_eq!(monitor(&version("hv-balloon 1.2.3")), "hv-balloon 1.2.3 (QMP as in QEMU 10.0)");
    }

    #[test]
    fn a_balloon_that_stopped_says_why() {
        let mut status =
            DynamicMemoryInfo { state: "idle".to_owned(), ..DynamicMemoryInfo::default() };
        assert_eq!(balloon(&status)[0], ("target", "none".to_owned()));
        status.stopped = Some("no more to give".to_owned());
        let expected = "idle, stopped short of the target: no more to give".to_owned();
        assert_eq!(balloon(&status)[1], ("balloon", expected));
        status.ready_in_ms = Some(42_001);
        assert!(balloon(&status)[1].1.starts_with("idle, ready in 43s"));
    }
}
