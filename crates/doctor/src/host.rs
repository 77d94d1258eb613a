//! A host's figures, and what they mean for Dynamic Memory.

use crate::finding::{Finding, Level, Section};
use crate::size;

/// KVM, as far as it could be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kvm {
    /// It was not looked at.
    #[default]
    Unasked,
    /// It cannot be opened; whether it is there is not known.
    NotAllowed(String),
    /// It is not there.
    Absent(String),
    /// It is there, with these capabilities.
    Present(Vec<Capability>),
}

/// A capability of KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name in KVM's documentation.
    pub name: &'static str,
    /// Whether this KVM has it.
    pub present: bool,
    /// What is lost without it; `None` if VMBus is.
    pub lost: Option<&'static str>,
}

/// A pool of huge pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Bytes of a page.
    pub page: u64,
    /// Pages in it.
    pub pages: u64,
    /// Those that are free.
    pub free: u64,
}

/// A VM's process, and the memory that its control group lets it have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limited {
    /// The VM.
    pub name: String,
    /// Bytes: the smallest limit of its group and those above.
    pub limit: u64,
    /// Bytes that the VM can grow to, if that is known.
    pub most: Option<u64>,
}

/// A host's figures. What is `None` could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// KVM.
    pub kvm: Kvm,
    /// Whether the host is itself a virtual machine.
    pub is_guest: Option<bool>,
    /// Whether KVM lets guests run guests.
    pub nested: Option<bool>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub thp: Option<String>,
    /// Pools of huge pages.
    pub pools: Vec<Pool>,
    /// `vm.overcommit_memory`.
    pub overcommit: Option<u64>,
    /// Bytes of memory.
    pub total: Option<u64>,
    /// Bytes of swap.
    pub swap: Option<u64>,
    /// Whether the kernel measures pressure.
    pub pressure: Option<bool>,
    /// Whether there is the unified hierarchy of control groups.
    pub unified: Option<bool>,
    /// VMs whose group limits them.
    pub limited: Vec<Limited>,
    /// Whether the kernel merges equal pages.
    pub ksm: Option<bool>,
}

/// Examines a host.
#[must_use]
pub fn examine(host: &Host) -> Section {
    let mut findings = kvm(host);
    findings.extend(nested(host));
    findings.extend(transparent(host));
    findings.extend(pools(host));
    findings.extend(overcommit(host));
    findings.extend(swap(host));
    findings.extend(pressure(host));
    findings.extend(groups(host));
    findings.extend(ksm(host));
    Section { title: "Host".to_owned(), findings, together: Vec::new() }
}

fn kvm(host: &Host) -> Vec<Finding> {
    let capabilities = match &host.kvm {
        Kvm::Unasked => return Vec::new(),
        Kvm::NotAllowed(why) => return vec![Finding::new("kvm", Level::Unknown, why)],
        Kvm::Absent(why) => return vec![Finding::new("kvm", Level::Stops, why)],
        Kvm::Present(capabilities) => capabilities,
    };
    let missing = capabilities.iter().filter(|it| !it.present);
    let mut findings: Vec<Finding> = missing
        .map(|Capability { name, lost, .. }| {
            let what = format!("KVM lacks {name}");
            match lost {
                None => Finding::new("kvm-capability", Level::Stops, what)
                    .because("VMBus needs it.")
                    .remedy("run a host kernel with", "CONFIG_KVM_HYPERV=y"),
                Some(lost) => Finding::new("kvm-capability", Level::Limits, what).because(*lost),
            }
        })
        .collect();
    if capabilities.iter().all(|it| it.present || it.lost.is_some()) {
        let more = capabilities.iter().filter(|it| it.present && it.lost.is_some());
        let more: String = more.map(|it| format!(", and {}", it.name)).collect();
        let what = format!("KVM has all Hyper-V capabilities that VMBus needs{more}");
        findings.insert(0, Finding::new("kvm", Level::Fine, what));
    }
    findings
}

