//! What this process has in memory, to compare with the books.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// What `hvb` itself may take: heap and stacks, and the page sets of a fragmented guest.
const OWN: u64 = 16 << 20;

/// The process's figures. The file is opened once, so that it can still be read after the process
/// was confined.
pub(super) struct Resident {
    statm: Option<File>,
}

impl Resident {
    /// The kernel does not count pages of the host's pool here, so there are no figures for these.
    pub(super) fn new(from_pool: bool) -> Self {
        let statm = (!from_pool).then(|| File::open("/proc/self/statm").ok()).flatten();
        Self { statm }
    }

    /// Bytes of anonymous memory: the guest's, and what `hvb` itself takes. `None` if unknown.
    pub(super) fn bytes(&self) -> Option<u64> {
        let mut text = [0; 128];
        let length = self.statm.as_ref()?.read_at(&mut text, 0).ok()?;
        anonymous(str::from_utf8(text.get(..length)?).ok()?)
    }
}

/// What is resident although the guest is to have no more than `actual`.
pub(super) fn unexplained(resident: u64, actual: u64) -> u64 {
    resident.saturating_sub(actual).saturating_sub(OWN)
}

/// Resident pages less those of files and shared memory (proc_pid_statm(5)), in bytes.
fn anonymous(statm: &str) -> Option<u64> {
    let mut fields = statm.split_ascii_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared) * page_range::PAGE_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_is_resident() {
        let resident = Resident::new(false);
        let before = resident.bytes().unwrap();
        let memory = std::hint::black_box(vec![1_u8; 256 << 20]);
        let with_it = resident.bytes().unwrap();
        // Other tests come and go, and the kernel counts roughly.
        assert!(with_it > before + (128 << 20), "{before}, then {with_it}");
        drop(memory);
        assert_eq!(Resident::new(true).bytes(), None);
    }

    #[test]
    fn what_the_guest_may_have_needs_no_explanation() {
        assert_eq!(anonymous("5000 1000 200 1 0 700 0\n"), Some(800 << 12));
        assert_eq!(anonymous("5000"), None);
        assert_eq!(unexplained((1 << 30) + OWN, 1 << 30), 0);
        assert_eq!(unexplained((3 << 30) + OWN, 1 << 30), 2 << 30);
    }
}
