//! What a VM is made of.

use std::path::PathBuf;
use std::time::Duration;

use guest_ram::HugePages;

use crate::confine::Seccomp;
use crate::console::SerialOutput;

/// The memory of a guest after a reset of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// What it first booted with; a target set before is forgotten.
    #[default]
    BootSize,
    /// What it had last; a target it was on its way to holds.
    KeepSize,
}

/// A VM to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Number of vCPUs, 1 to [`Config::MAX_VCPUS`].
    pub vcpus: u8,
    /// Boot memory, in bytes; whole pages.
    pub memory_bytes: u64,
    /// The most memory the guest may grow to, in bytes; whole pages, and no less than
    /// `memory_bytes`. What is above `memory_bytes` can be added while the guest runs.
    pub max_memory_bytes: u64,
    /// The guest's memory after a reset.
    pub on_reset: OnReset,
    /// Where the monitor listens, if anywhere.
    pub qmp: Option<PathBuf>,
    /// Where the serial port goes.
    pub serial: SerialOutput,
    /// Whether the guest is to report its memory use.
    pub status_reports: bool,
    /// The wait between the guest's capability report and the first request to it; `None` for as
    /// long as this kind of guest needs (`hv_balloon::Settle::Auto`).
    pub settle: Option<Duration>,
    /// The pages that back guest memory.
    pub huge_pages: HugePages,
    /// What becomes of system calls that none of the VM's threads needs. The caller's thread is
    /// confined for good, and so is every thread it starts afterwards.
    pub seccomp: Seccomp,
}

impl Config {
    /// Most vCPUs: APIC ids are 8 bits wide here, and the I/O APIC needs one.
    pub const MAX_VCPUS: u8 = 254;
}
