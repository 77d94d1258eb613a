//! The last minute of each VM.

use std::collections::{BTreeMap, VecDeque};

use balance_host::VmStatus;

/// The seconds that are kept.
pub(crate) const SECONDS: usize = 60;

/// What a VM had in one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) assigned_kib: Option<u64>,
    pub(crate) demand_kib: Option<u64>,
    pub(crate) pressure_permille: Option<u64>,
    pub(crate) resident_kib: Option<u64>,
}

/// The last minute of all VMs that there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past(BTreeMap<String, VecDeque<Moment>>);

impl Past {
    /// Takes in a second. A VM that is gone is forgotten; figures too old to act on leave a gap.
    pub(crate) fn take(&mut self, vms: &[VmStatus]) {
        let mut before = std::mem::take(&mut self.0);
        self.0 = vms
            .iter()
            .map(|vm| {
                let mut moments = before.remove(&vm.name).unwrap_or_default();
                if moments.len() == SECONDS {
                    moments.pop_front();
                }
                moments.push_back(if vm.stale { Moment::default() } else { Moment::of(vm) });
                (vm.name.clone(), moments)
            })
            .collect();
    }

    /// A figure of a VM over the last minute, the oldest first; `None` where it was not known.
    pub(crate) fn of(&self, name: &str, figure: fn(&Moment) -> Option<u64>) -> Vec<Option<u64>> {
        let moments = self.0.get(name).into_iter().flatten();
        let known: Vec<Option<u64>> = moments.map(figure).collect();
        let mut all = vec![None; SECONDS.saturating_sub(known.len())];
        all.extend(known);
        all
    }
}

impl Moment {
    fn of(vm: &VmStatus) -> Self {
        let VmStatus { assigned_kib, demand_kib, pressure_permille, resident_kib, .. } = *vm;
        Self { assigned_kib, demand_kib, pressure_permille, resident_kib }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_kept_and_old_figures_are_a_gap() {
        let mut past = Past::default();
        let vm = |assigned_kib, stale| VmStatus {
            name: "db".to_owned(),
            assigned_kib: Some(assigned_kib),
            stale,
            ..VmStatus::default()
        };
        let sizes = |past: &Past| past.of("db", |moment| moment.assigned_kib);
        past.take(&[vm(1, false)]);
        assert_eq!((sizes(&past).len(), sizes(&past)[58], sizes(&past)[59]), (60, None, Some(1)));
        for size in 0..100 {
            past.take(&[vm(size, size == 99)]);
        }
        assert_eq!(
            (sizes(&past)[0], sizes(&past)[58], sizes(&past)[59]),
            (Some(40), Some(98), None)
        );
        past.take(&[]);
        assert_eq!(sizes(&past), vec![None; 60]);
    }
}
