//! Hyper-V's formula: a VM wants what its guest has committed and the buffer on top, each second.
//!
//! How Hyper-V gets there is not published. Here VMs give at once what they have beyond it and grow
//! into what is free; where there is too little, it is shared by weight, down to the minima. What is
//! not published is as in `balancer`: the reserve of the host, and that changes below a 32nd of the
//! size, or 32 MiB, are left out. A guest that does not report what it has committed counts with
//! what it uses and has swapped out.

use balance_sim::{Policy, View};
use balancer::share::{Claim, Solver};

use super::{MIB, actual_kib, for_vms_kib, grow_as_freed, report, sum_of_sizes_kib, used_kib};

pub(super) struct Formula;

impl Policy for Formula {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        let total_kib = for_vms_kib(view);
        let claims = view.vms.iter().zip(view.unseen).map(|(vm, unseen)| {
            let form = vm.settings.form();
            let wanted_kib = match report(vm) {
                None => actual_kib(vm),
                Some(report) => {
                    let committed_kib = match report.committed {
                        Some(c) => c.reported_kib.saturating_sub(c.ballooned_kib),
                        None => used_kib(&report) + unseen.swapped_kib,
                    };
                    committed_kib + committed_kib * u64::from(form.buffer_percent) / 100
                }
            };
            let upper_kib = wanted_kib.clamp(form.minimum_kib, form.maximum_kib);
            Claim { weight: form.weight, lower_kib: form.minimum_kib, upper_kib }
        });
        let claims: Vec<Claim> = claims.collect();
        let mut solver = Solver::default();
        for ((vm, target), share) in
            view.vms.iter().zip(&mut *targets).zip(solver.solve(total_kib, &claims))
        {
            if share.abs_diff(*target) >= (actual_kib(vm) / 32).max(32 * MIB) {
                *target = *share;
            }
        }
        grow_as_freed(view, total_kib.saturating_sub(sum_of_sizes_kib(view)), targets);
    }
}
