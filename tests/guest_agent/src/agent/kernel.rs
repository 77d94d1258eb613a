//! What the agent asks of the guest's kernel.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::kmod::{DeleteModuleFlags, delete_module};

/// Keeps the kernel's chatter off the console and lets `sysrq` do everything.
pub(super) fn prepare() -> io::Result<()> {
    fs::write("/proc/sys/kernel/printk", "1 4 1 7")?;
    fs::write("/proc/sys/kernel/sysrq", "1")
}

/// Lets the kernel use all memory that was added and left offline; returns how many blocks of it
/// there were.
///
/// Not as movable memory: the balloon driver takes pages that cannot be moved, so it could never
/// give that back (Linux `hv_balloon.c`).
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

/// The modules that `agent.skip=` on the kernel's command line names.
pub(super) fn modules_to_skip() -> io::Result<Vec<String>> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let list = line.split_whitespace().find_map(|word| word.strip_prefix("agent.skip="));
    Ok(list.unwrap_or_default().split(',').map(str::to_owned).collect())
}

/// The names in a directory, one a line.
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

pub(super) fn remove_module(name: &str) -> io::Result<String> {
    let name = std::ffi::CString::new(name)?;
    delete_module(&name, DeleteModuleFlags::O_NONBLOCK)?;
    Ok(String::new())
}

/// The kernel's messages that hold `filter`, one a line, each with its time in seconds.
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
            // The record was overwritten before it could be read: go on with the next.
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
    fn meminfo_names_its_four_fields() {
        let text = meminfo().unwrap();
        let names: Vec<_> = text.split(' ').filter_map(|f| f.split('=').next()).collect();
        assert_eq!(names, ["MemTotal", "MemFree", "MemAvailable", "Committed_AS"]);
    }
}
