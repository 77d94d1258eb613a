//! What the host's kernel says of a process.

use std::fs;

use anyhow::{Context, Result};

/// A thread, as `/proc` describes it (proc_pid_status(5)).
#[derive(Debug)]
pub struct ThreadStatus {
    /// Its name.
    pub name: String,
    /// Whether a filter of system calls is at work.
    pub filtered: bool,
    /// Whether it can gain no privileges.
    pub no_new_privileges: bool,
}

/// All threads of a process.
///
/// # Errors
///
/// The process is gone.
pub fn threads(process: u32) -> Result<Vec<ThreadStatus>> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))?;
    // One that ends meanwhile is none.
    let texts = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    texts
        .map(|text| {
            let value = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::trim).with_context(|| format!("no {name} {text}"))
            };
            Ok(ThreadStatus {
                name: value("Name:")?.to_owned(),
                filtered: value("Seccomp:")? == "2",
                no_new_privileges: value("NoNewPrivs:")? == "1",
            })
        })
        .collect()
}

/// Memory that a process can write, by whether a core dump would hold it.
#[derive(Debug, Default)]
pub struct Dumpable {
    /// Bytes that it would not hold.
    pub left_out: u64,
    /// The largest piece, in bytes, that it would.
    pub largest_held: u64,
}

/// Looks at all mappings of a process (proc_pid_smaps(5)).
///
/// # Errors
///
/// The process is gone, or another user's.
pub fn dumpable(process: u32) -> Result<Dumpable> {
    let smaps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let mut result = Dumpable::default();
    let (mut writable, mut bytes) = (false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Size:"), Some(kib)) => bytes = kib.parse::<u64>()? * 1024,
            (Some("VmFlags:"), first) => {
                let left_out = first == Some("dd") || words.any(|flag| flag == "dd");
                match (writable, left_out) {
                    (true, true) => result.left_out += bytes,
                    (true, false) => result.largest_held = result.largest_held.max(bytes),
                    (false, _) => {}
                }
            }
            (Some(range), Some(rights)) if range.contains('-') && !range.ends_with(':') => {
                writable = rights.starts_with("rw");
            }
            _ => {}
        }
    }
    Ok(result)
}
