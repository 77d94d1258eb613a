//! What the daemon tells of itself: the answers of the control socket, as JSON.

use serde::{Deserialize, Serialize};

/// The answer to `query-status`. Sizes are in KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Whether nothing is changed.
    pub dry_run: bool,
    /// How many decisions were made; none before all VMs that were found have answered.
    #[serde(default)]
    pub decisions: u64,
    /// Data older than this are no ground for a change.
    #[serde(default)]
    pub stale_after_ms: u64,
    /// What was moved since the daemon began, also by VMs that are gone.
    #[serde(default)]
    pub moved: MovedStatus,
    /// The host.
    pub host: HostStatus,
    /// The VMs, by name.
    pub vms: Vec<VmStatus>,
    /// Room for VMs about to start.
    pub reservations: Vec<ReservationStatus>,
}

/// The host, and the account of its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostStatus {
    /// `comfort`, `tight`, `emergency`, or `unknown` if the host's figures are missing.
    pub zone: String,
    /// The memory of the host.
    pub total_kib: u64,
    /// What the host has available.
    pub available_kib: u64,
    /// What there is for VMs.
    pub for_vms_kib: u64,
    /// The sum of all targets.
    pub targets_kib: u64,
    /// Kept free for VMs about to start.
    pub reserved_kib: u64,
    /// How much the minima and what cannot be changed exceed what there is.
    pub overcommitted_kib: u64,
    /// `some avg10` of the host's memory pressure, in thousandths.
    pub psi_some_permille: u32,
    /// `full avg10`, in thousandths.
    pub psi_full_permille: u32,
    /// The age of the host's figures.
    pub age_ms: u64,
}

/// A VM. What is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VmStatus {
    /// Its name.
    pub name: String,
    /// Its monitor's socket.
    pub socket: String,
    /// What kind of VM it is.
    pub kind: String,
    /// What it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_kib: Option<u64>,
    /// What it should have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_kib: Option<u64>,
    /// What it could not do without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand_kib: Option<u64>,
    /// The same with its buffer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_kib: Option<u64>,
    /// What its guest reports as available.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_kib: Option<u64>,
    /// What it wants in thousandths of what it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure_permille: Option<u64>,
    /// `OK`, `Low` or `Warning`, as Hyper-V says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Its settings in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<SettingsStatus>,
    /// Whether the operator holds it.
    pub held: bool,
    /// What its process takes from the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_kib: Option<u64>,
    /// `some avg10` of the memory pressure of its cgroup, in thousandths; 0 if it has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi_some_permille: Option<u32>,
    /// The age of its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// The age of its guest's report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report_age_ms: Option<u64>,
    /// Whether its figures are too old to act on, or its monitor does not answer.
    #[serde(default)]
    pub stale: bool,
    /// What it gained and lost since the daemon met it.
    #[serde(default)]
    pub moved: MovedStatus,
    /// What it was told last that changed its size, or would have been in a dry run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_action: Option<ActionStatus>,
    /// Why it has the target that it has, in sentences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wrong with its monitor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Why its monitor refused the last target, or does not reach it, in the monitor's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obstacle: Option<String>,
}

/// Sums that only grow, as Hyper-V counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MovedStatus {
    /// What was added, as the sizes that were seen tell.
    pub added_kib: u64,
    /// What was removed, likewise.
    pub removed_kib: u64,
    /// How many times a VM was told to grow.
    pub add_operations: u64,
    /// How many times a VM was told to shrink.
    pub remove_operations: u64,
}

/// A change that a VM was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ActionStatus {
    /// Its number. Later ones have larger numbers.
    pub number: u64,
    /// The VM.
    pub vm: String,
    /// What it had.
    pub from_kib: u64,
    /// What it should have.
    pub to_kib: u64,
    /// The rule that decided, in a sentence.
    pub rule: String,
    /// Why, in sentences, of which the rule is one.
    pub reason: String,
    /// How long ago.
    pub age_ms: u64,
}

/// Settings in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SettingsStatus {
    /// What the VM boots with.
    pub startup_kib: u64,
    /// It never gets less.
    pub minimum_kib: u64,
    /// It never gets more.
    pub maximum_kib: u64,
    /// Memory to have ready, in percent of the demand.
    pub buffer_percent: u32,
    /// How much it counts where memory is short.
    pub weight: u32,
}

/// A reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReservationStatus {
    /// Its number.
    pub id: u64,
    /// Its size.
    pub size_kib: u64,
    /// Whether the memory is free.
    pub ready: bool,
    /// Whether it cannot be had.
    pub impossible: bool,
    /// How it stands, in a sentence.
    pub state: String,
    /// It ends after this time.
    pub ends_in_ms: u64,
}

/// The answer to `explain`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// The VM with its figures.
    pub vm: VmStatus,
    /// Why, as sentences.
    pub sentences: Vec<String>,
}
