//! The host: how much there is for VMs, and how hard the host is pressed.
//!
//! What there is for VMs is what is *behind* their memory now, plus what the host has available,
//! less a reserve for the host itself. If all VMs touched all of their targets, the host would then
//! use up what it has available except for the reserve. Memory that a VM has and never touched is a
//! promise, which is why the sum is over resident memory and not over sizes.
//!
//! Pressure that the host reports (PSI, swapping in) makes the reserve larger, in two steps, each
//! of which ends only when the pressure has fallen to half of what began it.

use core::fmt;

use crate::sample::HostSample;
use crate::settings::{MAX_KIB, Policy};

/// How the VMs' needs relate to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Zone {
    /// Everybody has need and buffer; surplus is taken slowly.
    #[default]
    Comfort,
    /// Needs are met, buffers are not, or the host is under pressure: surplus is taken at once.
    Tight,
    /// Needs are not met: each VM gets a share by weight, never less than its minimum.
    Emergency,
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Comfort => "comfort",
            Self::Tight => "tight",
            Self::Emergency => "emergency",
        })
    }
}

/// How hard the host is pressed, by its own signs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stress {
    #[default]
    None,
    /// Tasks wait for memory, or the host swaps in.
    Some,
    /// The host is thrashing.
    Severe,
}

/// At this `some avg10` the host is pressed: a tenth of the time some task waits.
const SOME_PERMILLE: u32 = 100;
/// At this `full avg10` it thrashes: for a tenth of the time nothing else is done.
const FULL_PERMILLE: u32 = 100;
/// Swapping in less than this between two decisions is left-over, not pressure.
const SWAP_IN_KIB: u64 = 1024;

/// What is remembered of the host.
#[derive(Clone, Debug, Default)]
pub(crate) struct HostState {
    stress: Stress,
    swapped_in_kib: Option<u64>,
    ordinary_kib: Option<u64>,
}

/// What a fresh sample of the host means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostView {
    pub(crate) stress: Stress,
    pub(crate) reserve_kib: u64,
}

impl HostState {
    /// Takes a sample in; `None` if it is too old or impossible.
    pub(crate) fn observe(&mut self, sample: &HostSample, policy: &Policy) -> Option<HostView> {
        let possible = (1..=MAX_KIB).contains(&sample.total_kib)
            && sample.available_kib <= sample.total_kib
            && sample.huge_pages_free_kib <= sample.total_kib;
        if !possible || sample.age_ms > policy.stale_after_ms {
            return None;
        }
        let swapped = self.swapped_in_kib.replace(sample.swapped_in_kib);
        let swapped = sample.swapped_in_kib.saturating_sub(swapped.unwrap_or(u64::MAX));
        self.stress = stress(sample, swapped, self.stress);
        Some(HostView { stress: self.stress, reserve_kib: reserve(sample, policy, self.stress) })
    }

    /// What there is for VMs of ordinary memory, of which `backed_kib` is theirs already.
    ///
    /// The figure falls at once and rises only by an eighth of the reserve or more: if it followed
    /// every small change of the host's caches, so would the targets wherever memory is short.
    pub(crate) fn ordinary_kib(
        &mut self,
        sample: &HostSample,
        view: HostView,
        backed_kib: u64,
    ) -> u64 {
        let room = backed_kib.saturating_add(sample.available_kib);
        // A group may be above a limit that was lowered, so its free room alone would not tell.
        let room = sample.cgroup.map_or(room, |group| room.min(group.room_kib(backed_kib)));
        let room = sample.limit_kib.map_or(room, |limit_kib| room.min(limit_kib));
        let now = room.saturating_sub(view.reserve_kib);
        let steady = match self.ordinary_kib {
            Some(last) if now >= last && now.saturating_sub(last) < view.reserve_kib / 8 => last,
            _ => now,
        };
        self.ordinary_kib = Some(steady);
        steady
    }
}

fn stress(sample: &HostSample, swapped_in_kib: u64, before: Stress) -> Stress {
    let at_least = |some, full, swap| {
        sample.psi_some_permille >= some || sample.psi_full_permille >= full || swap
    };
    let swaps = swapped_in_kib >= SWAP_IN_KIB;
    let severe = |full| sample.psi_full_permille >= full;
    if severe(FULL_PERMILLE) || (before == Stress::Severe && severe(FULL_PERMILLE / 2)) {
        Stress::Severe
    } else if at_least(SOME_PERMILLE, FULL_PERMILLE / 2, swaps)
        || (before >= Stress::Some && at_least(SOME_PERMILLE / 2, FULL_PERMILLE / 4, swaps))
    {
        Stress::Some
    } else {
        Stress::None
    }
}

