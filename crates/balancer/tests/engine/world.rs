//! Hosts and VMs for tests.

use balancer::{
    Aged, Balancer, Committed, Decision, GuestReport, HostSample, Mode, Policy, Pool,
    ProcessSample, Reservation, SettingsForm, Vm, VmDecision, VmId, VmSample, VmSettings,
};

pub(crate) const MIB: u64 = 1 << 10;
pub(crate) const GIB: u64 = 1 << 20;

/// A host of 64 GiB, of which `available_kib` are available. Its reserve is 0, so sums are easy to
/// see.
pub(crate) fn host(available_kib: u64) -> HostSample {
    HostSample {
        age_ms: 0,
        total_kib: 64 * GIB,
        available_kib,
        cgroup: None,
        limit_kib: None,
        psi_some_permille: 0,
        psi_full_permille: 0,
        swapped_in_kib: 0,
        huge_pages_free_kib: 0,
    }
}

pub(crate) fn policy() -> Policy {
    Policy { host_reserve_kib: Some(0), ..Policy::default() }
}

pub(crate) fn form() -> SettingsForm {
    SettingsForm {
        startup_kib: GIB,
        minimum_kib: GIB / 2,
        maximum_kib: 32 * GIB,
        buffer_percent: 20,
        weight: 5000,
    }
}

/// A VM of `actual_kib`, all of it resident, whose guest uses `used_kib` and has committed no more.
pub(crate) fn vm(id: u32, actual_kib: u64, used_kib: u64) -> Vm {
    vm_with(id, form(), actual_kib, used_kib)
}

pub(crate) fn vm_with(id: u32, form: SettingsForm, actual_kib: u64, used_kib: u64) -> Vm {
    let report = GuestReport {
        actual_kib,
        available_kib: actual_kib - used_kib,
        committed: Some(Committed { reported_kib: 0, ballooned_kib: 0 }),
        swapped_in_kib: None,
        oom_kills: None,
    };
    let process = ProcessSample { rss_kib: actual_kib, ..ProcessSample::default() };
    Vm {
        id: VmId(id),
        settings: VmSettings::new(form).unwrap(),
        mode: Mode::Automatic,
        pool: Pool::Ordinary,
        sample: VmSample {
            actual_kib: Aged { value: actual_kib, age_ms: 0 },
            guest: Some(Aged { value: report, age_ms: 0 }),
            awaits_report: false,
            process: Some(Aged { value: process, age_ms: 0 }),
        },
    }
}

/// The first decision of a balancer that knows nothing yet.
pub(crate) fn first(host: &HostSample, vms: &[Vm]) -> Decision {
    first_with(host, vms, &[])
}

pub(crate) fn first_with(host: &HostSample, vms: &[Vm], wishes: &[Reservation]) -> Decision {
    Balancer::new(policy()).decide(0, host, vms, wishes).unwrap().clone()
}

pub(crate) fn targets(decision: &Decision) -> Vec<u64> {
    decision.vms.iter().map(|vm| vm.target_kib).collect()
}

/// The decision for the only VM.
pub(crate) fn only(host: &HostSample, vm: Vm) -> VmDecision {
    first(host, &[vm]).vms[0]
}
