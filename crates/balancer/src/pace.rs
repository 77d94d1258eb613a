//! The pace of changes: up at once, down slowly, and not for trifles.
//!
//! A guest that lacks memory suffers now; one that has too much costs only if another lacks it, and
//! then the surplus is taken at once (`decide.rs`). So a surplus is left alone while it is small,
//! and until it has lasted; then half of it is taken in each step. What is left when it is as
//! small as the dead band stays.

use crate::settings::Policy;

/// Changes smaller than this are not worth the guest's work: 1/32 of the size, at least 32 MiB.
pub(crate) fn dead_band_kib(size_kib: u64) -> u64 {
    (size_kib / 32).max(32 << 10)
}

/// The smallest step of a guest that lacks memory, or has to give it up because there is too little:
/// 1/64 of the size.
const fn step_kib(size_kib: u64) -> u64 {
    size_kib / 64
}

/// A guest below its need gets even this little.
const SMALLEST_STEP_KIB: u64 = 4 << 10;

/// The target for a VM that may have `allowed_kib`: the present one if that is hardly more. If it is
/// hardly less, a whole step less, so that the next trifle changes nothing.
pub(crate) fn grow(allowed_kib: u64, current_kib: u64, demand_kib: u64, wanted_kib: u64) -> u64 {
    let half_buffer = wanted_kib.saturating_sub(demand_kib) / 2;
    let is_well = current_kib >= demand_kib.saturating_add(half_buffer);
    let step_kib = step_kib(current_kib);
    let worth = if is_well { dead_band_kib(current_kib) } else { step_kib.max(SMALLEST_STEP_KIB) };
    let more = allowed_kib.saturating_sub(current_kib);
    let less = current_kib.saturating_sub(allowed_kib);
    if more >= worth || less >= step_kib {
        allowed_kib
    } else if less > 0 {
        current_kib.saturating_sub(step_kib)
    } else {
        current_kib
    }
}

/// What a VM may keep of its present size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// There is no surplus worth taking.
    All,
    /// The surplus must last for so long before it is taken.
    AllFor { ms: u64 },
    /// It gives up a part now or has just done so.
    Part { kib: u64 },
}

/// What is remembered of a VM's surplus.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    surplus_since_ms: Option<u64>,
    last_step_ms: Option<u64>,
}

impl Pace {
    /// How much of `current_kib` a VM that wants `wanted_kib` may keep if nobody else needs it.
    pub(crate) fn keep(
        &mut self,
        current_kib: u64,
        wanted_kib: u64,
        now_ms: u64,
        policy: &Policy,
    ) -> Keep {
        let surplus = current_kib.saturating_sub(wanted_kib);
        let band = dead_band_kib(current_kib);
        let begun = self.last_step_ms.is_some();
        let worth = if begun { band } else { band.saturating_mul(2) };
        if surplus < worth {
            *self = Self::default();
            return Keep::All;
        }
        let since = *self.surplus_since_ms.get_or_insert(now_ms);
        let lasted = now_ms.saturating_sub(since);
        if lasted < policy.surplus_lasts_ms {
            return Keep::AllFor { ms: policy.surplus_lasts_ms.saturating_sub(lasted) };
        }
        let is_due = |last| now_ms.saturating_sub(last) >= policy.shrink_period_ms;
        if self.last_step_ms.is_none_or(is_due) {
            self.last_step_ms = Some(now_ms);
            let step = (surplus / 2).max(band).min(surplus);
            return Keep::Part { kib: current_kib.saturating_sub(step) };
        }
        Keep::Part { kib: current_kib }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 20;

    #[test]
    fn a_guest_in_need_grows_in_one_step() {
        assert_eq!(grow(8 * GIB, GIB, 6 * GIB, 7 * GIB), 8 * GIB);
    }

    #[test]
    fn a_guest_that_is_well_is_not_bothered_with_trifles() {
        let band = dead_band_kib(GIB);
        assert_eq!(grow(GIB + band - 1, GIB, GIB / 2, GIB + band - 1), GIB);
        assert_eq!(grow(GIB + band, GIB, GIB / 2, GIB + band), GIB + band);
    }

    #[test]
    fn a_guest_in_need_gets_even_a_little() {
        assert_eq!(grow(GIB + GIB / 64, GIB, GIB, 2 * GIB), GIB + GIB / 64);
        assert_eq!(grow(GIB + GIB / 64 - 1, GIB, GIB, 2 * GIB), GIB);
        let small = GIB / 32;
        let more = small + SMALLEST_STEP_KIB;
        assert_eq!(grow(more, small, small, GIB), more);
    }

    #[test]
    fn what_is_not_allowed_is_never_kept() {
        assert_eq!(grow(GIB - 1, GIB, GIB, GIB), GIB - GIB / 64);
        assert_eq!(grow(GIB / 2, GIB, GIB, GIB), GIB / 2);
    }

    #[test]
    fn where_memory_is_short_a_breath_of_others_changes_nothing() {
        let (demand, wanted) = (2 * GIB, 3 * GIB);
        let mut current = GIB;
        let mut changes = 0;
        // What it may have strays by 1/200, a little below what it has.
        for n in 0..100 {
            let allowed = GIB - GIB / 80 + (n * 7919) % (GIB / 200);
            let target = grow(allowed, current, demand, wanted);
            assert!(target <= allowed);
            changes += u32::from(target != current);
            current = target;
        }
        assert!(changes <= 1, "{changes}");
    }

    #[test]
    fn a_surplus_must_last_and_goes_by_halves() {
        let mut pace = Pace::default();
        let mut at = |current, now_ms| pace.keep(current, 2 * GIB, now_ms, &Policy::default());
        assert_eq!(at(4 * GIB, 100), Keep::AllFor { ms: 30_000 });
        assert_eq!(at(4 * GIB, 30_099), Keep::AllFor { ms: 1 });
        assert_eq!(at(4 * GIB, 30_100), Keep::Part { kib: 3 * GIB });
        assert_eq!(at(3 * GIB, 40_099), Keep::Part { kib: 3 * GIB });
        assert_eq!(at(3 * GIB, 40_100), Keep::Part { kib: 2 * GIB + GIB / 2 });
    }

    #[test]
    fn a_lull_begins_the_wait_anew() {
        let mut pace = Pace::default();
        let mut at = |wanted, now_ms| pace.keep(4 * GIB, wanted, now_ms, &Policy::default());
        assert_eq!(at(2 * GIB, 0), Keep::AllFor { ms: 30_000 });
        assert_eq!(at(4 * GIB, 20_000), Keep::All);
        assert_eq!(at(2 * GIB, 30_000), Keep::AllFor { ms: 30_000 });
    }

    #[test]
    fn a_shrink_begins_at_twice_the_surplus_at_which_it_ends() {
        let band = dead_band_kib(4 * GIB);
        let at = |pace: &mut Pace, surplus, now_ms| {
            pace.keep(4 * GIB, 4 * GIB - surplus, now_ms, &Policy::default())
        };
        assert_eq!(at(&mut Pace::default(), 2 * band - 1, 0), Keep::All);
        let mut begun = Pace::default();
        at(&mut begun, 2 * band, 0);
        assert_eq!(at(&mut begun, 2 * band, 30_000), Keep::Part { kib: 4 * GIB - band });
        assert_eq!(at(&mut begun, band, 40_000), Keep::Part { kib: 4 * GIB - band });
        assert_eq!(at(&mut begun, band - 1, 50_000), Keep::All);
    }
}
