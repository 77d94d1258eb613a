//! The host kernel's information about a process.

use std::fs;

use anyhow::{Context, Result};

/// A thread, as `/proc` describes it (proc_pid_status(5)).
#[derive(Debug)]
pub struct ThreadStatus {
    /// Its name.
    pub name: String,
    /// Whether it has a system call filter.
    pub filtered: bool,
    /// Whether it is barred from gaining privileges.
    pub no_new_privileges: bool,
}

/// All threads of a process.
///
/// # Errors
///
/// The process is gone.
pub fn threads(process: u32) -> Result<Vec<ThreadStatus>> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))?;
    // A thread that ends in the meantime does not count.
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

/// Writable memory of a process, by whether a core dump would include it.
#[derive(Debug, Default)]
pub struct Dumpable {
    /// Bytes that a dump would omit.
    pub left_out: u64,
    /// The largest mapping that a dump would include, in bytes.
    pub largest_held: u64,
}

/// Examines all mappings of a process (proc_pid_smaps(5)).
///
/// # Errors
///
/// The process is gone, or belongs to another user.
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

/// Memory that only one process has, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Private {
    /// What it has written: it costs the host as much again with each further process.
    pub written: u64,
    /// What it has not: mostly parts of the program's file, which a second process shares.
    pub clean: u64,
}

/// The private memory of a process without its mapping of so many bytes: the guest's memory
/// (proc_pid_smaps(5)).
///
/// # Errors
///
/// The process is gone, or belongs to another user.
pub fn private_bytes(process: u32, guest: u64) -> Result<Private> {
    let smaps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let (mut private, mut is_guest) = (Private::default(), false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Size:"), Some(kib)) => is_guest = kib.parse::<u64>()? * 1024 == guest,
            (Some("Private_Dirty:"), Some(kib)) if !is_guest => {
                private.written += kib.parse::<u64>()? * 1024;
            }
            (Some("Private_Clean:"), Some(kib)) if !is_guest => {
                private.clean += kib.parse::<u64>()? * 1024;
            }
            _ => {}
        }
    }
    Ok(private)
}
