//! `cargo xtask device-lines`: how many lines of our own each virtio device takes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::workspace;

/// The directory of the devices.
const SOURCES: &str = "crates/virtio_devices/src";

/// What each of its files belongs to, by the start of its name. The first that fits counts.
const PARTS: [(&str, &str); 9] = [
    ("disk", "disk"),
    ("entropy", "entropy"),
    ("net/vhost", "vhost-net"),
    ("net", "network"),
    ("mmio", "transport"),
    ("queue", "transport"),
    ("chain", "transport"),
    ("wait", "transport"),
    ("lib", "transport"),
];

/// Prints a table, as docs/devices.md has it.
///
/// # Errors
///
/// A file cannot be read, or belongs to no device.
pub(crate) fn main() -> Result<ExitCode> {
    let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
    for file in workspace::files(&format!("{SOURCES}/*.rs"))? {
        let name = file.strip_prefix(SOURCES)?;
        *lines.entry(part(name)?).or_default() +=
            own_lines(&fs::read_to_string(workspace::root().join(&file))?);
    }
    println!("| device | own lines |\n|---|---:|");
    for (part, count) in &lines {
        println!("| {part} | {count} |");
    }
    println!("| all | {} |", lines.values().sum::<usize>());
    Ok(ExitCode::SUCCESS)
}

fn part(file: &Path) -> Result<&'static str> {
    let name = file.to_str().unwrap_or_default();
    let part = PARTS.iter().find(|(start, _)| name.starts_with(start));
    part.map(|(_, part)| *part)
        .with_context(|| format!("{SOURCES}/{name} is of no device in xtask's list: add it there"))
}

/// Lines of code: without blank ones, comments, and the unit tests at the end of a file.
fn own_lines(text: &str) -> usize {
    let code = text.lines().map(str::trim).take_while(|line| *line != "#[cfg(test)]");
    code.filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_counts_and_comments_and_tests_do_not() {
        let text = "//! A file.\n\n/// A function.\nfn f() {\n    // Nothing.\n    g(); // Told.\n}\n\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(own_lines(text), 3);
    }

    #[test]
    fn each_file_is_of_a_device() {
        assert_eq!(part(Path::new("net/vhost/table.rs")).unwrap(), "vhost-net");
        assert_eq!(part(Path::new("net/tap.rs")).unwrap(), "network");
        assert!(part(Path::new("sound.rs")).unwrap_err().to_string().contains("sound.rs"));
    }
}
