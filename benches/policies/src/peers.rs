//! Policies of others, written anew from their published rules, and the two bounds: a split that
//! never changes, and an oracle.
//!
//! All see the same reports and move the same guests. Where a rule has a figure that users set (a
//! minimum, a maximum, a weight), it is that of the scenario; all other figures are the published
//! defaults.

mod bounds;
mod hyper_v;
mod mom;
mod pi;
mod proxmox;
mod qmemman;

use balance_sim::{Balanced, Policy, Scenario, View};
use balancer::{GuestReport, Vm};

/// A policy by its name, and how to begin with it.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) begin: fn(&Scenario) -> Box<dyn Policy>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ours,
    Split,
    Other,
    Oracle,
}

/// All of them, ours first.
pub(crate) const ALL: [Peer; 8] = [
    Peer { name: "balancer", kind: Kind::Ours, begin: |_| Box::new(Balanced::default()) },
    Peer { name: "oracle", kind: Kind::Oracle, begin: |_| Box::<bounds::Oracle>::default() },
    Peer { name: "static split", kind: Kind::Split, begin: |s| Box::new(bounds::Split::new(s)) },
    Peer { name: "Proxmox", kind: Kind::Other, begin: |_| Box::new(proxmox::AutoBalloon) },
    Peer { name: "oVirt MOM", kind: Kind::Other, begin: |_| Box::<mom::Mom>::default() },
    Peer { name: "qemus PI", kind: Kind::Other, begin: |_| Box::<pi::Controllers>::default() },
    Peer { name: "qmemman", kind: Kind::Other, begin: |_| Box::<qmemman::Qmemman>::default() },
    Peer { name: "Hyper-V", kind: Kind::Other, begin: |_| Box::new(hyper_v::Formula) },
];

const MIB: u64 = 1 << 10;

fn report(vm: &Vm) -> Option<GuestReport> {
    vm.sample.guest.map(|guest| guest.value)
}

/// What a guest says that it uses.
fn used_kib(report: &GuestReport) -> u64 {
    report.actual_kib.saturating_sub(report.available_kib)
}

/// The host's memory without what it needs itself, and without the reserve that `balancer` leaves,
/// for policies that have no published one.
fn for_vms_kib(view: &View<'_>) -> u64 {
    let total_kib = view.host.total_kib;
    let reserve_kib = (total_kib / 20).max(512 * MIB).min(total_kib / 4);
    unreserved_kib(view).saturating_sub(reserve_kib)
}

/// The host's memory without what it needs itself.
fn unreserved_kib(view: &View<'_>) -> u64 {
    let held = view.vms.iter().filter_map(|vm| vm.sample.process).map(|p| p.value.rss_kib);
    view.host.available_kib + held.sum::<u64>()
}

fn actual_kib(vm: &Vm) -> u64 {
    vm.sample.actual_kib.value
}

fn sum_of_sizes_kib(view: &View<'_>) -> u64 {
    view.vms.iter().map(actual_kib).sum()
}

/// Whether this is a second in which a policy with this period acts.
fn is_due(view: &View<'_>, period_s: u64) -> bool {
    view.now_ms.is_multiple_of(period_s * 1000)
}

/// Lets VMs grow only into what is free, the more they want the more: targets above the sizes are
/// lowered in proportion. For policies that free memory first and then give it.
fn grow_as_freed(view: &View<'_>, free_kib: u64, targets: &mut [u64]) {
    let growth = |vm: &Vm, target: u64| target.saturating_sub(actual_kib(vm));
    let all = view.vms.iter().zip(&*targets).map(|(vm, target)| growth(vm, *target));
    let wanted_kib = all.sum::<u64>();
    if wanted_kib <= free_kib {
        return;
    }
    for (vm, target) in view.vms.iter().zip(targets) {
        let grows_kib = u128::from(growth(vm, *target)) * u128::from(free_kib);
        if growth(vm, *target) > 0 {
            let grows_kib = u64::try_from(grows_kib / u128::from(wanted_kib)).unwrap_or(0);
            *target = actual_kib(vm) + grows_kib;
        }
    }
}

/// A figure of a policy that computes with fractions, in KiB.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are far below 2^53, and the conversion saturates"
)]
fn whole(kib: f64) -> u64 {
    kib as u64
}
