//! The host resources that a running `hvb` uses, as the host's kernel counts them.

use std::fs;

use anyhow::{Context, Result};

/// The host's view of the process. Memory is in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Resident memory of the guest's mappings.
    pub(super) guest: u64,
    /// Anonymous memory outside them in small pages, which the process itself has written to. Excludes
    /// the program's own file, whose resident part depends on what has run.
    pub(super) private: u64,
    /// The same in huge pages. The host's `khugepaged` makes one of a heap or a stack of which few
    /// pages are in use, so these tell less of what `hvb` uses.
    pub(super) private_huge: u64,
    /// Open files.
    pub(super) descriptors: u64,
    pub(super) threads: u64,
    /// Mappings of memory other than the guest's.
    pub(super) mappings: u64,
    /// Mappings into which the kernel divides the guest's memory: more where huge pages are partly
    /// ballooned.
    pub(super) guest_mappings: u64,
}

impl Footprint {
    /// The footprint of a process.
    pub(super) fn of(process: u32) -> Result<Self> {
        let smaps = fs::read_to_string(format!("/proc/{process}/smaps"))?;
        let mut footprint = Self { ..parse(&smaps)? };
        footprint.descriptors = entries(process, "fd")?;
        footprint.threads = entries(process, "task")?;
        Ok(footprint)
    }
}

/// Open files and threads of a process, without the work of examining its memory.
pub(super) fn descriptors_and_threads(process: u32) -> Result<(u64, u64)> {
    Ok((entries(process, "fd")?, entries(process, "task")?))
}

/// Threads of a process that have one of these names.
pub(super) fn threads_named(process: u32, names: &[&str]) -> Result<u64> {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))?;
    // A thread that ends in the meantime does not count.
    let found = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    Ok(u64::try_from(found.filter(|name| names.contains(&name.trim_end())).count())?)
}

fn entries(process: u32, what: &str) -> Result<u64> {
    Ok(u64::try_from(fs::read_dir(format!("/proc/{process}/{what}"))?.count())?)
}

/// Parses proc_pid_smaps(5): for each mapping its line, then lines with its figures, the last of
/// which has its flags.
fn parse(smaps: &str) -> Result<Footprint> {
    let mut footprint = Footprint::default();
    let (mut resident, mut anonymous, mut huge) = (0, 0, 0);
    for line in smaps.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let kib = || value.trim().trim_end_matches(" kB").parse::<u64>().context(line.to_owned());
        match name {
            "Rss" => resident = kib()? * 1024,
            "Anonymous" => anonymous = kib()? * 1024,
            "AnonHugePages" => huge = kib()? * 1024,
            "VmFlags" => {
                if is_the_guests(value) {
                    footprint.guest += resident;
                    footprint.guest_mappings += 1;
                } else {
                    footprint.private += anonymous.saturating_sub(huge);
                    footprint.private_huge += huge;
                    footprint.mappings += 1;
                }
                (resident, anonymous, huge) = (0, 0, 0);
            }
            _ => {}
        }
    }
    Ok(footprint)
}

/// Whether a mapping is the guest's memory: the only one for which `hvb` sets a huge page policy.
fn is_the_guests(flags: &str) -> bool {
    flags.split_whitespace().any(|flag| ["hg", "nh", "ht"].contains(&flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_guest_is_told_from_that_of_the_process() {
        let smaps = "\
7f00-7f10 rw-p 00000000 00:00 0 \nRss: 512 kB\nAnonymous: 500 kB\nVmFlags: rd wr mr mw nr hg \n\
5500-5510 rw-p 00000000 00:00 0 [heap]\nRss: 40 kB\nAnonymous: 36 kB\nAnonHugePages: 0 kB\nVmFlags: rd wr mr mw \n\
5580-5590 rw-p 00000000 00:00 0 \nRss: 2060 kB\nAnonymous: 2056 kB\nAnonHugePages: 2048 kB\nVmFlags: rd wr \n\
5600-5610 r-xp 00000000 fe:00 7 /a: b\nRss: 900 kB\nAnonymous: 0 kB\nVmFlags: rd ex mr mw nh \n\
5700-5710 r-xp 00000000 fe:00 7 /hvb\nRss: 900 kB\nAnonymous: 0 kB\nVmFlags: rd ex mr mw \n";
        let expected = Footprint {
            guest: 1412 * 1024,
            private: 44 * 1024,
            private_huge: 2048 * 1024,
            mappings: 3,
            guest_mappings: 2,
            ..Footprint::default()
        };
        assert_eq!(parse(smaps).unwrap(), expected);
    }

    #[test]
    fn threads_are_told_by_name_until_they_end() {
        use std::sync::mpsc::channel;

        let me = std::process::id();
        let count = || threads_named(me, &["test-lives", "test-other"]).unwrap();
        let (end, ended) = channel::<()>();
        let (begun, wait) = channel();
        let thread = std::thread::Builder::new().name("test-lives".into()).spawn(move || {
            begun.send(()).unwrap();
            ended.recv()
        });
        wait.recv().unwrap();
        assert_eq!(count(), 1);
        drop(end);
        assert!(thread.unwrap().join().unwrap().is_err());
        crate::wait_for("the thread's end", || Ok((count() == 0).then_some(()))).unwrap();
    }

    #[test]
    fn a_process_sees_what_it_opens_and_allocates() {
        let me = std::process::id();
        let before = Footprint::of(me).unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = Footprint::of(me).unwrap();
        drop((file, memory));
        let private = |footprint: &Footprint| footprint.private + footprint.private_huge;
        assert!(private(&after) >= private(&before) + (60 << 20), "{before:?} {after:?}");
        assert!(before.threads > 0 && before.mappings > 10, "{before:?}");
        assert!(after.descriptors > 3, "{after:?}");
    }
}
