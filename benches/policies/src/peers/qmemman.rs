//! Qubes' memory manager (`doc/qmemman`, `qubes/qmemman/algo.py`).
//!
//! A guest reports when its use has changed by 30 MB. It then prefers 130 % of what it uses and has
//! swapped out, at least 200 MiB. If there is enough for all, everything is shared in proportion to
//! that; if not, those that have more give what they have beyond it, and the others get that in
//! proportion. 50 MB stay free. A change is made if it moves more than 150 MB in all, or gives a
//! guest below its preference more than 15 MB. Guests give first; what they gave is then handed out.

use std::collections::BTreeMap;

use balance_sim::{Policy, View};
use balancer::VmId;

use super::{
    MIB, actual_kib, grow_as_freed, report, sum_of_sizes_kib, unreserved_kib, used_kib, whole,
};

const REPORT_KIB: u64 = 30 * MIB;
const PREFERS: f64 = 1.3;
const LEAST_PREFERRED_KIB: f64 = 200.0 * MIB as f64;
const LEFT_KIB: u64 = 50 * MIB;
const LEAST_IN_ALL_KIB: u64 = 150 * MIB;
const LEAST_IN_NEED_KIB: u64 = 15 * MIB;
const LEAST_GIVEN_KIB: f64 = 10.0 * MIB as f64;
const SAFETY: f64 = 0.999;

#[derive(Default)]
pub(super) struct Qmemman {
    used: BTreeMap<VmId, u64>,
    /// What it decided last and is not there yet.
    wanted: BTreeMap<VmId, u64>,
}

struct Row {
    id: VmId,
    has: f64,
    prefers: f64,
    maximum: f64,
}

impl Policy for Qmemman {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        let mut is_news = false;
        for (vm, unseen) in view.vms.iter().zip(view.unseen) {
            let Some(report) = report(vm) else { continue };
            let now = used_kib(&report) + unseen.swapped_kib;
            let known = self.used.entry(vm.id).or_insert(u64::MAX);
            if known.abs_diff(now) > REPORT_KIB {
                *known = now;
                is_news = true;
            }
        }
        let free_kib = unreserved_kib(view).saturating_sub(sum_of_sizes_kib(view));
        let free_kib = free_kib.saturating_sub(LEFT_KIB);
        if is_news {
            self.balance(view, free_kib as f64);
        }
        for (vm, target) in view.vms.iter().zip(&mut *targets) {
            if let Some(wanted) = self.wanted.get(&vm.id) {
                *target = *wanted;
            }
        }
        grow_as_freed(view, free_kib, targets);
    }
}

impl Qmemman {
    fn balance(&mut self, view: &View<'_>, free: f64) {
        let rows: Vec<Row> = view
            .vms
            .iter()
            .filter_map(|vm| {
                let maximum = vm.settings.form().maximum_kib as f64;
                let used = *self.used.get(&vm.id)? as f64;
                let prefers = (used * PREFERS).min(maximum).max(LEAST_PREFERRED_KIB);
                Some(Row { id: vm.id, has: actual_kib(vm) as f64, prefers, maximum })
            })
            .collect();
        let beyond = free - rows.iter().map(|row| row.prefers - row.has).sum::<f64>();
        let wanted = if beyond > 0.0 { enough(&rows, beyond) } else { too_little(&rows, free) };
        let moves = |row: &Row, to: u64| to.abs_diff(whole(row.has));
        let in_all: u64 = rows.iter().zip(&wanted).map(|(row, to)| moves(row, *to)).sum();
        let in_need = rows.iter().zip(&wanted).any(|(row, to)| {
            row.has < row.prefers && *to as f64 > row.has && moves(row, *to) > LEAST_IN_NEED_KIB
        });
        if in_all > LEAST_IN_ALL_KIB || in_need {
            self.wanted = rows.iter().map(|row| row.id).zip(wanted).collect();
        }
    }
}

/// All is shared in proportion to what is preferred; what exceeds a maximum goes to the others in
/// equal parts.
fn enough(rows: &[Row], beyond: f64) -> Vec<u64> {
    let preferred: f64 = rows.iter().map(|row| row.prefers).sum();
    let mut wanted: Vec<f64> =
        rows.iter().map(|row| SAFETY * (row.prefers + beyond * row.prefers / preferred)).collect();
    loop {
        let mut left = 0.0;
        for (row, wanted) in rows.iter().zip(&mut wanted) {
            left += (*wanted - row.maximum).max(0.0);
            *wanted = wanted.min(row.maximum);
        }
        let open = rows.iter().zip(&wanted).filter(|(row, wanted)| **wanted < row.maximum).count();
        if left < 1.0 || open == 0 {
            return wanted.into_iter().map(whole).collect();
        }
        for (row, wanted) in rows.iter().zip(&mut wanted) {
            if *wanted < row.maximum {
                *wanted += SAFETY * left / open as f64;
            }
        }
    }
}

/// Those that have more than they prefer give it, and the others get it.
fn too_little(rows: &[Row], free: f64) -> Vec<u64> {
    let gives = |row: &Row| row.prefers < row.has || row.has >= row.maximum;
    let surplus = |row: &Row| {
        let kib = row.has - row.prefers;
        if gives(row) && kib >= LEAST_GIVEN_KIB { kib } else { 0.0 }
    };
    let given = free + rows.iter().map(surplus).sum::<f64>();
    let preferred: f64 = rows.iter().filter(|row| !gives(row)).map(|row| row.prefers).sum();
    let wanted = rows.iter().map(|row| {
        if gives(row) {
            row.has - surplus(row)
        } else {
            (SAFETY * (row.has + given * row.prefers / preferred)).min(row.maximum)
        }
    });
    wanted.map(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(has: f64, prefers: f64) -> Row {
        Row { id: VmId(0), has: has * 1e6, prefers: prefers * 1e6, maximum: 8e6 }
    }

    #[test]
    fn plenty_is_shared_in_proportion_up_to_the_maximum() {
        let rows = [row(1.0, 1.0), row(1.0, 3.0)];
        assert_eq!(enough(&rows, 4e6), [1_998_000, 5_994_000]);
        let most = enough(&rows, 12e6);
        assert_eq!(most[1], 8_000_000);
        assert!((7_900_000..8_000_000).contains(&most[0]), "{most:?}");
    }

    #[test]
    fn too_little_goes_from_those_with_more_to_those_with_less() {
        let rows = [row(4.0, 2.0), row(1.0, 2.0), row(1.0, 2.0)];
        assert_eq!(too_little(&rows, 0.0), [2_000_000, 1_998_000, 1_998_000]);
    }
}
