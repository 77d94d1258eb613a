//! Demand: what a guest could not do without.
//!
//! No single figure tells. A guest's report has two.
//!
//! *Available* is what the guest says it can use without paging. What it has beyond that is *in
//! use*, and that much it needs. But available memory counts the cache as free: on Linux clean page
//! cache, on Windows the standby list, which also holds pages that Windows has just trimmed from
//! programs because memory was short. A squeezed Windows therefore looks as if it had memory to
//! spare, and by available memory alone it would be squeezed further.
//!
//! *Committed* is what the guest has promised to its programs. It does not fall when pages are
//! trimmed or paged out, so it does not have that flaw. But Linux promises freely: a program that
//! reserves 100 GiB and touches one has committed 100. On the other hand a Linux kernel's own
//! memory and the cache are not committed at all. By committed memory alone, one Linux gets far too
//! much and the next too little.
//!
//! So demand is what is in use, plus a part of what is committed beyond that: a quarter while the
//! guest is well, and at most half of what is in use. A guest that is short shows it: it reads from
//! swap, kills processes, or has less than 1/32 available. Then it is using what was promised, and
//! all of that counts, up to as much again as is in use, so one step takes a guest that knows what
//! it needs to where it needs to be. If nothing is committed beyond use, an eighth more counts.
//!
//! What a short guest needed is remembered; otherwise the demand would fall as soon as the guest is
//! well, and it would soon be short again. It is forgotten when the guest uses a quarter less than
//! it did then, or when it has had that much for ten minutes: it was a peak. If it is short again
//! at the same use, it was none, and only less use makes that forgotten.
//!
//! A guest whose use rises counts with what it will use in a second if that goes on: by the time
//! memory is there, the rise has gone on for that long. A demand that falls by less than a
//! sixteenth does not count as fallen; otherwise every breath of one guest would move memory of all,
//! wherever it is short.
//!
//! What is in use is *sure*, and of a guest that is short, or was, a sixteenth more. The rest of a demand is a
//! guess; where there is too little for all, it counts only after what is sure.
//!
//! With no report from the guest, demand is what the host holds for it: resident plus swapped-out
//! memory. Both only grow as the guest touches memory, so a VM without reports grows as it touches
//! memory and its unused memory cannot be found. It is never judged to need less than its startup
//! memory, because it may be booting.

use crate::reason::{Basis, HoldCause};
use crate::sample::{Aged, GuestReport, VmSample};
use crate::settings::{MAX_KIB, Policy, SettingsForm};

/// Reading back less than this between two decisions is no paging.
const SWAP_IN_KIB: u64 = 1024;

/// A rise by less than this part of what is used is no rise that goes on.
const RISE: u64 = 32;
/// A demand that falls by less than this part of it stays.
const FALL: u64 = 16;
/// Two reports must be so far apart to tell how fast the use rises.
const APART_MS: u64 = 500;

/// A demand and what it was judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) kib: u64,
    /// The part of it that is beyond doubt.
    pub(crate) sure_kib: u64,
    pub(crate) basis: Basis,
}

/// What is remembered of a guest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DemandState {
    swapped_in_kib: Option<u64>,
    oom_kills: Option<u64>,
    learned: Option<Learned>,
    /// What was used, and when.
    used: Option<(u64, u64)>,
    /// By how much the use rises in a second.
    rises_kib: u64,
    /// The demand that counted last.
    counted_kib: u64,
}

/// What a guest needed when it was short.
#[derive(Clone, Copy, Debug)]
struct Learned {
    kib: u64,
    /// What it used then.
    used_kib: u64,
    /// Since when it has had what it needed.
    well_since_ms: Option<u64>,
    lesson: Lesson,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lesson {
    /// It may have been a peak.
    First,
    /// It was taken for a peak: `kib` counts no more.
    Dropped,
    /// It happened again.
    Proved,
}

impl DemandState {
    /// Judges a sample.
    pub(crate) fn judge(
        &mut self,
        sample: &VmSample,
        form: &SettingsForm,
        now_ms: u64,
        policy: &Policy,
    ) -> Result<Demand, HoldCause> {
        let size = sample.actual_kib;
        if size.age_ms > policy.stale_after_ms {
            return Err(HoldCause::OldSize { age_ms: size.age_ms });
        }
        if !(1..=MAX_KIB).contains(&size.value) {
            return Err(HoldCause::ImpossibleSize { actual_kib: size.value });
        }
        match sample.guest {
            Some(guest) => {
                let demand = self.judge_report(guest, now_ms, policy)?;
                Ok(Demand { kib: self.steady(demand.kib), ..demand })
            }
            None if sample.awaits_report => Err(HoldCause::NoReportYet),
            None => by_process(sample, form, policy),
        }
    }

