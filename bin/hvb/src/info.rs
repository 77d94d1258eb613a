//! `hvb info`: the state of a running machine.

mod books;
mod dump;

use crate::cli::InfoArgs;
use crate::monitor::{connect, explain};
use crate::report;
use crate::size::human;
use anyhow::Result;
use qmp::{
    Client, ClientError, IntegrationServicesInfo, Value, XQueryDynamicMemory,
    XQueryIntegrationServices, qapi,
};

/// The package name of our own server; QEMU reports its distribution's package here.
const OUR_PACKAGE: &str = "hv-balloon ";

/// A row of the table: label and text.
type Row = (&'static str, String);

/// Prints a small table, or writes the dump.
pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let mut client = connect(&args.socket)?;
    if let Some(file) = &args.dump {
        return dump::write(&mut client, &args.socket, file);
    }
    let mut rows: Vec<Row> = vec![
        ("socket", args.socket.display().to_string()),
        ("monitor", monitor(client.version())),
        ("status", status(&mut client).map_err(|error| explain(&args.socket, error))?),
        ("memory", memory(&mut client).map_err(|error| explain(&args.socket, error))?),
    ];
    if let Some(status) = optional(client.run(&XQueryDynamicMemory {}))? {
        rows.extend(books::rows(&status));
    }
    if let Some(report) = optional(client.run(&qapi::query_hv_balloon_status_report {}))? {
        let (committed, available) = (human(report.committed), human(report.available));
        rows.push(("guest", format!("{committed} committed, {available} available")));
    }
    if let Some(services) = optional(client.run(&XQueryIntegrationServices {}))? {
        rows.push(("heartbeat", services.heartbeat.clone()));
        rows.push(("services", services_of(&services)));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().try_for_each(|(name, value)| report::line(&format!("{name:<width$} {value}")))
}

/// The services that the guest has, with their versions.
fn services_of(services: &IntegrationServicesInfo) -> String {
    let IntegrationServicesInfo { shutdown, time_sync, .. } = services;
    let named = [("shutdown", shutdown), ("time sync", time_sync)];
    let found: Vec<_> = named
        .into_iter()
        .filter_map(|(name, version)| Some(format!("{name} {}", version.as_ref()?)))
        .collect();
    if found.is_empty() { "none in the guest".to_owned() } else { found.join(", ") }
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
    // Not the typed command: a newer QEMU may have a state that the type lacks.
    let answer = client.execute("query-status", Value::Null)?;
    let status = answer.get("status").and_then(Value::as_str);
    Ok(status.unwrap_or("unknown").to_owned())
}

fn memory(client: &mut Client) -> Result<String, ClientError> {
    match client.run(&qapi::query_balloon {}) {
        Ok(info) => Ok(u64::try_from(info.actual).map_or_else(|_| "unknown".to_owned(), human)),
        Err(ClientError::Command { desc, .. }) => Ok(format!("unknown: {desc}")),
        Err(error) => Err(error),
    }
}

/// The answer to a command that some monitors lack, or that fails if there is nothing to report.
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
    fn services_are_told_with_their_versions() {
        let mut services = IntegrationServicesInfo::default();
        assert_eq!(services_of(&services), "none in the guest");
        services.shutdown = Some("3.2".to_owned());
        services.time_sync = Some("4.0".to_owned());
        assert_eq!(services_of(&services), "shutdown 3.2, time sync 4.0");
    }

    #[test]
    fn monitors_are_named() {
        assert_eq!(monitor(&version("")), "QEMU 10.0.2");
        assert_eq!(monitor(&version(" (Debian 1)")), "QEMU 10.0.2 (Debian 1)");
        assert_eq!(monitor(&version("hv-balloon 1.2.3")), "hv-balloon 1.2.3 (QMP as in QEMU 10.0)");
    }
}
