//! `hvb list`: the machines that run and have a name.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result};
use qmp::{Client, ClientError, Value, XQueryDynamicMemory, qapi};

use crate::names;
use crate::report;
use crate::size::human;

/// Time limit for one answer: the list is not to wait for a machine that hangs.
const ANSWER: Duration = Duration::from_secs(2);

/// Prints a line for each machine.
pub(crate) fn run() -> Result<()> {
    let directory = names::directory()?;
    let rows: Vec<[String; 5]> = sockets(&directory)?
        .into_iter()
        .filter_map(|socket| Some(row(names::name_of(&socket)?, &socket)))
        .collect();
    if rows.is_empty() {
        return report::line(&format!(
            "no machine runs that has a name (no socket in {})",
            directory.display()
        ));
    }
    let head = ["NAME", "STATUS", "MEMORY", "BOOT", "MAXIMUM"].map(str::to_owned);
    report::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// The files in the directory, by name.
fn sockets(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("{}", directory.display())),
    };
    let mut sockets: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    sockets.sort();
    Ok(sockets)
}

/// What a machine says of itself. One that does not answer has a line all the same.
fn row(name: &str, socket: &Path) -> [String; 5] {
    let [status, actual, boot, maximum] = match state(socket) {
        Ok(state) => state,
        // The socket stays when a machine is killed; the next one of that name replaces it.
        Err(ClientError::NobodyListens { .. }) => {
            ["ended".to_owned(), String::new(), String::new(), String::new()]
        }
        Err(error) => [format!("unknown: {error}"), String::new(), String::new(), String::new()],
    };
    [name.to_owned(), status, actual, boot, maximum]
}

fn state(socket: &Path) -> Result<[String; 4], ClientError> {
    let mut client = Client::connect(socket, ANSWER)?;
    let status = client.execute("query-status", Value::Null)?;
    let status = status.get("status").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let unknown = || "-".to_owned();
    let actual = client.run(&qapi::query_balloon {});
    let actual = actual.ok().and_then(|info| u64::try_from(info.actual).ok());
    let actual = actual.map_or_else(unknown, human);
    let (boot, maximum) = match client.run(&XQueryDynamicMemory {}) {
        Ok(books) => (human(books.boot), human(books.maximum)),
        Err(_) => (unknown(), unknown()),
    };
    Ok([status, actual, boot, maximum])
}