fn reserve(sample: &HostSample, policy: &Policy, stress: Stress) -> u64 {
    // A limit on the VMs' cgroup leaves the host what is outside of it; the group needs a reserve
    // of its own.
    let total = sample.cgroup.map_or(sample.total_kib, |g| g.limit_kib.min(sample.total_kib));
    let total = sample.limit_kib.map_or(total, |limit_kib| limit_kib.min(total));
    let usual = (total / 20).max(512 << 10).min(total / 4);
    let reserve = policy.host_reserve_kib.unwrap_or(usual);
    match stress {
        Stress::None => reserve,
        Stress::Some => reserve.saturating_add(reserve / 2),
        Stress::Severe => reserve.saturating_mul(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 20;

    fn sample() -> HostSample {
        HostSample {
            age_ms: 0,
            total_kib: 64 * GIB,
            available_kib: 20 * GIB,
            cgroup: None,
            limit_kib: None,
            psi_some_permille: 0,
            psi_full_permille: 0,
            swapped_in_kib: 0,
            huge_pages_free_kib: 0,
        }
    }

    fn observe(state: &mut HostState, sample: &HostSample) -> HostView {
        state.observe(sample, &Policy::default()).unwrap()
    }

    #[test]
    fn the_reserve_is_a_twentieth_between_bounds() {
        let reserve = |total_kib| {
            observe(
                &mut HostState::default(),
                &HostSample { total_kib, available_kib: 0, ..sample() },
            )
            .reserve_kib
        };
        assert_eq!(reserve(200 * GIB), 10 * GIB);
        assert_eq!(reserve(4 * GIB), GIB / 2);
        assert_eq!(reserve(GIB), GIB / 4);
    }

    #[test]
    fn what_there_is_counts_resident_memory_and_what_is_available() {
        let mut state = HostState::default();
        let view = observe(&mut state, &sample());
        assert_eq!(state.ordinary_kib(&sample(), view, 30 * GIB), 50 * GIB - view.reserve_kib);
    }

    #[test]
    fn a_lowered_limit_of_the_cgroup_is_obeyed_at_once() {
        let mut state = HostState::default();
        let mut limit = CgroupLimitOf(40).sample();
        let view = observe(&mut state, &limit);
        assert_eq!(view.reserve_kib, 2 * GIB);
        // 30 GiB are in use, of which 2 can be taken back.
        assert_eq!(state.ordinary_kib(&limit, view, 28 * GIB), 38 * GIB);
        limit = CgroupLimitOf(30).sample();
        let view = observe(&mut state, &limit);
        assert_eq!(state.ordinary_kib(&limit, view, 28 * GIB), 30 * GIB - view.reserve_kib);
    }

    #[test]
    fn the_operator_s_limit_is_for_vms_and_reserve_together() {
        let mut state = HostState::default();
        let limited = HostSample { limit_kib: Some(40 * GIB), ..sample() };
        let view = observe(&mut state, &limited);
        assert_eq!(view.reserve_kib, 2 * GIB);
        assert_eq!(state.ordinary_kib(&limited, view, 30 * GIB), 38 * GIB);
        let far = HostSample { limit_kib: Some(400 * GIB), ..sample() };
        let view = observe(&mut state, &far);
        assert_eq!(state.ordinary_kib(&far, view, 30 * GIB), 50 * GIB - view.reserve_kib);
    }

    struct CgroupLimitOf(u64);

    impl CgroupLimitOf {
        fn sample(&self) -> HostSample {
            let cgroup = crate::sample::CgroupLimit {
                limit_kib: self.0 * GIB,
                current_kib: 30 * GIB,
                reclaimable_kib: 2 * GIB,
            };
            HostSample { cgroup: Some(cgroup), ..sample() }
        }
    }

    #[test]
    fn pressure_enlarges_the_reserve_until_it_has_halved() {
        let mut state = HostState::default();
        let mut at = |some, full| {
            let sample =
                HostSample { psi_some_permille: some, psi_full_permille: full, ..sample() };
            observe(&mut state, &sample).stress
        };
        assert_eq!(at(99, 0), Stress::None);
        assert_eq!(at(100, 0), Stress::Some);
        assert_eq!(at(50, 0), Stress::Some);
        assert_eq!(at(0, 100), Stress::Severe);
        assert_eq!(at(0, 50), Stress::Severe);
        assert_eq!(at(0, 49), Stress::Some);
        assert_eq!(at(49, 0), Stress::None);
    }

    #[test]
    fn swapping_in_is_pressure_but_not_what_was_swapped_before() {
        let mut state = HostState::default();
        let mut at =
            |kib| observe(&mut state, &HostSample { swapped_in_kib: kib, ..sample() }).stress;
        assert_eq!(at(1 << 30), Stress::None);
        assert_eq!(at((1 << 30) + SWAP_IN_KIB), Stress::Some);
        assert_eq!(at((1 << 30) + SWAP_IN_KIB), Stress::None);
    }

    #[test]
    fn small_rises_do_not_count_and_falls_do() {
        let mut state = HostState::default();
        let view = observe(&mut state, &sample());
        let mut with = |kib| state.ordinary_kib(&sample(), view, kib);
        let first = with(30 * GIB);
        assert_eq!(with(30 * GIB + view.reserve_kib / 8 - 1), first);
        assert_eq!(with(30 * GIB - 1), first - 1);
        assert_eq!(with(30 * GIB + view.reserve_kib / 8), first + view.reserve_kib / 8);
    }

    #[test]
    fn impossible_and_old_samples_are_refused() {
        let refused = |sample: HostSample| {
            HostState::default().observe(&sample, &Policy::default()).is_none()
        };
        assert!(refused(HostSample { total_kib: 0, available_kib: 0, ..sample() }));
        assert!(refused(HostSample { available_kib: 65 * GIB, ..sample() }));
        assert!(refused(HostSample { age_ms: 10_001, ..sample() }));
        assert!(!refused(HostSample { age_ms: 10_000, ..sample() }));
    }
}
