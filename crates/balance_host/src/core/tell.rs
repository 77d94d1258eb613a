//! Tells the operator what the core knows, in figures and sentences.

use balancer::Account;

use super::{Core, Shown};
use crate::status::{Explanation, HostStatus, SettingsStatus, Status, VmStatus};

pub(super) fn status(core: &Core, now_ms: u64) -> Status {
    Status {
        dry_run: core.dry_run,
        decisions: core.decisions,
        stale_after_ms: core.configuration.policy.stale_after_ms,
        moved: core.history.moved(),
        host: host(core, now_ms),
        vms: core.shown.iter().map(|shown| vm(core, shown, now_ms)).collect(),
        reservations: core.reservations.status(now_ms).collect(),
    }
}

fn host(core: &Core, now_ms: u64) -> HostStatus {
    let (Some(host), Some(account)) = (core.host, core.decision.ordinary) else {
        return HostStatus { zone: "unknown".to_owned(), ..HostStatus::default() };
    };
    let Account { total_kib, targets_kib, reserved_kib, overcommitted_kib } = account;
    HostStatus {
        zone: core.decision.zone.to_string(),
        total_kib: host.value.total_kib,
        available_kib: host.value.available_kib,
        for_vms_kib: total_kib,
        targets_kib,
        reserved_kib,
        overcommitted_kib,
        psi_some_permille: host.value.psi_some_permille,
        psi_full_permille: host.value.psi_full_permille,
        age_ms: host.aged(now_ms).age_ms,
    }
}

fn vm(core: &Core, shown: &Shown, now_ms: u64) -> VmStatus {
    let Shown { input, settings, held, decision } = shown;
    let reading = input.reading.as_ref();
    let process = input.process.as_ref().map(|figures| figures.value.sample);
    let decision = decision.as_ref();
    let report = reading.and_then(|reading| Some(reading.report?.aged(now_ms)));
    let age_ms = reading.map(|reading| reading.actual.aged(now_ms).age_ms);
    let oldest_ms = age_ms.max(report.map(|report| report.age_ms));
    let stale_after_ms = core.configuration.policy.stale_after_ms;
    let (moved, last_action) = core.history.of(&input.name, now_ms);
    let settings = settings.map(|settings| {
        let form = settings.form();
        SettingsStatus {
            startup_kib: form.startup_kib,
            minimum_kib: form.minimum_kib,
            maximum_kib: form.maximum_kib,
            buffer_percent: form.buffer_percent,
            weight: form.weight,
        }
    });
    VmStatus {
        name: input.name.clone(),
        socket: input.socket.clone(),
        kind: input.kind.to_owned(),
        assigned_kib: reading.map(|reading| reading.actual.value),
        target_kib: decision.map(|decision| decision.target_kib),
        demand_kib: decision.and_then(|decision| decision.demand_kib),
        wanted_kib: decision.and_then(|decision| decision.wanted_kib),
        pressure_permille: decision.and_then(|decision| decision.pressure_permille),
        status: decision.and_then(|decision| Some(word(decision.status?).to_owned())),
        settings,
        held: *held,
        available_kib: report.map(|report| report.value.available_kib),
        resident_kib: process.map(|process| process.rss_kib),
        psi_some_permille: process.map(|process| process.psi_some_permille),
        age_ms,
        report_age_ms: report.map(|report| report.age_ms),
        stale: input.link.problem().is_some() || oldest_ms.is_some_and(|ms| ms > stale_after_ms),
        moved,
        last_action,
        reason: decision.map(|decision| decision.reason.to_string()),
        problem: input.link.problem().map(str::to_owned),
        obstacle: input.refusal.clone().or_else(|| reading?.obstacle.clone()),
    }
}

/// Hyper-V's word.
const fn word(status: balancer::Status) -> &'static str {
    match status {
        balancer::Status::Ok => "OK",
        balancer::Status::Low => "Low",
        balancer::Status::Warning => "Warning",
    }
}

pub(super) fn explanation(core: &Core, shown: &Shown, now_ms: u64) -> Explanation {
    let (vm, decision) = (vm(core, shown, now_ms), &core.decision);
    let mut sentences = Vec::new();
    if let Some(problem) = &vm.problem {
        sentences.push(format!("Its monitor does not answer: {problem}."));
    }
    match &vm.reason {
        Some(reason) => sentences.push(reason.clone()),
        None => sentences.push("Nothing is known of its size, so it is left alone.".to_owned()),
    }
    if let Some(obstacle) = &vm.obstacle {
        sentences.push(format!("Its monitor says of the last target: {obstacle}."));
    }
    if let Some(account) = &decision.ordinary {
        sentences.push(format!(
            "The host is in the zone \"{}\": VMs may have {} MiB, and their targets are {} MiB.",
            decision.zone,
            account.total_kib / 1024,
            account.targets_kib / 1024
        ));
    }
    Explanation { vm, sentences }
}