    fn judge_report(
        &mut self,
        Aged { value: report, age_ms }: Aged<GuestReport>,
        now_ms: u64,
        policy: &Policy,
    ) -> Result<Demand, HoldCause> {
        if age_ms > policy.stale_after_ms {
            return Err(HoldCause::OldReport { age_ms });
        }
        let GuestReport { actual_kib, available_kib, .. } = report;
        // A guest that uses nothing does not run.
        if available_kib >= actual_kib || actual_kib > MAX_KIB {
            return Err(HoldCause::ImpossibleReport { available_kib, actual_kib });
        }
        let used_kib = actual_kib.saturating_sub(available_kib);
        let committed =
            report.committed.map_or(0, |c| c.reported_kib.saturating_sub(c.ballooned_kib));
        let beyond = committed.saturating_sub(used_kib);

        let rises_kib = self.rise(used_kib, now_ms.saturating_sub(age_ms));
        let pages = self.is_paging(&report);
        let is_short = available_kib < actual_kib / 32;
        if pages || is_short {
            let promised_kib = beyond.max(rises_kib).min(used_kib).max(used_kib / 8);
            let kib = self.learn(used_kib.saturating_add(promised_kib), used_kib);
            let sure_kib = short_sure_kib(used_kib);
            let basis = Basis::Short { used_kib, demand_kib: kib, pages };
            return Ok(Demand { kib, sure_kib, basis });
        }
        let promised_kib = (beyond / 4).min(used_kib / 2);
        let kib = used_kib.saturating_add(promised_kib.max(rises_kib));
        match self.remembered(used_kib, actual_kib, now_ms, policy) {
            Some(was_short_kib) if was_short_kib > kib => Ok(Demand {
                kib: was_short_kib,
                sure_kib: short_sure_kib(used_kib),
                basis: Basis::Remembered { used_kib, was_short_kib },
            }),
            _ if rises_kib > promised_kib => {
                let basis = Basis::Rising { used_kib, rises_kib };
                Ok(Demand { kib, sure_kib: used_kib, basis })
            }
            _ => {
                let basis = Basis::Report { used_kib, promised_kib };
                Ok(Demand { kib, sure_kib: used_kib, basis })
            }
        }
    }

    /// By how much the use rises in a second, at most by as much as is used, if a report of this
    /// time has it at `used_kib`.
    fn rise(&mut self, used_kib: u64, at_ms: u64) -> u64 {
        let (before_kib, before_ms) = *self.used.get_or_insert((used_kib, at_ms));
        let ms = at_ms.saturating_sub(before_ms);
        if ms >= APART_MS {
            let more_kib = used_kib.saturating_sub(before_kib);
            let rises_kib = more_kib.saturating_mul(1000).checked_div(ms).unwrap_or(0);
            self.rises_kib = if rises_kib < used_kib / RISE { 0 } else { rises_kib.min(used_kib) };
            self.used = Some((used_kib, at_ms));
        }
        self.rises_kib
    }

    /// The demand that counts.
    fn steady(&mut self, kib: u64) -> u64 {
        let fell = self.counted_kib.saturating_sub(kib);
        if kib > self.counted_kib || fell >= self.counted_kib / FALL {
            self.counted_kib = kib;
        }
        self.counted_kib
    }

    /// Whether the guest read from swap or killed a process since the last decision. The counters
    /// start anew with the guest.
    fn is_paging(&mut self, report: &GuestReport) -> bool {
        let grew = |last: &mut Option<u64>, now: Option<u64>, by: u64| {
            let before = core::mem::replace(last, now);
            before.zip(now).is_some_and(|(before, now)| now.saturating_sub(before) >= by)
        };
        let swaps = grew(&mut self.swapped_in_kib, report.swapped_in_kib, SWAP_IN_KIB);
        let kills = grew(&mut self.oom_kills, report.oom_kills, 1);
        swaps || kills
    }

