//! How a guest is started.

use crate::MIB;
use crate::setup::Setup;

/// For [`VmConfig::append`], where much memory is ballooned. Debian's kernels clear each page as they
/// allocate it, also for the balloon: in an emulated machine that is most of a shrink's time.
pub const NO_CLEARING: &str = "init_on_alloc=0";

/// How to start a guest.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Its processors.
    pub cpus: u32,
    /// Its memory at boot, in bytes.
    pub memory: u64,
    /// The memory it may have, in bytes; what it boots with if absent.
    pub max_memory: Option<u64>,
    /// The size it has after a reset: `boot-size` or `keep-size`.
    pub on_reset: Option<&'static str>,
    /// What backs its memory: `off`, `thp`, `2M` or `1G`.
    pub hugepages: Option<&'static str>,
    /// What becomes of forbidden system calls: `on`, `log` or `off`.
    pub seccomp: Option<&'static str>,
    /// Whether the guest is to report its memory pressure.
    pub status_report: bool,
    /// Whether the guest's kernel uses added memory without being told to. Debian's kernels differ
    /// in what they do by themselves.
    pub auto_online: bool,
    /// More of the kernel command line.
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
            seccomp: None,
            status_report: false,
            auto_online: true,
            append: "",
        }
    }
}

impl VmConfig {
    /// The arguments of `hvb`, but for the monitor's socket.
    pub(crate) fn arguments(&self, setup: &Setup) -> Vec<String> {
        let online = if self.auto_online { "online" } else { "offline" };
        let append =
            format!("console=ttyS0 panic=-1 quiet memhp_default_state={online} {}", self.append);
        let mut arguments = vec!["run".to_owned()];
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        add("--kernel", setup.kernel.display().to_string());
        add("--initrd", setup.initrd.display().to_string());
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
        if let Some(mode) = self.seccomp {
            add("--seccomp", mode.to_owned());
        }
        if self.status_report {
            arguments.push("--status-report".to_owned());
        }
        arguments
    }
}
