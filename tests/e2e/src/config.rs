//! The configuration of a test guest.

use std::path::PathBuf;

use crate::MIB;
use crate::setup::Setup;

/// For [`VmConfig::append`] in tests that balloon much memory. Debian's kernels clear each page
/// they allocate, even for the balloon, which in an emulated machine takes most of a shrink's time.
pub const NO_CLEARING: &str = "init_on_alloc=0";

/// The configuration of a guest.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Its processors.
    pub cpus: u32,
    /// Its memory at boot, in bytes.
    pub memory: u64,
    /// The most memory it may have, in bytes; its boot memory if absent.
    pub max_memory: Option<u64>,
    /// The size it has after a reset: `boot-size` or `keep-size`.
    pub on_reset: Option<&'static str>,
    /// The backing of its memory: `off`, `thp`, `2M` or `1G`.
    pub hugepages: Option<&'static str>,
    /// Whether the guest can report free pages: `on` or `off`; if absent, where the host can.
    pub free_page_reporting: Option<&'static str>,
    /// How to treat forbidden system calls: `on`, `log` or `off`.
    pub seccomp: Option<&'static str>,
    /// Its disks, as `--disk` takes them.
    pub disks: Vec<String>,
    /// Its networks, as `--net` takes them.
    pub networks: Vec<String>,
    /// Where to record the guest's conversation with bus and device.
    pub record_bus: Option<PathBuf>,
    /// Whether the guest's memory pressure reports are emitted.
    pub status_report: bool,
    /// Whether the guest's kernel brings added memory online by itself. Debian's kernels differ in
    /// their default.
    pub auto_online: bool,
    /// Whether the guest has what it needs to start its kernel again with `kexec`.
    pub kexec: bool,
    /// How many seconds a guest that is asked to shut down by a signal may take.
    pub grace: Option<u32>,
    /// Additions to the kernel command line.
    pub append: &'static str,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 1024 * MIB,
            max_memory: None,
            on_reset: None,
            hugepages: None,
            free_page_reporting: None,
            seccomp: None,
            disks: Vec::new(),
            networks: Vec::new(),
            record_bus: None,
            status_report: false,
            auto_online: true,
            kexec: false,
            grace: None,
            append: "",
        }
    }
}

impl VmConfig {
    /// The arguments of `hvb`, except for the monitor's socket.
    pub(crate) fn arguments(&self, setup: &Setup) -> Vec<String> {
        let online = if self.auto_online { "online" } else { "offline" };
        let append =
            format!("console=ttyS0 panic=-1 quiet memhp_default_state={online} {}", self.append);
        let mut arguments = vec!["run".to_owned()];
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("--kernel", setup.vmlinux.display().to_string());
        let initrd = if self.kexec { &setup.kexec_initrd } else { &setup.initrd };
        add("--initrd", initrd.display().to_string());
        add("--append", append);
        add("--cpus", self.cpus.to_string());
        add("--memory", format!("{}M", self.memory / MIB));
        add("--serial", "stdio".to_owned());
        if let Some(bytes) = self.max_memory {
            add("--max-memory", format!("{}M", bytes / MIB));
        }
        if let Some(policy) = self.on_reset {
            add("--on-reset", policy.to_owned());
        }
        if let Some(kind) = self.hugepages {
            add("--hugepages", kind.to_owned());
        }
        if let Some(switch) = self.free_page_reporting {
            add("--free-page-reporting", switch.to_owned());
        }
        if let Some(mode) = self.seccomp {
            add("--seccomp", mode.to_owned());
        }
        if let Some(path) = &self.record_bus {
            add("--record-bus", path.display().to_string());
        }
        for disk in &self.disks {
            add("--disk", disk.clone());
        }
        for network in &self.networks {
            add("--net", network.clone());
        }
        if let Some(seconds) = self.grace {
            add("--grace", seconds.to_string());
        }
        if self.status_report {
            arguments.push("--status-report".to_owned());
        }
        arguments
    }
}