    /// Remembers that a guest that used `used_kib` needed `kib`; returns what is known to be
    /// needed.
    fn learn(&mut self, kib: u64, used_kib: u64) -> u64 {
        let (kib, lesson) = match self.learned {
            None => (kib, Lesson::First),
            Some(known) if known.lesson == Lesson::Dropped => (kib.max(known.kib), Lesson::Proved),
            Some(known) => (kib.max(known.kib), known.lesson),
        };
        self.learned = Some(Learned { kib, used_kib, well_since_ms: None, lesson });
        kib
    }

    /// What a guest is known to need that is well now, of `actual_kib`.
    fn remembered(
        &mut self,
        used_kib: u64,
        actual_kib: u64,
        now_ms: u64,
        policy: &Policy,
    ) -> Option<u64> {
        let mut known = self.learned?;
        if used_kib < known.used_kib.saturating_sub(known.used_kib / 4) {
            self.learned = None;
            return None;
        }
        known.well_since_ms =
            (actual_kib >= known.kib).then(|| known.well_since_ms.unwrap_or(now_ms));
        let is_long = |since| now_ms.saturating_sub(since) >= policy.remember_paging_ms;
        if known.lesson == Lesson::First && known.well_since_ms.is_some_and(is_long) {
            known.lesson = Lesson::Dropped;
        }
        self.learned = Some(known);
        (known.lesson != Lesson::Dropped).then_some(known.kib)
    }
}

/// What a guest needs for sure that is short while it uses `used_kib`, or was: with twice as much
/// available as would make it count as short again.
const fn short_sure_kib(used_kib: u64) -> u64 {
    used_kib.saturating_add(used_kib / 16)
}

fn by_process(
    sample: &VmSample,
    form: &SettingsForm,
    policy: &Policy,
) -> Result<Demand, HoldCause> {
    let Some(Aged { value: process, age_ms }) = sample.process else {
        return Err(HoldCause::NothingKnown);
    };
    if age_ms > policy.stale_after_ms {
        return Err(HoldCause::OldProcess { age_ms });
    }
    let held_kib = process.rss_kib.saturating_add(process.swapped_kib);
    // Beyond the VM's size, it is the process's own.
    let held_kib = held_kib.min(sample.actual_kib.value);
    let basis = Basis::HostOnly { held_kib, startup_kib: form.startup_kib };
    let kib = held_kib.max(form.startup_kib);
    Ok(Demand { kib, sure_kib: kib, basis })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Committed, ProcessSample};

    const GIB: u64 = 1 << 20;

    fn report(available_kib: u64, committed_kib: u64) -> GuestReport {
        let committed = Committed { reported_kib: committed_kib, ballooned_kib: 0 };
        GuestReport {
            actual_kib: 8 * GIB,
            available_kib,
            committed: Some(committed),
            swapped_in_kib: None,
            oom_kills: None,
        }
    }

    fn sample(report: GuestReport) -> VmSample {
        let guest = Some(Aged { value: report, age_ms: 0 });
        VmSample {
            actual_kib: Aged { value: 8 * GIB, age_ms: 0 },
            guest,
            awaits_report: false,
            process: None,
        }
    }

    fn judge_at(
        state: &mut DemandState,
        sample: &VmSample,
        now_ms: u64,
    ) -> Result<Demand, HoldCause> {
        state.judge(sample, &SettingsForm::default(), now_ms, &Policy::default())
    }

    fn kib(sample: &VmSample) -> u64 {
        judge_at(&mut DemandState::default(), sample, 0).unwrap().kib
    }

    fn hold(sample: &VmSample) -> HoldCause {
        judge_at(&mut DemandState::default(), sample, 0).unwrap_err()
    }

    #[test]
    fn cache_is_no_demand() {
        assert_eq!(kib(&sample(report(6 * GIB, GIB))), 2 * GIB);
    }

    #[test]
    fn a_quarter_of_what_is_promised_counts() {
        assert_eq!(kib(&sample(report(6 * GIB, 4 * GIB))), 2 * GIB + GIB / 2);
    }

    #[test]
    fn a_linux_that_promises_without_bounds_gets_half_more_at_most() {
        assert_eq!(kib(&sample(report(6 * GIB, 100 * GIB))), 3 * GIB);
    }

