//! Watches whether VMs move towards their targets.
//!
//! A VM that does not is *stuck*. If it should grow, what it does not take goes to others, and it
//! is asked again later. If it should shrink, it keeps what it has, since nobody can take that, and
//! counts with all of it: it is given nothing of what others release, so refusing is not rewarded.
//! A single page is no progress.

use crate::pace::dead_band_kib;
use crate::settings::Policy;

/// Progress is a movement of this much at least, or of 1/64 of the way if that is more.
const PROGRESS_KIB: u64 = 4 << 10;
/// The pause before the next try doubles up to this many times the first.
const LONGEST_PAUSE: u64 = 16;

/// Whether a VM moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It does, or need not.
    Well,
    /// It should grow and has not for so long.
    CannotGrow { for_ms: u64 },
    /// It should shrink and has not for so long.
    DoesNotGive { for_ms: u64 },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Course {
    #[default]
    There,
    Up,
    Down,
}

/// What is remembered of a VM's movement.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Watch {
    course: Course,
    /// Its size when it last moved, and when that was.
    mark_kib: u64,
    mark_ms: u64,
    /// It is not asked to grow before this.
    retry_at_ms: Option<u64>,
    pauses: u64,
}

impl Watch {
    /// Takes in the size of a VM that was last told `target_kib`.
    pub(crate) fn observe(
        &mut self,
        actual_kib: u64,
        target_kib: u64,
        now_ms: u64,
        policy: &Policy,
    ) -> Standing {
        let gap = actual_kib.abs_diff(target_kib);
        let course = if gap < dead_band_kib(actual_kib.max(target_kib)) {
            Course::There
        } else if actual_kib < target_kib {
            Course::Up
        } else {
            Course::Down
        };
        let progress = PROGRESS_KIB.max(gap / 64);
        let up = actual_kib.saturating_sub(self.mark_kib) >= progress;
        if let Some(retry_at_ms) = self.retry_at_ms {
            if !up && now_ms < retry_at_ms && course != Course::Down {
                return Standing::CannotGrow { for_ms: now_ms.saturating_sub(self.mark_ms) };
            }
            if up {
                self.pauses = 0;
            }
            self.retry_at_ms = None;
            self.mark(course, actual_kib, now_ms);
            return Standing::Well;
        }
        let moved = match course {
            Course::There => true,
            Course::Up => up,
            Course::Down => self.mark_kib.saturating_sub(actual_kib) >= progress,
        };
        if course != self.course || moved {
            if course == Course::Up && self.course == Course::Up {
                self.pauses = 0;
            }
            self.mark(course, actual_kib, now_ms);
            return Standing::Well;
        }
        let for_ms = now_ms.saturating_sub(self.mark_ms);
        if for_ms < policy.stuck_after_ms {
            return Standing::Well;
        }
        match course {
            Course::There => Standing::Well,
            Course::Down => Standing::DoesNotGive { for_ms },
            Course::Up => {
                self.pauses = self.pauses.saturating_mul(2).clamp(1, LONGEST_PAUSE);
                let pause = policy.retry_after_ms.saturating_mul(self.pauses);
                self.retry_at_ms = Some(now_ms.saturating_add(pause));
                Standing::CannotGrow { for_ms }
            }
        }
    }

    fn mark(&mut self, course: Course, actual_kib: u64, now_ms: u64) {
        (self.course, self.mark_kib, self.mark_ms) = (course, actual_kib, now_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 20;

    fn observe(watch: &mut Watch, actual: u64, target: u64, now_ms: u64) -> Standing {
        watch.observe(actual, target, now_ms, &Policy::default())
    }

    #[test]
    fn a_vm_that_does_not_give_is_stuck_until_it_does() {
        let mut watch = Watch::default();
        assert_eq!(observe(&mut watch, 4 * GIB, GIB, 0), Standing::Well);
        assert_eq!(observe(&mut watch, 4 * GIB, GIB, 19_999), Standing::Well);
        let stuck = |for_ms| Standing::DoesNotGive { for_ms };
        assert_eq!(observe(&mut watch, 4 * GIB, GIB, 20_000), stuck(20_000));
        assert_eq!(observe(&mut watch, 4 * GIB - 4, GIB, 30_000), stuck(30_000));
        assert_eq!(observe(&mut watch, 3 * GIB, GIB, 31_000), Standing::Well);
    }

    #[test]
    fn targets_that_fall_further_do_not_excuse_a_vm() {
        let mut watch = Watch::default();
        for second in 0..20 {
            let standing = observe(&mut watch, 4 * GIB, 3 * GIB - second * 1024, second * 1000);
            assert_eq!(standing, Standing::Well);
        }
        let standing = observe(&mut watch, 4 * GIB, 2 * GIB, 20_000);
        assert_eq!(standing, Standing::DoesNotGive { for_ms: 20_000 });
    }

    #[test]
    fn a_vm_that_cannot_grow_is_asked_again_with_growing_pauses() {
        let mut watch = Watch::default();
        let mut now_ms = 0;
        for pause in [60_000, 120_000, 240_000, 480_000, 960_000, 960_000] {
            assert_eq!(observe(&mut watch, GIB, 2 * GIB, now_ms), Standing::Well);
            now_ms += 20_000;
            assert_ne!(observe(&mut watch, GIB, 2 * GIB, now_ms), Standing::Well);
            // Its share went to others, so its target is its size.
            now_ms += pause;
            assert_ne!(observe(&mut watch, GIB, GIB, now_ms - 1), Standing::Well);
            assert_eq!(observe(&mut watch, GIB, GIB, now_ms), Standing::Well);
        }
    }

    #[test]
    fn growth_after_all_ends_the_pause() {
        let mut watch = Watch::default();
        observe(&mut watch, GIB, 2 * GIB, 0);
        assert_ne!(observe(&mut watch, GIB, 2 * GIB, 20_000), Standing::Well);
        assert_eq!(observe(&mut watch, GIB + GIB / 2, GIB, 21_000), Standing::Well);
    }

    #[test]
    fn a_vm_that_moves_is_not_stuck() {
        let mut watch = Watch::default();
        for second in 0..100 {
            let actual = 4 * GIB - second * (48 << 10) / 2;
            assert_eq!(observe(&mut watch, actual, GIB, second * 1000), Standing::Well);
        }
    }
}
