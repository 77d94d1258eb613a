//! The bounds: memory that is split once, and an oracle that knows what each guest will need in the
//! next second.

use balance_sim::{Policy, Scenario, View};
use balancer::Vm;
use balancer::share::{Claim, Solver};

use super::for_vms_kib;

/// Equal parts for all VMs of the scenario, within minimum and maximum, those that have not started
/// included; never changed.
pub(super) struct Split {
    claims: Vec<Claim>,
    shares: Vec<u64>,
}

impl Split {
    pub(super) fn new(scenario: &Scenario) -> Self {
        let groups = scenario.groups.iter();
        let claims = groups.flat_map(|group| {
            let form = group.settings.form();
            let (lower_kib, upper_kib) = (form.minimum_kib, form.maximum_kib);
            (0..group.count).map(move |_| Claim { weight: 1, lower_kib, upper_kib })
        });
        Self { claims: claims.collect(), shares: Vec::new() }
    }
}

impl Policy for Split {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        if self.shares.is_empty() {
            self.shares = Solver::default().solve(for_vms_kib(view), &self.claims).to_vec();
        }
        for (vm, target) in view.vms.iter().zip(targets) {
            if let Some(share) = self.shares.get(vm.id.0 as usize) {
                *target = *share;
            }
        }
    }
}

/// Gives each guest what it will need in the next second, then buffers, and keeps the rest free, so
/// that it is there for whoever needs it next. Of others' memory it counts on what they can give in
/// a second, which it knows too. It cares for nothing but unmet demand: not for caches, nor for the
/// number of changes.
#[derive(Default)]
pub(super) struct Oracle(Solver);

impl Policy for Oracle {
    fn foresees(&self) -> bool {
        true
    }

    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        let within = |vm: &Vm, kib: u64| {
            kib.clamp(vm.settings.form().minimum_kib, vm.settings.form().maximum_kib)
        };
        let all = || view.vms.iter().zip(view.unseen);
        let needs = all().map(|(vm, unseen)| Claim {
            weight: vm.settings.form().weight,
            lower_kib: within(vm, unseen.next_least_kib),
            upper_kib: within(vm, unseen.next_need_kib),
        });
        let total_kib = for_vms_kib(view);
        let needed = self.0.solve(total_kib, &needs.collect::<Vec<_>>()).to_vec();
        let buffers = all().zip(&needed).map(|((vm, unseen), need)| {
            let most_kib = within(vm, unseen.next_need_kib + unseen.next_need_kib / 5);
            let upper_kib = most_kib.saturating_sub(*need);
            Claim { weight: vm.settings.form().weight, lower_kib: 0, upper_kib }
        });
        let left_kib = total_kib.saturating_sub(needed.iter().sum());
        let buffers = self.0.solve(left_kib, &buffers.collect::<Vec<_>>());
        for ((target, need), buffer) in targets.iter_mut().zip(&needed).zip(buffers) {
            *target = need + buffer;
        }
    }
}
