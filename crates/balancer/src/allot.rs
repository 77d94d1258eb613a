//! Shares what there is among the VMs of a pool.
//!
//! Levels are filled one after the other, each by weighted max-min fairness: the minimum and what
//! is needed for sure, the rest of the demand, the buffers, and what VMs have beyond. So a surplus
//! is lost before any buffer, and a buffer before anything that is needed; and where a surplus is
//! cut, the largest for its weight is cut first. Memory that is free goes to what is sure first,
//! too.
//!
//! A VM grows only into memory that nobody has: what others are to give counts as theirs until they
//! have given it. Thus the host is not short while memory moves from one VM to another, and it does
//! not matter if a VM does not give.

use alloc::vec::Vec;

use crate::host::Zone;
use crate::reserve::{self, Reservation, Room};
use crate::row::Row;
use crate::sample::Pool;
use crate::share::{Claim, Solver};

/// The account of a pool after a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// What there is for VMs.
    pub total_kib: u64,
    /// The sum of all targets.
    pub targets_kib: u64,
    /// Kept free for VMs about to start.
    pub reserved_kib: u64,
    /// How much the minima, with what cannot be changed, exceed what there is. If this is not 0,
    /// the sum of targets exceeds it too: no VM goes below its minimum.
    pub overcommitted_kib: u64,
}

/// This part of what there is stays free where nothing but surplus would take it, so that a guest
/// that needs memory finds some. Others give slower than it can take.
const FREE: u64 = 16;

/// Between which bounds a level shares, in KiB.
type Bounds = fn(&Row) -> (u64, u64);

/// Working memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allotment {
    solver: Solver,
    claims: Vec<Claim>,
}

impl Allotment {
    /// Sets the targets of all VMs of `pool`.
    pub(crate) fn allot(
        &mut self,
        pool: Pool,
        total_kib: u64,
        rows: &mut [Row],
        reservations: &[Reservation],
        rooms: &mut [Room],
    ) -> (Account, Zone) {
        let sum = |rows: &[Row], kib: fn(&Row) -> u64| {
            let here = rows.iter().filter(|row| row.pool == pool);
            here.fold(0u64, |sum, row| sum.saturating_add(kib(row)))
        };
        let with_fixed = |kib: fn(&Row) -> u64| {
            let part = rows.iter().filter(|row| row.pool == pool);
            part.fold(0u64, |sum, row| sum.saturating_add(row.fixed_kib.unwrap_or(kib(row))))
        };
        let spare_kib = total_kib.saturating_sub(with_fixed(|row| row.demand_kib));
        let reserved_kib = reserve::book(pool, spare_kib, reservations, rooms);
        let usable_kib = total_kib.saturating_sub(reserved_kib);
        let zone = if with_fixed(|row| row.sure_kib) > usable_kib {
            Zone::Emergency
        } else if with_fixed(|row| row.wanted_kib) > usable_kib {
            Zone::Tight
        } else {
            Zone::Comfort
        };
        let overcommitted_kib = with_fixed(|row| row.minimum_kib).saturating_sub(usable_kib);
        let free_kib = usable_kib.saturating_sub(with_fixed(Row::base_kib));
        let fixed_kib = sum(rows, |row| row.fixed_kib.unwrap_or(0));

        let mut left_kib = usable_kib.saturating_sub(fixed_kib);
        let levels: [Bounds; 4] = [
            |row| (row.minimum_kib, row.sure_kib),
            |row| (0, row.demand_kib.saturating_sub(row.sure_kib)),
            |row| (0, row.wanted_kib.saturating_sub(row.demand_kib)),
            |row| (0, row.keep_kib.saturating_sub(row.wanted_kib)),
        ];
        for row in rows.iter_mut().filter(|row| takes_part(row, pool)) {
            row.share_kib = 0;
        }
        let surplus = levels.len().saturating_sub(1);
        for (n, level) in levels.into_iter().enumerate() {
            let stays_kib = if n == surplus { usable_kib / FREE } else { 0 };
            let there_kib = left_kib.saturating_sub(stays_kib);
            let shared = self.share(pool, there_kib, rows, level, |row, share| {
                row.share_kib = row.share_kib.saturating_add(share);
            });
            left_kib = left_kib.saturating_sub(shared);
        }
        let mut left_kib = free_kib;
        let growths: [Bounds; 2] = [
            |row| (0, row.share_kib.min(row.sure_kib).saturating_sub(row.base_kib())),
            |row| {
                let sure_kib = row.sure_kib.max(row.base_kib());
                (0, row.share_kib.saturating_sub(sure_kib))
            },
        ];
        for row in rows.iter_mut().filter(|row| takes_part(row, pool)) {
            row.target_kib = row.share_kib.min(row.base_kib());
        }
        for growth in growths {
            let shared = self.share(pool, left_kib, rows, growth, |row, share| {
                row.target_kib = row.target_kib.saturating_add(share);
            });
            left_kib = left_kib.saturating_sub(shared);
        }
        for row in rows.iter_mut().filter(|row| takes_part(row, pool)) {
            row.settle();
        }

        let held_kib =
            sum(rows, |row| row.fixed_kib.unwrap_or(0).max(row.target_kib).max(row.actual_kib));
        reserve::settle(pool, total_kib.saturating_sub(held_kib), reservations, rooms);
        let targets_kib = sum(rows, |row| row.target_kib);
        (Account { total_kib, targets_kib, reserved_kib, overcommitted_kib }, zone)
    }

    /// Shares `available_kib` among the VMs that take part; returns the sum of the shares.
    fn share(
        &mut self,
        pool: Pool,
        available_kib: u64,
        rows: &mut [Row],
        bounds: impl Fn(&Row) -> (u64, u64),
        mut give: impl FnMut(&mut Row, u64),
    ) -> u64 {
        self.claims.clear();
        self.claims.extend(rows.iter().filter(|row| takes_part(row, pool)).map(|row| {
            let (lower_kib, upper_kib) = bounds(row);
            Claim { weight: row.weight, lower_kib, upper_kib }
        }));
        let shares = self.solver.solve(available_kib, &self.claims);
        let part = rows.iter_mut().filter(|row| takes_part(row, pool));
        for (row, share) in part.zip(shares) {
            give(row, *share);
        }
        shares.iter().fold(0u64, |sum, share| sum.saturating_add(*share))
    }
}

fn takes_part(row: &Row, pool: Pool) -> bool {
    row.pool == pool && row.fixed_kib.is_none()
}
