//! `hvb info --dump`: everything that helps to explain a hung machine, in one file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use qmp::{Client, Value};

use crate::monitor::explain;
use crate::report;

/// Collects the machine's flight recorder, the balloon's page accounting, and the kernel's
/// information on the machine's threads, and writes all of it as JSON.
pub(super) fn write(client: &mut Client, socket: &Path, file: &Path) -> Result<()> {
    let mut dump = client
        .execute("x-dump-flight-recorder", Value::Null)
        .map_err(|error| explain(socket, error))?;
    // A device that hangs must not keep the rest out of the file.
    let books = client.execute("x-query-dynamic-memory", Value::Null);
    let books = books.unwrap_or_else(|error| error.to_string().into());
    let threads = client.server_process().map(threads).unwrap_or_default();
    if let Some(dump) = dump.as_object_mut() {
        dump.insert("dynamic-memory".into(), books);
        dump.insert("threads".into(), threads.into());
    }
    fs::write(file, format!("{dump:#}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    report::line(&format!("wrote {}", file.display()))
}

/// One line for each thread of a process: its name, its state, and where in the kernel it waits
/// (proc_pid_stat(5), proc_pid_wchan(5)).
fn threads(process: u32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let line = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let waits_in = fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
        let (name, state) = (value("Name:")?.trim(), value("State:")?.trim());
        Some(format!("{name}: {state}, in {waits_in}"))
    };
    tasks.filter_map(|task| line(task.ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_by_name() {
        let lines = std::thread::Builder::new()
            .name("a-name".into())
            .spawn(|| threads(std::process::id()))
            .unwrap()
            .join()
            .unwrap();
        assert!(lines.iter().any(|line| line.starts_with("a-name: R")), "{lines:?}");
    }
}
