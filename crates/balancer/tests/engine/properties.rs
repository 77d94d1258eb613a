//! What holds for all samples.

use balancer::{
    Aged, Balancer, Committed, GuestReport, HostSample, Mode, Policy, Pool, ProcessSample,
    SettingsForm, Vm, VmId, VmSample, VmSettings, Zone,
};
use proptest::prelude::*;

use crate::world::{GIB, form, host, policy, vm_with};

fn settings() -> impl Strategy<Value = VmSettings> {
    let weights = prop_oneof![Just(5000u32), 1u32..=10_000];
    (1..8 * GIB, 0..4 * GIB, 0..16 * GIB, 5u32..200, weights).prop_map(
        |(minimum_kib, startup, maximum, buffer_percent, weight)| {
            let startup_kib = minimum_kib + startup;
            let maximum_kib = startup_kib + maximum;
            let form =
                SettingsForm { startup_kib, minimum_kib, maximum_kib, buffer_percent, weight };
            VmSettings::new(form).unwrap()
        },
    )
}

fn age() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0u64..5_000, 1 => 5_000u64..20_000]
}

fn aged<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Aged<T>> {
    (value, age()).prop_map(|(value, age_ms)| Aged { value, age_ms })
}

fn report() -> impl Strategy<Value = GuestReport> {
    let committed = (0..64 * GIB, 0..16 * GIB);
    let committed = committed
        .prop_map(|(reported_kib, ballooned_kib)| Committed { reported_kib, ballooned_kib });
    let counters = (prop::option::of(0..GIB), prop::option::of(0u64..3));
    (0..16 * GIB, 0..16 * GIB, prop::option::of(committed), counters).prop_map(
        |(actual_kib, available_kib, committed, (swapped_in_kib, oom_kills))| GuestReport {
            actual_kib,
            available_kib,
            committed,
            swapped_in_kib,
            oom_kills,
        },
    )
}

fn process() -> impl Strategy<Value = ProcessSample> {
    (0..16 * GIB, 0..GIB, prop::option::of(0..16 * GIB), 0u32..300).prop_map(
        |(rss_kib, swapped_kib, cgroup_limit_kib, psi_some_permille)| ProcessSample {
            rss_kib,
            swapped_kib,
            cgroup_limit_kib,
            psi_some_permille,
        },
    )
}

fn any_vm() -> impl Strategy<Value = Vm> {
    let sample = (
        aged(1..16 * GIB),
        prop::option::weighted(0.9, aged(report())),
        prop::option::weighted(0.9, aged(process())),
    );
    let held = prop::bool::weighted(0.05);
    (settings(), held, prop::bool::weighted(0.1), sample).prop_map(
        |(settings, held, huge, (actual_kib, guest, process))| Vm {
            id: VmId(0),
            settings,
            mode: if held { Mode::Held } else { Mode::Automatic },
            pool: if huge { Pool::HugePages } else { Pool::Ordinary },
            sample: VmSample { actual_kib, guest, awaits_report: false, process },
        },
    )
}

fn any_vms() -> impl Strategy<Value = Vec<Vm>> {
    prop::collection::vec(any_vm(), 0..8).prop_map(|mut vms| {
        for (n, vm) in (0..).zip(&mut vms) {
            vm.id = VmId(n);
        }
        vms
    })
}

fn any_host() -> impl Strategy<Value = HostSample> {
    (0..40 * GIB, 0u32..150, 0u32..150, 0..16 * GIB).prop_map(
        |(available_kib, psi_some_permille, psi_full_permille, huge_pages_free_kib)| HostSample {
            psi_some_permille,
            psi_full_permille,
            huge_pages_free_kib,
            ..host(available_kib)
        },
    )
}

/// Some decisions in a row.
fn any_history() -> impl Strategy<Value = Vec<(u64, HostSample, Vec<Vm>)>> {
    prop::collection::vec((0u64..40_000, any_host(), any_vms()), 1..6)
}

