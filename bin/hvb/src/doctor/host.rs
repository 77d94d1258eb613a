//! The host's figures, from `/proc`, `/sys` and `/dev/kvm`.

use std::fs;
use std::path::Path;

use balance_host::{HostReader, kib_field, number};
use doctor::host::{Capability, Host, Kvm, Limited, Pool};
use kvm_hyperv::probe::{self, Irqchip, ProbeError};

/// The most processes that are looked at.
const MAX_PROCESSES: usize = 1 << 16;

/// A VM's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: String,
    /// The bytes that its guest can have at most, if that is known.
    pub(super) most: Option<u64>,
}

impl Process {
    /// All processes that look like VMs.
    pub(super) fn all(root: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(root.join("proc")) else { return Vec::new() };
        let pids = entries.take(MAX_PROCESSES).flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let process = |pid: u32| {
            let name = fs::read_to_string(root.join(format!("proc/{pid}/comm"))).ok()?;
            let name = name.trim();
            let is_vm =
                name.starts_with("qemu-system") || ["kvm", "qemu-kvm", "hvb"].contains(&name);
            is_vm.then(|| Self { pid, name: format!("{name} with process {pid}"), most: None })
        };
        pids.filter_map(process).collect()
    }
}

/// KVM's capabilities.
pub(super) fn kvm() -> Kvm {
    let missing = match probe::open(Irqchip::Full) {
        Ok((_, found)) => {
            return Kvm::Present(vec![
                Capability {
                    name: "KVM_CAP_HYPERV_EVENTFD",
                    present: found.eventfd,
                    lost: Some("Each signal of a guest is an exit to its VMM."),
                },
                Capability {
                    name: "extended hypercalls",
                    present: found.extended_hypercalls,
                    lost: Some(
                        "Guests cannot report memory that they free by themselves: that needs Linux \
                         6.3 on the host.",
                    ),
                },
            ]);
        }
        Err(ProbeError::Missing(missing)) => missing.0,
        Err(error @ ProbeError::NoDevice) => return Kvm::Absent(error.to_string()),
        Err(error) => return Kvm::NotAllowed(error.to_string()),
    };
    let capability = |name| Capability { name, present: false, lost: None };
    Kvm::Present(missing.into_iter().map(capability).collect())
}

/// The figures of a system whose `proc` and `sys` are in `root`, without KVM.
pub(super) fn read(root: &Path, processes: &[Process]) -> Host {
    let text = |file: &str| fs::read_to_string(root.join(file)).ok();
    let meminfo = text("proc/meminfo").unwrap_or_default();
    let bytes = |name| kib_field(&meminfo, name)?.checked_mul(1024);
    let groups = root.join("sys/fs/cgroup");
    let nested = ["kvm_intel", "kvm_amd"]
        .into_iter()
        .find_map(|module| text(&format!("sys/module/{module}/parameters/nested")));
    Host {
        kvm: Kvm::Unasked,
        is_guest: text("proc/cpuinfo").map(|text| {
            let flags = text.lines().find(|line| line.starts_with("flags"));
            flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == "hypervisor"))
        }),
        nested: nested.map(|word| matches!(word.trim(), "Y" | "1")),
        thp: text("sys/kernel/mm/transparent_hugepage/enabled")
            .and_then(|text| Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())),
        pools: pools(&root.join("sys/kernel/mm/hugepages")),
        overcommit: number(&root.join("proc/sys/vm/overcommit_memory")),
        total: bytes("MemTotal:"),
        swap: bytes("SwapTotal:"),
        pressure: (!meminfo.is_empty()).then(|| root.join("proc/pressure/memory").exists()),
        unified: groups.exists().then(|| groups.join("cgroup.controllers").exists()),
        limited: limited(root, processes),
        ksm: number(&root.join("sys/kernel/mm/ksm/run")).map(|run| run == 1),
    }
}

fn pools(directory: &Path) -> Vec<Pool> {
    let pool = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(Pool {
            page: kib.checked_mul(1024)?,
            pages: number(&path.join("nr_hugepages"))?,
            free: number(&path.join("free_hugepages"))?,
        })
    };
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut pools: Vec<Pool> = entries.flatten().filter_map(|entry| pool(&entry.path())).collect();
    pools.sort_by_key(|pool| pool.page);
    pools
}

fn limited(root: &Path, processes: &[Process]) -> Vec<Limited> {
    let pids: Vec<Option<u32>> = processes.iter().map(|process| Some(process.pid)).collect();
    let host = HostReader::under(root).read(&pids);
    let limits = host.limits_kib().zip(processes);
    limits
        .filter_map(|(kib, Process { name, most, .. })| {
            let limit = kib?.checked_mul(1024)?;
            Some(Limited { name: name.clone(), limit, most: *most })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_figures_of_a_host_are_read() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (file, text) in [
            ("proc/meminfo", "MemTotal:  16000 kB\nMemAvailable: 1 kB\nSwapTotal:  0 kB\n"),
            ("proc/cpuinfo", "flags\t\t: fpu vme hypervisor\n"),
            ("proc/sys/vm/overcommit_memory", "2\n"),
            ("proc/pressure/memory", "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"),
            ("proc/7/comm", "qemu-system-x86\n"),
            ("proc/7/status", "Name:\tqemu\nVmRSS:\t 1 kB\n"),
            ("proc/7/statm", "1 1 1 1 0 1 0\n"),
            ("proc/7/cgroup", "0::/machine.slice/a\n"),
            ("proc/8/comm", "bash\n"),
            ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
            ("sys/fs/cgroup/machine.slice/memory.max", "4294967296\n"),
            ("sys/module/kvm_amd/parameters/nested", "1\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "4\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n"),
            ("sys/kernel/mm/ksm/run", "1\n"),
        ] {
            write(root, file, text);
        }
        let processes = Process::all(root);
        let name = "qemu-system-x86 with process 7".to_owned();
        assert_eq!(processes, [Process { pid: 7, name: name.clone(), most: None }]);
        let expected = Host {
            kvm: Kvm::Unasked,
            is_guest: Some(true),
            nested: Some(true),
            thp: Some("never".to_owned()),
            pools: vec![Pool { page: 2 << 20, pages: 4, free: 3 }],
            overcommit: Some(2),
            total: Some(16_000 << 10),
            swap: Some(0),
            pressure: Some(true),
            unified: Some(true),
            limited: vec![Limited { name, limit: 4 << 30, most: None }],
            ksm: Some(true),
        };
        assert_eq!(read(root, &processes), expected);
    }

    #[test]
    fn a_host_that_tells_nothing_has_no_figures() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read(root.path(), &Process::all(root.path())), Host::default());
    }
}
