//! What is known of host and VMs at one moment: the input of a decision.

use crate::settings::VmSettings;

/// A figure and how old it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged<T> {
    /// The figure.
    pub value: T,
    /// Time since it was true.
    pub age_ms: u64,
}

/// The name of a VM for the balancer. Where two VMs are equal, the one with the lower number is
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub u32);

/// Whether the balancer changes a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Memory follows need.
    #[default]
    Automatic,
    /// The operator wants it left as it is.
    Held,
}

/// Where guest memory comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Pool {
    /// The host's ordinary pages.
    #[default]
    Ordinary,
    /// The host's pool of huge pages, which only VMs like this one use.
    HugePages,
}

/// A VM with its settings and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Its name.
    pub id: VmId,
    /// Its settings; they may differ from those of the last decision.
    pub settings: VmSettings,
    /// Whether to change it.
    pub mode: Mode,
    /// Where its memory comes from.
    pub pool: Pool,
    /// What is known of it.
    pub sample: VmSample,
}

/// What is known of a VM.
///
/// Leave a VM out until its size has been read once. If its monitor is silent later, pass the last
/// figures with their growing age: the VM still has its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmSample {
    /// The memory that the VM has: QMP's `actual`, in KiB.
    pub actual_kib: Aged<u64>,
    /// What its guest says, if it says anything.
    pub guest: Option<Aged<GuestReport>>,
    /// The guest can report and has not yet, for example because somebody has only just begun to
    /// listen. Until it does, the VM is left as it is. Without effect if there is a report.
    pub awaits_report: bool,
    /// What its process takes from the host.
    pub process: Option<Aged<ProcessSample>>,
}

/// What a guest says about itself: the status report of Dynamic Memory, or the statistics of a
/// virtio balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct GuestReport {
    /// The VM's size *when the report was made*, not now: `available_kib` is a part of this.
    pub actual_kib: u64,
    /// What the guest can use without paging.
    pub available_kib: u64,
    /// What it has committed. Only the status report tells.
    pub committed: Option<Committed>,
    /// How much it has read back from swap since it started. Only a virtio balloon tells.
    pub swapped_in_kib: Option<u64>,
    /// How many processes it has killed for want of memory since it started.
    pub oom_kills: Option<u64>,
}

/// Committed memory as the status report counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Committed {
    /// The figure of the report. Both Windows and Linux count ballooned pages as committed (Linux
    /// `hv_balloon.c`, `post_status`).
    pub reported_kib: u64,
    /// Ballooned pages when the report was made.
    pub ballooned_kib: u64,
}

/// What the host knows of a VM's process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProcessSample {
    /// Its resident memory: guest memory that is backed, and what the process needs itself. For a
    /// VM of [`Pool::HugePages`], what it has of the pool (`HugetlbPages` of `/proc/PID/status`).
    pub rss_kib: u64,
    /// Its memory that the host has swapped out.
    pub swapped_kib: u64,
    /// The limit of its cgroup.
    pub cgroup_limit_kib: Option<u64>,
    /// The time in which some task of its cgroup waited for memory: `some avg10` of
    /// `memory.pressure`, in thousandths.
    pub psi_some_permille: u32,
}

/// What is known of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HostSample {
    /// Time since these figures were true. They belong together with the VMs' `rss_kib`: what a VM
    /// touches between the two readings is counted twice or not at all.
    pub age_ms: u64,
    /// `MemTotal`.
    pub total_kib: u64,
    /// `MemAvailable`.
    pub available_kib: u64,
    /// The limit of the cgroup in which all VMs are, if it has one.
    pub cgroup: Option<CgroupLimit>,
    /// What the operator gives the VMs and the reserve together at most, of ordinary memory.
    pub limit_kib: Option<u64>,
    /// `some avg10` of the host's memory pressure, in thousandths.
    pub psi_some_permille: u32,
    /// `full avg10` of the host's memory pressure, in thousandths.
    pub psi_full_permille: u32,
    /// How much the host has read back from swap since it started.
    pub swapped_in_kib: u64,
    /// Free memory in the pool of huge pages.
    pub huge_pages_free_kib: u64,
}

/// A cgroup with a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CgroupLimit {
    /// `memory.max`.
    pub limit_kib: u64,
    /// `memory.current`.
    pub current_kib: u64,
    /// The part of `current_kib` that the kernel takes back first: `inactive_file` of
    /// `memory.stat`.
    pub reclaimable_kib: u64,
}

impl CgroupLimit {
    /// What the group may hold of what `part_kib` of it is now a part of.
    pub(crate) fn room_kib(&self, part_kib: u64) -> u64 {
        let taken = self.current_kib.saturating_sub(self.reclaimable_kib);
        self.limit_kib.saturating_add(part_kib).saturating_sub(taken)
    }
}
