//! The host's own figures, from `/proc` and `/sys`.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use balancer::HostSample;

use crate::cgroup::Groups;
use crate::process::{Figures, Group, Watched};

/// Bytes of a page in the counters of `/proc/vmstat`, in KiB: that of x86-64.
const PAGE_KIB: u64 = 4;

/// Reads what the kernel tells.
#[derive(Debug)]
pub struct HostReader {
    proc: PathBuf,
    sys: PathBuf,
    watched: HashMap<u32, Watched>,
}

/// The host and the processes of its VMs at one moment.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// The host; `None` if the kernel did not tell.
    pub sample: Option<HostSample>,
    /// The processes that were asked for, in their order.
    pub(crate) processes: Vec<Option<Figures>>,
}

impl Host {
    /// The memory that each process may have by the limits of its control groups, in KiB, in the order
    /// in which they were asked for; `None` for no limit, and for a process that has ended.
    pub fn limits_kib(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        self.processes.iter().map(|figures| figures.as_ref()?.sample.cgroup_limit_kib)
    }
}

impl Default for HostReader {
    fn default() -> Self {
        Self::under(Path::new("/"))
    }
}

impl HostReader {
    /// A reader for a system whose `proc` and `sys` are in this directory.
    #[must_use]
    pub fn under(root: &Path) -> Self {
        Self { proc: root.join("proc"), sys: root.join("sys"), watched: HashMap::new() }
    }

    /// Reads the host's figures, and those of processes.
    #[must_use]
    pub fn read(&mut self, pids: &[Option<u32>]) -> Host {
        let mut groups = Groups::new(self.sys.join("fs/cgroup"));
        let mut processes: Vec<Option<Figures>> =
            pids.iter().map(|pid| self.process((*pid)?)).collect();
        let wanted: HashSet<u32> = pids.iter().flatten().copied().collect();
        self.watched.retain(|pid, _| wanted.contains(pid));
        let paths = || processes.iter().flatten().filter_map(|figures| figures.group.path());
        let common = groups.common(paths());
        let mut members = HashMap::<String, u32>::new();
        for path in paths() {
            *members.entry(path.to_owned()).or_default() += 1;
        }
        for figures in processes.iter_mut().flatten() {
            let Group::Path(path) = &figures.group else { continue };
            figures.sample.cgroup_limit_kib = groups.limit(path);
            // The pressure of a group of several VMs says nothing of one of them.
            if members.get(path) == Some(&1) {
                figures.sample.psi_some_permille = groups.pressure(path);
            }
        }
        let sample = self.sample().map(|sample| HostSample { cgroup: common, ..sample });
        Host { sample: sample.ok(), processes }
    }

    fn process(&mut self, pid: u32) -> Option<Figures> {
        let directory = self.proc.join(pid.to_string());
        let known = self.watched.get_mut(&pid).and_then(|watched| watched.read(&directory));
        if known.is_some() {
            return known;
        }
        // It is new, or its number is another process's now.
        let mut watched = Watched::open(&directory)?;
        let figures = watched.read(&directory)?;
        self.watched.insert(pid, watched);
        Some(figures)
    }

    fn sample(&self) -> io::Result<HostSample> {
        let meminfo = text(&self.proc.join("meminfo"))?;
        let field = |name| {
            kib_field(&meminfo, name)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no such field"))
        };
        let (some, full) = pressure(&self.proc.join("pressure/memory"));
        let vmstat = text(&self.proc.join("vmstat")).unwrap_or_default();
        Ok(HostSample {
            age_ms: 0,
            total_kib: field("MemTotal:")?,
            available_kib: field("MemAvailable:")?,
            cgroup: None,
            limit_kib: None,
            psi_some_permille: some,
            psi_full_permille: full,
            swapped_in_kib: kib_field(&vmstat, "pswpin").unwrap_or(0).saturating_mul(PAGE_KIB),
            huge_pages_free_kib: self.huge_pages_free_kib(),
        })
    }