    #[test]
    fn ballooned_pages_are_not_committed_by_programs() {
        let mut report = report(6 * GIB, 12 * GIB);
        report.committed = Some(Committed { reported_kib: 12 * GIB, ballooned_kib: 8 * GIB });
        assert_eq!(kib(&sample(report)), 2 * GIB + GIB / 2);
    }

    #[test]
    fn all_that_is_promised_counts_when_the_guest_is_short() {
        // 8 GiB less 128 MiB are in use, and 12 GiB committed.
        assert_eq!(kib(&sample(report(GIB / 8, 12 * GIB))), 12 * GIB);
        let used = 8 * GIB - GIB / 8;
        assert_eq!(kib(&sample(report(GIB / 8, 0))), used + used / 8);
    }

    /// Judges a guest that uses `used_kib` of 8 GiB, by a report of this time.
    fn judged(state: &mut DemandState, used_kib: u64, now_ms: u64, age_ms: u64) -> Demand {
        let mut sample = sample(report(8 * GIB - used_kib, 0));
        sample.guest = sample.guest.map(|guest| Aged { age_ms, ..guest });
        judge_at(state, &sample, now_ms).unwrap()
    }

    #[test]
    fn a_rise_counts_for_another_second() {
        let state = &mut DemandState::default();
        assert_eq!(judged(state, GIB, 0, 0).kib, GIB);
        let rising = judged(state, GIB + GIB / 4, 500, 0);
        assert_eq!(rising.kib, GIB + GIB / 4 + GIB / 2);
        assert_eq!(rising.sure_kib, GIB + GIB / 4);
        let basis = Basis::Rising { used_kib: GIB + GIB / 4, rises_kib: GIB / 2 };
        assert_eq!(rising.basis, basis);
        // The same report again, and a new one in which it has not risen further.
        assert_eq!(judged(state, GIB + GIB / 4, 700, 200), rising);
        assert_eq!(judged(state, GIB + GIB / 4, 1500, 0).kib, GIB + GIB / 4);
        // No more than as much again.
        assert_eq!(judged(state, 3 * GIB, 2000, 0).kib, 6 * GIB);
    }

    #[test]
    fn a_small_rise_and_a_small_fall_are_none() {
        let state = &mut DemandState::default();
        assert_eq!(judged(state, 4 * GIB, 0, 0).kib, 4 * GIB);
        let more = 4 * GIB + GIB / 16;
        assert_eq!(judged(state, more, 1000, 0).kib, more);
        assert_eq!(judged(state, more - more / 16 + 1, 2000, 0).kib, more);
        let less = more - more / 16;
        assert_eq!(judged(state, less, 3000, 0).kib, less);
    }

    #[test]
    fn what_is_in_use_is_sure_and_the_rest_a_guess() {
        let sure = |available_kib, committed_kib| {
            let sample = sample(report(available_kib, committed_kib));
            let demand = judge_at(&mut DemandState::default(), &sample, 0).unwrap();
            (demand.sure_kib, demand.kib)
        };
        assert_eq!(sure(6 * GIB, 4 * GIB), (2 * GIB, 2 * GIB + GIB / 2));
        let used = 8 * GIB - GIB / 8;
        assert_eq!(sure(GIB / 8, 12 * GIB), (used + used / 16, 12 * GIB));
    }

    /// Judges a guest that uses `used_kib` of 8 GiB and has read `swapped` from swap.
    fn paging(state: &mut DemandState, used_kib: u64, swapped: u64, now_ms: u64) -> u64 {
        let mut report = report(8 * GIB - used_kib, 0);
        report.swapped_in_kib = Some(swapped * SWAP_IN_KIB);
        judge_at(state, &sample(report), now_ms).unwrap().kib
    }

    #[test]
    fn paging_and_kills_show_that_a_guest_is_short() {
        for with in [
            |report: &mut GuestReport, n| report.swapped_in_kib = Some(n * SWAP_IN_KIB),
            |report: &mut GuestReport, n| report.oom_kills = Some(n),
        ] {
            let mut state = DemandState::default();
            let mut at = |n| {
                let mut report = report(4 * GIB, 0);
                with(&mut report, n);
                judge_at(&mut state, &sample(report), 0).unwrap().kib
            };
            assert_eq!(at(5), 4 * GIB, "that was before anybody looked");
            assert_eq!(at(6), 4 * GIB + GIB / 2);
        }
    }

