//! Proxmox VE's automatic ballooning (`PVE/AutoBalloon.pm`, `PVE/Service/pvestatd.pm`).
//!
//! Every 10 s the daemon compares what the host uses with 80 % of its memory; what is missing to
//! that, or is too much, is the goal. Within 10 MiB nothing happens. To grow, it takes first the VMs
//! that have no more free memory than a quarter of their minimum, to shrink first the others; if
//! none of these can be moved, all VMs. What they have beyond their minima, changed by the goal, is
//! shared among them by their shares, and each moves towards that by 100 MiB at most.

use balance_sim::{Policy, View};

use super::{actual_kib, is_due, report};

const PERIOD_S: u64 = 10;
const TARGET_PERCENT: i64 = 80;
const DEAD_BAND_KIB: i64 = 10 << 10;
const STEP_KIB: i64 = 100 << 10;
/// Proxmox's shares are 1000 by default, `balancer`'s weight 5000.
const WEIGHT_OF_A_SHARE: i64 = 5;

pub(super) struct AutoBalloon;

struct Row {
    place: usize,
    minimum: i64,
    maximum: i64,
    shares: i64,
    has: i64,
    will_have: i64,
    is_short: bool,
}

impl Policy for AutoBalloon {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        if !is_due(view, PERIOD_S) {
            return;
        }
        let signed = |kib: u64| i64::try_from(kib).unwrap_or(i64::MAX);
        // VMs without a balloon driver that answers are left out.
        let up = view.vms.iter().zip(view.unseen).enumerate();
        let up = up.filter(|(_, (vm, _))| report(vm).is_some());
        let mut rows: Vec<Row> = up
            .map(|(place, (vm, unseen))| {
                let form = vm.settings.form();
                let has = signed(actual_kib(vm));
                Row {
                    place,
                    minimum: signed(form.minimum_kib),
                    maximum: signed(form.maximum_kib),
                    shares: i64::from(form.weight) / WEIGHT_OF_A_SHARE,
                    has,
                    will_have: has,
                    is_short: unseen.free_kib <= form.minimum_kib / 4,
                }
            })
            .collect();
        let total = signed(view.host.total_kib);
        let goal = total * TARGET_PERCENT / 100 - (total - signed(view.host.available_kib));
        if goal.abs() <= DEAD_BAND_KIB {
            return;
        }
        let first = |row: &Row| row.is_short == (goal > 0);
        let left = spread(&mut rows, first, goal);
        if left == goal {
            spread(&mut rows, |_| true, goal);
        }
        for row in rows.iter().filter(|row| row.will_have != row.has) {
            if let (Some(target), Ok(kib)) =
                (targets.get_mut(row.place), u64::try_from(row.will_have))
            {
                *target = kib;
            }
        }
    }
}

/// Changes the VMs that are chosen by `goal` in all, each by a step at most; returns what is left
/// of it.
fn spread(rows: &mut [Row], chosen: impl Fn(&Row) -> bool, goal: i64) -> i64 {
    let mut left = goal;
    let mut open: Vec<&mut Row> = rows.iter_mut().filter(|row| chosen(row)).collect();
    loop {
        let shares = open.iter().map(|row| row.shares).sum::<i64>();
        let beyond = open.iter().map(|row| row.will_have - row.minimum).sum::<i64>() + left;
        let mut moved = 0;
        let mut is_still = true;
        open.retain_mut(|row| {
            let fair = row.minimum + beyond * row.shares / shares.max(1);
            let fair = fair.clamp(row.minimum, row.maximum);
            if fair == row.has || (fair > row.has && goal < 0) {
                return false;
            }
            let will_have = fair.clamp(row.has - STEP_KIB, row.has + STEP_KIB);
            is_still &= will_have == row.will_have;
            moved += will_have - row.will_have;
            row.will_have = will_have;
            true
        });
        left -= moved;
        if is_still || left == 0 {
            return left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: i64 = 1 << 20;

    fn rows() -> Vec<Row> {
        let row = |place, has, is_short| Row {
            place,
            minimum: GIB,
            maximum: 8 * GIB,
            shares: 1000,
            has,
            will_have: has,
            is_short,
        };
        vec![row(0, 2 * GIB, true), row(1, 4 * GIB, false)]
    }

    fn ends(rows: &[Row]) -> [i64; 2] {
        [rows[0].will_have, rows[1].will_have]
    }

    #[test]
    fn a_vm_moves_by_a_step() {
        let mut rows = rows();
        assert_eq!(spread(&mut rows, |row| row.is_short, GIB), GIB - STEP_KIB);
        assert_eq!(ends(&rows), [2 * GIB + STEP_KIB, 4 * GIB]);
        assert_eq!(spread(&mut rows, |row| !row.is_short, -GIB), STEP_KIB - GIB);
        assert_eq!(ends(&rows), [2 * GIB + STEP_KIB, 4 * GIB - STEP_KIB]);
    }

    #[test]
    fn a_vm_above_its_share_gives_even_while_others_grow() {
        let mut rows = rows();
        spread(&mut rows, |_| true, 200 * 1024);
        assert_eq!(ends(&rows), [2 * GIB + STEP_KIB, 4 * GIB - STEP_KIB]);
    }

    #[test]
    fn nobody_leaves_its_limits() {
        let mut rows = rows();
        for row in &mut rows {
            (row.has, row.will_have) = (GIB, GIB);
        }
        assert_eq!(spread(&mut rows, |_| true, -GIB), -GIB);
        assert_eq!(ends(&rows), [GIB, GIB]);
    }
}