fn nested(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if host.is_guest == Some(true) {
        let what = "the host is itself a virtual machine";
        let why = "Memory that its guests give back is free on this host, not on the one below it.";
        findings.push(Finding::new("guest", Level::Note, what).because(why));
    }
    if host.nested == Some(true) {
        let what = "guests can run guests of their own (nested)";
        let why = "A Windows guest can then run Hyper-V itself; Hyper-V documents that Dynamic Memory \
                   does not change the size of a guest in which Hyper-V runs.";
        findings.push(Finding::new("nested", Level::Note, what).because(why));
    }
    findings
}

fn transparent(host: &Host) -> Option<Finding> {
    Some(match host.thp.as_deref()? {
        "never" => {
            let finding = Finding::new("thp", Level::Limits, "transparent huge pages are off");
            let why = "Guests are slower, and memory is given and taken in pages of 4 KiB.";
            let text = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled";
            finding.because(why).remedy("run as root", text)
        }
        word => Finding::new("thp", Level::Fine, format!("transparent huge pages: {word}")),
    })
}

fn pools(host: &Host) -> Vec<Finding> {
    let used = host.pools.iter().filter(|pool| pool.pages > 0);
    used.map(|pool| {
        let bytes = pool.pages.saturating_mul(pool.page);
        let what = format!(
            "the pool of {} pages has {}, of which {} are free",
            size::words(pool.page),
            size::words(bytes),
            size::words(pool.free.saturating_mul(pool.page))
        );
        let large = host.total.is_some_and(|total| bytes > total / 4);
        let why =
            "Only programs that ask for such pages can use it; guests with ordinary memory cannot.";
        let finding = Finding::new("pool", if large { Level::Limits } else { Level::Note }, what);
        let finding = finding.because(why);
        if !large {
            return finding;
        }
        let kib = pool.page / size::KIB;
        let text = format!("echo 0 > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages");
        finding.remedy("to give back what is free, run as root", text)
    })
    .collect()
}

fn overcommit(host: &Host) -> Option<Finding> {
    Some(match host.overcommit? {
        2 => {
            let what = "the kernel does not overcommit memory (vm.overcommit_memory = 2)";
            let why = "All memory that a guest may grow into counts when it starts, although the host \
                       does not provide it yet.";
            let finding = Finding::new("overcommit", Level::Limits, what).because(why);
            let finding = finding.remedy("run as root", "sysctl vm.overcommit_memory=0");
            finding.remedy("or add to QEMU's -object memory-backend-ram", "reserve=off")
        }
        mode => Finding::new(
            "overcommit",
            Level::Fine,
            format!("the kernel overcommits memory (mode {mode})"),
        ),
    })
}

fn swap(host: &Host) -> Option<Finding> {
    Some(match host.swap? {
        0 => {
            let why = "If guests together need more than there is, the kernel ends a process: nothing \
                       bridges the second until memory has moved.";
            Finding::new("swap", Level::Note, "there is no swap").because(why)
        }
        bytes => Finding::new("swap", Level::Fine, format!("{} of swap", size::words(bytes))),
    })
}

fn pressure(host: &Host) -> Option<Finding> {
    Some(if host.pressure? {
        Finding::new("psi", Level::Fine, "the kernel measures memory pressure (PSI)")
    } else {
        let why = "hvb balance then judges the host by free memory and swapping only.";
        let finding =
            Finding::new("psi", Level::Limits, "the kernel does not measure memory pressure (PSI)");
        finding.because(why).remedy("boot the host with", "psi=1")
    })
}

fn groups(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    match host.unified {
        Some(true) if host.limited.is_empty() => {
            let what = "no control group limits the memory of a VM";
            findings.push(Finding::new("cgroup", Level::Fine, what));
        }
        Some(false) => {
            let what = "control groups are not unified (cgroup v1)";
            let why = "hvb balance does not see limits and pressure of VMs.";
            let finding = Finding::new("cgroup", Level::Limits, what).because(why);
            findings
                .push(finding.remedy("boot the host with", "systemd.unified_cgroup_hierarchy=1"));
        }
        _ => {}
    }
    for Limited { name, limit, most } in &host.limited {
        let what = format!("a control group limits VM {name} to {}", size::words(*limit));
        let finding = Finding::new("cgroup-limit", Level::Note, what);
        findings.push(match most {
            Some(most) if most > limit => {
                let why = format!(
                    "It can grow to {}; the kernel ends it, or its group swaps, before that.",
                    size::words(*most)
                );
                let text = format!("MemoryMax={}", size::option(*most));
                Finding { level: Level::Limits, ..finding }
                    .because(why)
                    .remedy("set for its unit, or that above it, at least", text)
            }
            _ => finding,
        });
    }
    findings
}