/// A balancer that has seen `history`, and the time then.
fn after(history: &[(u64, HostSample, Vec<Vm>)]) -> (Balancer, u64) {
    let mut balancer = Balancer::new(Policy::default());
    let mut now_ms = 0;
    for (pause_ms, host, vms) in history {
        now_ms += pause_ms;
        balancer.decide(now_ms, host, vms, &[]).unwrap();
    }
    (balancer, now_ms)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn targets_are_between_minimum_and_maximum(history in any_history()) {
        let mut balancer = Balancer::new(Policy::default());
        let mut now_ms = 0;
        for (pause_ms, host, vms) in &history {
            now_ms += pause_ms;
            let decision = balancer.decide(now_ms, host, vms, &[]).unwrap();
            for (vm, decision) in vms.iter().zip(&decision.vms) {
                let form = vm.settings.form();
                let bounds = form.minimum_kib..=form.maximum_kib;
                prop_assert!(bounds.contains(&decision.target_kib), "{vm:?} {decision:?}");
                prop_assert!(!decision.reason.to_string().is_empty());
            }
        }
    }

    #[test]
    fn targets_together_are_no_more_than_there_is(history in any_history()) {
        let mut balancer = Balancer::new(Policy::default());
        let mut now_ms = 0;
        for (pause_ms, host, vms) in &history {
            now_ms += pause_ms;
            let decision = balancer.decide(now_ms, host, vms, &[]).unwrap();
            for account in [decision.ordinary, decision.huge_pages].into_iter().flatten() {
                let most = account.total_kib + account.overcommitted_kib;
                prop_assert!(account.targets_kib <= most, "{account:?}");
            }
            let sum: u64 = decision.vms.iter().map(|vm| vm.target_kib).sum();
            let accounts = [decision.ordinary, decision.huge_pages];
            let booked: u64 = accounts.iter().flatten().map(|account| account.targets_kib).sum();
            prop_assert_eq!(sum, booked);
        }
    }

    #[test]
    fn more_memory_makes_nobody_poorer(
        history in any_history(), host in any_host(), more in 0..4 * GIB, huge in 0..4 * GIB,
    ) {
        let vms = &history.last().unwrap().2;
        let (mut one, now_ms) = after(&history);
        let mut other = one.clone();
        let richer = HostSample {
            available_kib: host.available_kib + more,
            huge_pages_free_kib: host.huge_pages_free_kib + huge,
            ..host
        };
        let less = one.decide(now_ms + 1000, &host, vms, &[]).unwrap();
        let more = other.decide(now_ms + 1000, &richer, vms, &[]).unwrap();
        for (less, more) in less.vms.iter().zip(&more.vms) {
            prop_assert!(less.target_kib <= more.target_kib, "{less:?} {more:?}");
        }
    }

    #[test]
    fn the_same_samples_give_the_same_decisions(history in any_history()) {
        let (mut one, mut other) = (Balancer::default(), Balancer::default());
        // Working memory that others have used makes no difference.
        let (busy, _) = after(&history);
        drop(busy);
        let mut now_ms = 0;
        for (pause_ms, host, vms) in &history {
            now_ms += pause_ms;
            let one = one.decide(now_ms, host, vms, &[]).unwrap();
            // Forgetting nothing and knowing nothing of the way it came.
            let mut copy = other.clone();
            let copy = copy.decide(now_ms, host, vms, &[]).unwrap();
            prop_assert_eq!(one, copy);
            other.decide(now_ms, host, vms, &[]).unwrap();
        }
    }

    #[test]
    fn what_is_old_or_impossible_never_shrinks_a_vm(history in any_history()) {
        let (mut balancer, now_ms) = after(&history);
        let (_, host, mut vms) = history.last().unwrap().clone();
        let before = balancer.clone().decide(now_ms, &host, &vms, &[]).unwrap().clone();
        for vm in &mut vms {
            match vm.id.0 % 3 {
                0 => vm.sample.actual_kib.age_ms = 10_001,
                1 => vm.sample.actual_kib.value = 0,
                _ => (vm.sample.guest, vm.sample.process) = (None, None),
            }
        }
        // The balancer that has made that decision.
        balancer.decide(now_ms, &host, &history.last().unwrap().2, &[]).unwrap();
        let after = balancer.decide(now_ms + 1000, &host, &vms, &[]).unwrap();
        for (before, after) in before.vms.iter().zip(&after.vms) {
            prop_assert_eq!(before.target_kib, after.target_kib);
        }
    }

    /// In an emergency everybody is level for its weight, or has its minimum, or all it needs.
    #[test]
    fn an_emergency_is_shared_fairly(
        vms in prop::collection::vec((1..4 * GIB, 0..8 * GIB, 1u32..=10_000), 1..8),
        part in 0u64..1000,
    ) {
        let vms: Vec<Vm> = (0..).zip(&vms).map(|(n, (minimum_kib, more, weight))| {
            let (minimum_kib, weight) = (*minimum_kib, *weight);
            let form = SettingsForm { minimum_kib, startup_kib: 4 * GIB, weight, ..form() };
            let used_kib = minimum_kib + more;
            let mut vm = vm_with(n, form, used_kib + used_kib / 8 + 64, used_kib);
            vm.sample.process.as_mut().unwrap().value.rss_kib = 0;
            vm
        }).collect();
        let used = |vm: &Vm| {
            let report = vm.sample.guest.unwrap().value;
            report.actual_kib - report.available_kib
        };
        let minimum = |vm: &Vm| vm.settings.form().minimum_kib;
        let least: u64 = vms.iter().map(minimum).sum();
        let most: u64 = vms.iter().map(used).sum();
        let sum = least + (most - least) * part / 1000;
        let sample = HostSample { total_kib: 128 * GIB, ..host(sum) };
        let mut balancer = Balancer::new(policy());
        let decision = balancer.decide(0, &sample, &vms, &[]).unwrap();
        prop_assert!(most == sum || decision.zone == Zone::Emergency);
        let targets: Vec<u64> = decision.vms.iter().map(|vm| vm.target_kib).collect();
        prop_assert_eq!(targets.iter().sum::<u64>(), sum);
        for (poor, target) in vms.iter().zip(&targets).filter(|(vm, target)| **target < used(vm)) {
            for (rich, other) in vms.iter().zip(&targets).filter(|(vm, kib)| **kib > minimum(vm)) {
                // Taking a KiB from the rich one would leave it poorer than the poor one would
                // become.
                let (poor, rich) = (poor.settings.form().weight, rich.settings.form().weight);
                prop_assert!((target + 1) * u64::from(rich) >= other * u64::from(poor));
            }
        }
    }
}