    #[test]
    fn a_guest_started_anew_is_not_paging() {
        let state = &mut DemandState::default();
        paging(state, 4 * GIB, 5, 0);
        assert_eq!(paging(state, 4 * GIB, 0, 1), 4 * GIB);
    }

    #[test]
    fn a_shortage_is_remembered_for_ten_minutes_and_the_second_one_for_good() {
        let state = &mut DemandState::default();
        let needed = 4 * GIB + GIB / 2;
        paging(state, 4 * GIB, 0, 0);
        assert_eq!(paging(state, 4 * GIB, 1, 1000), needed);
        assert_eq!(paging(state, 4 * GIB, 1, 2000), needed);
        assert_eq!(paging(state, 4 * GIB, 1, 601_999), needed);
        assert_eq!(paging(state, 4 * GIB, 1, 602_000), 4 * GIB);
        assert_eq!(paging(state, 4 * GIB, 2, 603_000), needed);
        assert_eq!(paging(state, 4 * GIB, 2, 99_000_000), needed);
        assert_eq!(paging(state, 3 * GIB, 2, 99_000_000), needed);
        assert_eq!(paging(state, 3 * GIB - 1, 2, 99_000_000), 3 * GIB - 1);
        assert_eq!(paging(state, 4 * GIB, 2, 99_000_000), 4 * GIB, "forgotten");
    }

    #[test]
    fn a_shortage_that_was_never_ended_is_not_forgotten() {
        let state = &mut DemandState::default();
        paging(state, 7 * GIB, 0, 0);
        // It needs an eighth more than 7 GiB are, and never has 7.9.
        let needed = paging(state, 7 * GIB + GIB / 2, 1, 1000);
        assert!(needed > 8 * GIB);
        assert_eq!(paging(state, 7 * GIB, 1, 99_000_000), needed);
    }

    #[test]
    fn old_and_impossible_figures_are_no_ground_for_a_change() {
        let mut old = sample(report(GIB, GIB));
        old.guest = old.guest.map(|guest| Aged { age_ms: 10_001, ..guest });
        assert_eq!(hold(&old), HoldCause::OldReport { age_ms: 10_001 });

        let mut old = sample(report(GIB, GIB));
        old.actual_kib.age_ms = 10_001;
        assert_eq!(hold(&old), HoldCause::OldSize { age_ms: 10_001 });

        let available_kib = 8 * GIB;
        let cause = HoldCause::ImpossibleReport { available_kib, actual_kib: 8 * GIB };
        assert_eq!(hold(&sample(report(available_kib, GIB))), cause);

        let mut nothing = sample(report(GIB, GIB));
        nothing.actual_kib.value = 0;
        assert_eq!(hold(&nothing), HoldCause::ImpossibleSize { actual_kib: 0 });
    }

    #[test]
    fn a_guest_that_has_not_reported_yet_is_left_as_it_is() {
        let mut sample = sample(report(6 * GIB, GIB));
        sample.awaits_report = true;
        assert_eq!(kib(&sample), 2 * GIB, "it has");
        sample.guest = None;
        let process = ProcessSample { rss_kib: 8 * GIB, ..ProcessSample::default() };
        sample.process = Some(Aged { value: process, age_ms: 0 });
        assert_eq!(hold(&sample), HoldCause::NoReportYet);
    }

    #[test]
    fn without_reports_the_host_s_figures_count() {
        let mut sample = sample(report(GIB, GIB));
        sample.guest = None;
        assert_eq!(hold(&sample), HoldCause::NothingKnown);
        let process =
            |rss_kib, swapped_kib| ProcessSample { rss_kib, swapped_kib, ..Default::default() };
        let mut with = |value, age_ms| {
            sample.process = Some(Aged { value, age_ms });
            judge_at(&mut DemandState::default(), &sample, 0)
        };
        assert_eq!(with(process(3 * GIB, GIB), 0).unwrap().kib, 4 * GIB);
        assert_eq!(with(process(9 * GIB, 0), 0).unwrap().kib, 8 * GIB);
        assert_eq!(with(process(1, 0), 0).unwrap().kib, GIB, "the startup memory");
        assert_eq!(
            with(process(1, 0), 10_001).unwrap_err(),
            HoldCause::OldProcess { age_ms: 10_001 }
        );
    }
}
