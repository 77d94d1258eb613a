//! Whether borrowed memory can get transparent huge pages.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};

/// Whether the kernel may give the mapping at `address` huge pages: because its owner asked for
/// them, or because the host gives them to everyone who did not decline. `setting` is the host's
/// setting for this kind of memory. If neither can be read, the answer is yes, for huge pages in the
/// wrong place cost memory, and small ones only time.
pub(super) fn wants_huge_pages(address: usize, setting: &str) -> bool {
    let flags = flags_of(address).unwrap_or_default();
    let has = |wanted| flags.split_ascii_whitespace().any(|flag| flag == wanted);
    has("hg") || (!has("nh") && is_for_everyone(setting))
}

/// The flags of a mapping (proc_pid_smaps(5), `VmFlags`). The kernel counts the pages of the mappings
/// on the way, which takes long only if they are large and in use.
fn flags_of(address: usize) -> Option<String> {
    let mut is_inside = false;
    for line in BufReader::new(File::open("/proc/self/smaps").ok()?).lines() {
        let line = line.ok()?;
        if let Some(range) = range_of(&line) {
            is_inside = range.0 <= address && address < range.1;
        } else if is_inside && let Some(flags) = line.strip_prefix("VmFlags:") {
            return Some(flags.to_owned());
        }
    }
    None
}

/// The addresses in the first line of a mapping; `None` for its other lines.
pub(crate) fn range_of(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?, number(end)?))
}

/// Linux `Documentation/admin-guide/mm/transhuge.rst`; the value in brackets is the present one.
fn is_for_everyone(setting: &str) -> bool {
    let path = format!("/sys/kernel/mm/transparent_hugepage/{setting}");
    fs::read_to_string(path).map_or(true, |text| {
        ["[always]", "[within_size]", "[force]"].iter().any(|value| text.contains(value))
    })
}