fn ksm(host: &Host) -> Option<Finding> {
    Some(if host.ksm? {
        let why = "It splits huge pages of guests to merge parts of them; giving such memory back takes \
                   longer, and touching it again copies it.";
        let finding =
            Finding::new("ksm", Level::Note, "the kernel merges equal pages (KSM)").because(why);
        finding.remedy("to stop it, run as root", "echo 2 > /sys/kernel/mm/ksm/run")
    } else {
        Finding::new("ksm", Level::Fine, "the kernel does not merge pages (KSM)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(host: &Host) -> Vec<(&'static str, Level)> {
        examine(host).findings.iter().map(|it| (it.id, it.level)).collect()
    }

    fn good() -> Host {
        let name = "KVM_CAP_HYPERV";
        Host {
            kvm: Kvm::Present(vec![Capability { name, present: true, lost: None }]),
            is_guest: Some(false),
            nested: Some(false),
            thp: Some("madvise".to_owned()),
            pools: vec![Pool { page: 2 << 20, pages: 0, free: 0 }],
            overcommit: Some(0),
            total: Some(16 << 30),
            swap: Some(1 << 30),
            pressure: Some(true),
            unified: Some(true),
            limited: Vec::new(),
            ksm: Some(false),
        }
    }

    #[test]
    fn a_good_host_is_fine_in_all_respects() {
        let ids = ["kvm", "thp", "overcommit", "swap", "psi", "cgroup", "ksm"];
        assert_eq!(found(&good()), ids.map(|id| (id, Level::Fine)));
        assert_eq!(found(&Host::default()), []);
    }

    #[test]
    fn each_fault_has_its_level() {
        let check = |host: Host, id, level| {
            let all = found(&host);
            assert!(all.contains(&(id, level)), "{id}: {all:?}");
        };
        check(Host { kvm: Kvm::Absent("x".into()), ..good() }, "kvm", Level::Stops);
        check(Host { kvm: Kvm::NotAllowed("x".into()), ..good() }, "kvm", Level::Unknown);
        let missing = |lost| Kvm::Present(vec![Capability { name: "A", present: false, lost }]);
        check(Host { kvm: missing(None), ..good() }, "kvm-capability", Level::Stops);
        check(Host { kvm: missing(Some("speed")), ..good() }, "kvm-capability", Level::Limits);
        check(Host { is_guest: Some(true), ..good() }, "guest", Level::Note);
        check(Host { nested: Some(true), ..good() }, "nested", Level::Note);
        check(Host { thp: Some("never".into()), ..good() }, "thp", Level::Limits);
        let pool = |pages| vec![Pool { page: 1 << 30, pages, free: 1 }];
        check(Host { pools: pool(1), ..good() }, "pool", Level::Note);
        check(Host { pools: pool(5), ..good() }, "pool", Level::Limits);
        check(Host { overcommit: Some(2), ..good() }, "overcommit", Level::Limits);
        check(Host { swap: Some(0), ..good() }, "swap", Level::Note);
        check(Host { pressure: Some(false), ..good() }, "psi", Level::Limits);
        check(Host { unified: Some(false), ..good() }, "cgroup", Level::Limits);
        check(Host { ksm: Some(true), ..good() }, "ksm", Level::Note);
        let limited = |most| vec![Limited { name: "a".into(), limit: 2 << 30, most }];
        check(Host { limited: limited(None), ..good() }, "cgroup-limit", Level::Note);
        check(Host { limited: limited(Some(1 << 30)), ..good() }, "cgroup-limit", Level::Note);
        check(Host { limited: limited(Some(3 << 30)), ..good() }, "cgroup-limit", Level::Limits);
    }
}