    /// What is free in the pools of all sizes, and not promised.
    fn huge_pages_free_kib(&self) -> u64 {
        let Ok(pools) = fs::read_dir(self.sys.join("kernel/mm/hugepages")) else { return 0 };
        let free = |pool: PathBuf| {
            let name = pool.file_name()?.to_str()?;
            let size: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let pages = |file| number(&pool.join(file));
            let free = pages("free_hugepages")?.saturating_sub(pages("resv_hugepages")?);
            Some(free.saturating_mul(size))
        };
        let each = pools.flatten().filter_map(|pool| free(pool.path()));
        each.fold(0, u64::saturating_add)
    }
}

/// The text of a file of `/proc` or `/sys`, which has no size to ask for: in as few reads as it takes.
pub(crate) fn text(file: &Path) -> io::Result<String> {
    let mut text = Vec::with_capacity(8 * 1024);
    // A plain file would be asked for its size and place first.
    fs::File::open(file)?.take(u64::MAX).read_to_end(&mut text)?;
    // The name of a process may be any bytes.
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The first number after a name at the beginning of a line.
#[must_use]
pub fn kib_field(text: &str, name: &str) -> Option<u64> {
    let words = text.lines().map(str::split_whitespace);
    words
        .filter_map(|mut words| Some((words.next()?, words.next()?)))
        .find_map(|(word, value)| if word == name { value.parse().ok() } else { None })
}

/// The number in a file; `None` if there is none, or another word, such as `max`.
#[must_use]
pub fn number(file: &Path) -> Option<u64> {
    text(file).ok()?.trim().parse().ok()
}

/// `some avg10` and `full avg10` of a file of pressure, in thousandths; 0 if the kernel does not tell.
pub(crate) fn pressure(file: &Path) -> (u32, u32) {
    let text = text(file).unwrap_or_default();
    let average = |kind| {
        let line = text.lines().find_map(|line| line.strip_prefix(kind))?;
        permille(line.trim_start().strip_prefix("avg10=")?.split_whitespace().next()?)
    };
    (average("some").unwrap_or(0), average("full").unwrap_or(0))
}

/// A percentage with a point as thousandths.
fn permille(percent: &str) -> Option<u32> {
    let (whole, part) = percent.split_once('.').unwrap_or((percent, "0"));
    let tenth = part.get(..1)?.parse::<u32>().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(tenth).filter(|value| *value <= 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use balancer::CgroupLimit;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        write(path, "proc/meminfo", "MemTotal:  16000 kB\nMemFree: 1 kB\nMemAvailable:  9000 kB\n");
        write(path, "proc/vmstat", "pswpin 25\npswpout 7\n");
        write(
            path,
            "proc/pressure/memory",
            "some avg10=12.34 avg60=1.00 total=5\nfull avg10=0.50 avg60=0.00 total=1\n",
        );
        let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
        write(path, &format!("{pool}/free_hugepages"), "10\n");
        write(path, &format!("{pool}/resv_hugepages"), "3\n");
        root
    }

    #[test]
    fn the_host_s_figures_are_read() {
        let root = host();
        let sample = HostReader::under(root.path()).read(&[]).sample.unwrap();
        assert_eq!((sample.total_kib, sample.available_kib), (16_000, 9_000));
        assert_eq!((sample.psi_some_permille, sample.psi_full_permille), (123, 5));
        assert_eq!((sample.swapped_in_kib, sample.huge_pages_free_kib), (100, 7 * 2048));
        assert_eq!(sample.cgroup, None);
    }

    #[test]
    fn a_host_without_figures_has_no_sample() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(HostReader::under(root.path()).read(&[Some(1), None]).sample, None);
        write(root.path(), "proc/meminfo", "MemTotal: much kB\nMemAvailable: 1 kB\n");
        assert_eq!(HostReader::under(root.path()).read(&[]).sample, None);
    }

    #[test]
    fn pressure_that_is_none_is_no_pressure() {
        assert_eq!(permille("99.99"), Some(999));
        for text in ["", "x", "1.", "101.0", "4294967295.0", "1.é"] {
            assert_eq!(permille(text), None, "{text}");
        }
    }

    #[test]
    fn processes_have_their_group_s_limits_and_the_group_of_all_is_the_host_s() {
        let root = host();
        let path = root.path();
        for (pid, group) in [(1, "vms/a"), (2, "vms/b"), (3, "vms/b")] {
            let status =
                format!("Name:\tx\nVmRSS:\t  {pid}000 kB\nVmSwap:\t 5 kB\nHugetlbPages:\t 0 kB\n");
            write(path, &format!("proc/{pid}/status"), &status);
            write(path, &format!("proc/{pid}/statm"), "1 1 1 1 0 1 0\n");
            write(path, &format!("proc/{pid}/cgroup"), &format!("0::/{group}\n"));
        }
        let group = |file: &str| format!("sys/fs/cgroup/{file}");
        write(path, &group("vms/memory.max"), "8388608\n");
        write(path, &group("vms/memory.current"), "4194304\n");
        write(path, &group("vms/memory.stat"), "anon 1\ninactive_file 1048576\n");
        write(path, &group("vms/a/memory.max"), "max\n");
        write(path, &group("vms/a/memory.pressure"), "some avg10=30.00 avg60=0 total=0\n");
        write(path, &group("vms/b/memory.max"), "2097152\n");
        write(path, &group("vms/b/memory.pressure"), "some avg10=40.00 avg60=0 total=0\n");
        let pids = [Some(1), Some(2), None, Some(3), Some(4)];
        let host = HostReader::under(path).read(&pids);
        let limit = CgroupLimit { limit_kib: 8192, current_kib: 4096, reclaimable_kib: 1024 };
        assert_eq!(host.sample.unwrap().cgroup, Some(limit));
        let figures: Vec<_> = host
            .processes
            .iter()
            .map(|figures| {
                let sample = figures.as_ref()?.sample;
                Some((sample.rss_kib, sample.cgroup_limit_kib, sample.psi_some_permille))
            })
            .collect();
        let expected = [
            Some((1000, Some(8192), 300)),
            Some((2000, Some(2048), 0)),
            None,
            Some((3000, Some(2048), 0)),
            None,
        ];
        assert_eq!(figures, expected);
    }

    #[test]
    fn a_process_is_read_anew_and_one_that_ends_is_another_when_its_number_comes_back() {
        let root = host();
        let path = root.path();
        let write = |statm: &str, status: &str| {
            write(path, "proc/7/statm", statm);
            write(path, "proc/7/status", status);
        };
        let end = || fs::remove_dir_all(path.join("proc/7")).unwrap();
        let mut reader = HostReader::under(path);
        let mut rss = || Some(reader.read(&[Some(7)]).processes.pop()??.sample.rss_kib);
        write("900 250", "VmRSS:\t 1000 kB\n");
        assert_eq!(rss(), Some(1000));
        // The same files, as the kernel has them.
        write("900 500", "VmRSS:\t 2000 kB\n");
        assert_eq!(rss(), Some(2000));
        // A change that `statm` does not show is seen with the next reading of the whole.
        write("900 500", "VmRSS:\t 2000 kB\nHugetlbPages:\t 2048 kB\n");
        let seen: Vec<_> = std::iter::from_fn(&mut rss).take(40).collect();
        assert_eq!((seen[0], seen[39]), (2000, 2048));
        // With memory of the pool, the whole is read each time.
        write("900 500", "VmRSS:\t 2000 kB\nHugetlbPages:\t 4096 kB\n");
        assert_eq!(rss(), Some(4096));
        // So it is where memory was swapped.
        let swapped = |swap: u32| format!("VmRSS:\t 2000 kB\nVmSwap:\t {swap} kB\n");
        let mut swap = || Some(reader.read(&[Some(7)]).processes.pop()??.sample.swapped_kib);
        write("900 499", &swapped(80));
        assert_eq!(swap(), Some(80));
        write("900 499", &swapped(70));
        assert_eq!(swap(), Some(70));
        assert_eq!(reader.read(&[]).processes, []);
        end();
        write("900 750", "VmRSS:\t 3000 kB\n");
        let again = reader.read(&[Some(7)]).processes.pop().unwrap().unwrap();
        assert_eq!(again.sample.rss_kib, 3000);
    }
}
