//! The controller of qemus/qemu (`docs/ballooning.md`, `src/balloon.py`): one for each VM, which
//! knows nothing of the others.
//!
//! Every 5 s it compares the part of the host that is free with 20 %, and a PI controller (Kp 0.5,
//! Ki 0.05) moves the VM by that part of its maximum. The host's PSI from 10 to 50 % lowers the
//! ceiling towards the minimum. Up to 90 % use of the host the VM keeps what its guest uses. Changes
//! below 128 MiB are left out, except at a limit. Its default minimum is 33 % of the maximum; here it
//! has the scenario's, like all others.

use std::collections::BTreeMap;

use balance_sim::{Policy, View};
use balancer::VmId;

use super::{MIB, actual_kib, is_due, report, used_kib, whole};

const PERIOD_S: u64 = 5;
const FREE: f64 = 0.20;
const FREE_HARD: f64 = 0.10;
const KP: f64 = 0.5;
const KI: f64 = 0.05;
const PSI: (f64, f64) = (10.0, 50.0);
const LEAST_KIB: u64 = 128 * MIB;

#[derive(Default)]
pub(super) struct Controllers(BTreeMap<VmId, f64>);

impl Policy for Controllers {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        if !is_due(view, PERIOD_S) {
            return;
        }
        let free = view.host.available_kib as f64 / view.host.total_kib as f64;
        let psi = f64::from(view.host.psi_some_permille) / 10.0;
        let pressed = ((psi - PSI.0) / (PSI.1 - PSI.0)).clamp(0.0, 1.0);
        for (vm, target) in view.vms.iter().zip(targets) {
            let Some(report) = report(vm) else { continue };
            let form = vm.settings.form();
            let (minimum, maximum) = (form.minimum_kib as f64, form.maximum_kib as f64);
            let highest = maximum - pressed * (maximum - minimum);
            let used = if free < FREE_HARD { 0.0 } else { used_kib(&report) as f64 };
            let lowest = used.max(minimum);
            let now = actual_kib(vm) as f64;

            let integral = self.0.entry(vm.id).or_default();
            let error = FREE - free;
            let next = (*integral + error * PERIOD_S as f64).clamp(-1.0, 1.0);
            let wanted = now - (KP * error + KI * next) * maximum;
            let bounded = wanted.max(lowest).min(highest);
            let at_limit =
                (bounded <= lowest && error > 0.0) || (bounded >= highest && error < 0.0);
            *integral = if at_limit {
                ((now - bounded) / (KI * maximum) - KP * error / KI).clamp(-1.0, 1.0)
            } else {
                next
            };
            let kib = whole(bounded);
            let is_limit = bounded <= lowest || bounded >= highest;
            if kib.abs_diff(*target) >= LEAST_KIB || is_limit {
                *target = kib;
            }
        }
    }
}
