//! oVirt's Memory Overcommitment Manager (`doc/balloon.rules`, `doc/mom-balloon.conf`).
//!
//! Statistics every 5 s, averaged over ten; the policy every 10 s. While less than 20 % of the host
//! is free, each guest keeps what it uses and 20 % of its size, reduced as the host's free memory
//! is; at 5 % and less it goes below what it uses. Otherwise each guest grows, at least to what it
//! uses and 20 % of its maximum. A step is 5 % of the size, changes of 0.25 % and less are left out.

use std::collections::{BTreeMap, VecDeque};

use balance_sim::{Policy, View};
use balancer::VmId;

use super::{actual_kib, is_due, report};

const STATISTICS_S: u64 = 5;
const PERIOD_S: u64 = 10;
const SAMPLES: usize = 10;
const PRESSURE: f64 = 0.20;
const CRITICAL: f64 = 0.05;
const GUEST_FREE: f64 = 0.20;
const STEP: f64 = 0.05;
const LEAST_STEP: f64 = 0.0025;

#[derive(Default)]
pub(super) struct Mom {
    host_free: Average,
    guests: BTreeMap<VmId, (Average, Average)>,
}

#[derive(Default)]
struct Average(VecDeque<f64>);

impl Average {
    fn add(&mut self, value: u64) {
        self.0.truncate(SAMPLES - 1);
        self.0.push_front(value as f64);
    }

    fn value(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len().max(1) as f64
    }
}

impl Policy for Mom {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        if !is_due(view, STATISTICS_S) {
            return;
        }
        self.host_free.add(view.host.available_kib);
        for (vm, unseen) in view.vms.iter().zip(view.unseen) {
            if report(vm).is_some() {
                let (size, unused) = self.guests.entry(vm.id).or_default();
                size.add(actual_kib(vm));
                unused.add(unseen.free_kib);
            }
        }
        if !is_due(view, PERIOD_S) {
            return;
        }
        let free = self.host_free.value() / view.host.total_kib as f64;
        for (vm, target) in view.vms.iter().zip(targets) {
            let Some((size, unused)) = self.guests.get(&vm.id) else { continue };
            let used = size.value() - unused.value();
            let now = actual_kib(vm) as f64;
            let maximum = vm.settings.form().maximum_kib as f64;
            let wanted = if free < PRESSURE {
                let keeps =
                    if free <= CRITICAL { free - 0.05 } else { GUEST_FREE * free / PRESSURE };
                (now * (1.0 - STEP)).max(used + keeps * now).min(now)
            } else {
                (now * (1.0 + STEP)).min(maximum).max(used + GUEST_FREE * maximum)
            };
            if (wanted - now).abs() > LEAST_STEP * now {
                *target = super::whole(wanted);
            }
        }
    }
}
