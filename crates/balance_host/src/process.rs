//! The process of a VM: `/proc/PID`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use balancer::{Pool, ProcessSample};
use serde::{Deserialize, Serialize};

use crate::host::{kib_field, text};

/// A process's figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) sample: ProcessSample,
    /// Where the guest's memory comes from.
    pub(crate) pool: Pool,
    #[serde(skip)]
    pub(crate) group: Group,
}

/// The cgroup of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Group {
    /// It is not known, or none of the unified hierarchy.
    #[default]
    Unknown,
    /// Its path, which begins with `/`.
    Path(String),
}

impl Group {
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::Unknown => None,
            Self::Path(path) => Some(path),
        }
    }

    /// From the text of `/proc/PID/cgroup`.
    fn of(cgroup: &str) -> Self {
        let group = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
        // A path outside of this namespace says nothing.
        let group = group.filter(|path| path.starts_with('/') && !path.contains("/.."));
        group.map_or(Self::Unknown, |path| Self::Path(path.to_owned()))
    }
}

/// A process that is read once a second. Its files stay open: that is cheaper, and they never become those of
/// another process with the same number.
#[derive(Debug)]
pub(crate) struct Watched {
    statm: File,
    status: File,
    reads: u32,
    last: Option<Last>,
}

#[derive(Debug)]
struct Last {
    statm: Vec<u8>,
    figures: Figures,
}

/// A process is read whole as often as every so many times, even if its `statm` says that nothing has changed.
const WHOLE_READS: u32 = 20;

impl Watched {
    /// Begins with what is in the directory of a process; `None` if it has ended.
    pub(crate) fn open(directory: &Path) -> Option<Self> {
        let file = |name| File::open(directory.join(name)).ok();
        Some(Self { statm: file("statm")?, status: file("status")?, reads: 0, last: None })
    }

    /// Reads it; `None` if the process has ended.
    ///
    /// The kernel composes `status` of many things, which takes it several times as long as `statm`, whose few
    /// numbers change when memory comes or goes. Memory of the pool and swapped memory are not among them.
    pub(crate) fn read(&mut self, directory: &Path) -> Option<Figures> {
        let mut buffer = [0; 256];
        let count = self.statm.read_at(&mut buffer, 0).ok()?;
        let statm = buffer.get(..count)?;
        let is_whole = self.reads.is_multiple_of(WHOLE_READS);
        self.reads = self.reads.wrapping_add(1);
        let is_same = |last: &&Last| {
            let Figures { sample, pool, .. } = &last.figures;
            let shows_all = sample.swapped_kib == 0 && *pool == Pool::Ordinary;
            !is_whole && shows_all && last.statm == statm
        };
        if let Some(last) = self.last.as_ref().filter(is_same) {
            return Some(last.figures.clone());
        }
        let group = match &self.last {
            Some(last) if !is_whole => last.figures.group.clone(),
            _ => Group::of(&text(&directory.join("cgroup")).unwrap_or_default()),
        };
        let statm = statm.to_vec();
        let mut buffer = [0; 8 * 1024];
        let count = self.status.read_at(&mut buffer, 0).ok()?;
        let status = String::from_utf8_lossy(buffer.get(..count)?);
        let figures = Figures::parse(&status, group);
        self.last = Some(Last { statm, figures: figures.clone() });
        Some(figures)
    }
}

impl Figures {
    fn parse(status: &str, group: Group) -> Self {
        let kib = |name| kib_field(status, name).unwrap_or(0);
        // A VMM has memory of the pool for its guest only.
        let (pool, rss_kib) = match kib("HugetlbPages:") {
            0 => (Pool::Ordinary, kib("VmRSS:")),
            huge_kib => (Pool::HugePages, huge_kib),
        };
        Self {
            sample: ProcessSample {
                rss_kib,
                swapped_kib: kib("VmSwap:"),
                cgroup_limit_kib: None,
                psi_some_permille: 0,
            },
            pool,
            group,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_the_pool_is_the_guest_s() {
        let status = "VmRSS:\t 100 kB\nHugetlbPages:\t 2048 kB\n";
        let figures = Figures::parse(status, Group::Unknown);
        assert_eq!((figures.pool, figures.sample.rss_kib), (Pool::HugePages, 2048));
        let figures = Figures::parse("VmRSS:\t 100 kB\n", Group::Unknown);
        assert_eq!((figures.pool, figures.sample.rss_kib), (Pool::Ordinary, 100));
    }

    #[test]
    fn only_a_path_of_the_unified_hierarchy_is_a_group() {
        let group = Group::of;
        assert_eq!(group("1:cpu:/a\n0::/vms/a\n"), Group::Path("/vms/a".to_owned()));
        assert_eq!(group("1:memory:/a\n"), Group::Unknown);
        assert_eq!(group("0::/../../a\n"), Group::Unknown);
    }
}
