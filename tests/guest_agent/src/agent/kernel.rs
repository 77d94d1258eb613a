//! Queries and commands to the guest's kernel.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::kmod::{DeleteModuleFlags, delete_module};
use nix::time::{ClockId, clock_settime};

use crate::boot::USUAL_MODULES;

/// Keeps kernel messages off the console and enables all of `sysrq`.
pub(super) fn prepare() -> io::Result<()> {
    fs::write("/proc/sys/kernel/printk", "1 4 1 7")?;
    fs::write("/proc/sys/kernel/sysrq", "1")
}

/// Brings all added memory online that is still offline; returns the number of its blocks.
///
/// It does not become movable memory: the balloon driver allocates unmovable pages and could never
/// give such memory back (Linux `hv_balloon.c`).
pub(super) fn online_all() -> io::Result<String> {
    let mut blocks = 0;
    for entry in fs::read_dir("/sys/devices/system/memory")? {
        let entry = entry?;
        let state = entry.path().join("state");
        let is_block = entry.file_name().to_string_lossy().starts_with("memory");
        if is_block && fs::read_to_string(&state)?.trim_end() == "offline" {
            fs::write(&state, "online")?;
            blocks += 1;
        }
    }
    Ok(blocks.to_string())
}

/// Runs a program, given with its arguments, and returns its output.
pub(super) fn run(command: &str) -> io::Result<String> {
    let mut words = command.split_whitespace();
    let program = words.next().ok_or_else(|| io::Error::other("no program"))?;
    let output = Command::new(program).args(words).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
        return Err(io::Error::other(format!("{program}: {}: {errors}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The modules named by `agent.skip=` on the kernel command line.
pub(super) fn modules_to_skip() -> io::Result<Vec<String>> {
    let list = option("agent.skip=")?.unwrap_or_default();
    Ok(list.split(',').map(str::to_owned).collect())
}

/// The list of modules to load, named by `agent.modules=` on the kernel command line.
pub(super) fn module_list() -> io::Result<String> {
    Ok(option("agent.modules=")?.unwrap_or_else(|| USUAL_MODULES.to_owned()))
}

fn option(name: &str) -> io::Result<Option<String>> {
    let line = fs::read_to_string("/proc/cmdline")?;
    Ok(line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned))
}

/// The names in a directory, one per line.
pub(super) fn list(path: &str) -> io::Result<String> {
    let names: io::Result<Vec<String>> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().display().to_string())).collect();
    let mut names = names?;
    names.sort();
    Ok(names.join("\n"))
}

pub(super) fn uptime() -> io::Result<String> {
    let text = fs::read_to_string("/proc/uptime")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// The wall clock, in milliseconds since 1970.
pub(super) fn clock() -> io::Result<String> {
    let now = ClockId::CLOCK_REALTIME.now()?;
    Ok(Duration::from(now).as_millis().to_string())
}

/// Sets the wall clock, in seconds since 1970.
pub(super) fn set_clock(seconds: u64) -> io::Result<String> {
    clock_settime(ClockId::CLOCK_REALTIME, Duration::from_secs(seconds).into())?;
    Ok(String::new())
}

pub(super) fn meminfo() -> io::Result<String> {
    const FIELDS: [&str; 4] = ["MemTotal", "MemFree", "MemAvailable", "Committed_AS"];
    let text = fs::read_to_string("/proc/meminfo")?;
    let values: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| FIELDS.contains(name))
        .map(|(name, value)| format!("{name}={}", value.trim().trim_end_matches(" kB")))
        .collect();
    Ok(values.join(" "))
}

/// Waits until `MemTotal` reaches a bound: `least|most KIB SECONDS`. Polling over the console would
/// write a line each time and cost more than the change that is measured.
pub(super) fn wait_for_total(what: &str) -> io::Result<String> {
    let (side, numbers) = what.split_once(' ').unwrap_or_default();
    let (kib, seconds) = numbers.split_once(' ').unwrap_or_default();
    let (kib, limit) = (super::number(kib)?, Duration::from_secs(super::number(seconds)?));
    let there: fn(u64, u64) -> bool = match side {
        "least" => |total, kib| total >= kib,
        "most" => |total, kib| total <= kib,
        _ => return Err(io::Error::other(format!("neither least nor most: {side}"))),
    };
    let begin = Instant::now();
    loop {
        let total = total()?;
        if there(total, kib) {
            return Ok(total.to_string());
        }
        let elapsed = begin.elapsed();
        if elapsed > limit {
            return Err(io::Error::other(format!("MemTotal is {total} KiB after {limit:?}")));
        }
        // This delays the result by at most two per cent and costs little.
        thread::sleep((elapsed / 50).clamp(Duration::from_millis(2), Duration::from_millis(200)));
    }
}

/// `MemTotal` in KiB.
fn total() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let value = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    super::number(value.unwrap_or_default().trim().trim_end_matches(" kB"))
}

pub(super) fn remove_module(name: &str) -> io::Result<String> {
    let name = std::ffi::CString::new(name)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)?;
    Ok(String::new())
}

/// The kernel messages that contain `filter`, one per line, each with its time in seconds.
pub(super) fn messages(filter: &str) -> io::Result<String> {
    let mut log =
        OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")?;
    let mut record = [0; 8192];
    let mut found = String::new();
    loop {
        match log.read(&mut record) {
            Ok(0) => return Ok(found),
            Ok(length) => {
                let record = String::from_utf8_lossy(&record[..length]);
                if let Some(line) = format_record(&record).filter(|line| line.contains(filter)) {
                    found.push_str(&line);
                    found.push('\n');
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(found),
            // The record was overwritten before it could be read: continue with the next.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Err(e) => return Err(e),
        }
    }
}

/// `PRIORITY,SEQUENCE,MICROSECONDS,FLAGS;TEXT` and continuation lines (Linux `Documentation/ABI/testing/dev-kmsg`).
fn format_record(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let micros: u64 = head.split(',').nth(2)?.parse().ok()?;
    Some(format!("[{}.{:06}] {}", micros / 1_000_000, micros % 1_000_000, text.lines().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_record_becomes_a_line_with_its_time() {
        let record =
            "6,339,5140900,-;hv_balloon: Max. dynamic memory size: 1024 MB\n SUBSYSTEM=x\n";
        let line = "[5.140900] hv_balloon: Max. dynamic memory size: 1024 MB";
        assert_eq!(format_record(record).as_deref(), Some(line));
        assert_eq!(format_record("nonsense"), None);
    }

    #[test]
    fn a_wait_for_memory_ends_at_once_where_it_is_there_and_in_time_where_it_is_not() {
        let total = total().unwrap();
        assert_eq!(wait_for_total(&format!("least {total} 0")).unwrap(), total.to_string());
        assert_eq!(wait_for_total(&format!("most {total} 0")).unwrap(), total.to_string());
        assert!(wait_for_total(&format!("least {} 0", total + 1)).is_err());
        assert!(wait_for_total(&format!("most {} 0", total - 1)).is_err());
        for bad in ["", "least", "least 1", "about 1 1", "least x 1"] {
            assert!(wait_for_total(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn meminfo_names_its_four_fields() {
        let text = meminfo().unwrap();
        let names: Vec<_> = text.split(' ').filter_map(|f| f.split('=').next()).collect();
        assert_eq!(names, ["MemTotal", "MemFree", "MemAvailable", "Committed_AS"]);
    }
}
