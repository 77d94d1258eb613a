//! A decision for many VMs on one core: by the `balancer` alone, and by the daemon's core, which takes
//! readings and gives orders. The guests' use of memory changes from second to second.

use std::hint::black_box;

use balance_host::{Configuration, Core, Facts, Link, Reading, Stamped, VmInput};
use balancer::{
    Aged, Balancer, Committed, GuestReport, HostSample, Mode, Policy, Pool, ProcessSample,
    SettingsForm, Vm, VmId, VmSample, VmSettings, Zone,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const COUNTS: [u32; 2] = [1_000, 10_000];

const GIB: u64 = 1 << 20;

/// What there is for VMs, in percent of the mean use, and what the zone then is.
const HOSTS: [(Zone, u64); 3] = [(Zone::Comfort, 200), (Zone::Tight, 115), (Zone::Emergency, 70)];

/// The seconds that are decided in turn. Guests use more and less meanwhile.
const SECONDS: u32 = 64;

/// What a VM uses: between 1 and 3 GiB, on a slope of its own, with a jump at a time of its own.
fn used_kib(vm: u32, second: u32) -> u64 {
    let phase = vm.wrapping_mul(2_654_435_761) >> 8;
    let slope = u64::from((phase.wrapping_add(second * 37)) % 1024);
    let jump = if second.wrapping_add(phase) % SECONDS < 4 { GIB } else { 0 };
    GIB + slope * (GIB / 1024) + jump
}

fn report(vm: u32, second: u32, actual_kib: u64) -> GuestReport {
    let used_kib = used_kib(vm, second).min(actual_kib - GIB / 64);
    let committed = Committed { reported_kib: used_kib + GIB / 4, ballooned_kib: 0 };
    GuestReport {
        actual_kib,
        available_kib: actual_kib - used_kib,
        committed: Some(committed),
        swapped_in_kib: Some(0),
        oom_kills: Some(0),
    }
}

/// A large host, of which VMs may have this many percent of what they use.
fn host(count: u32, percent: u64) -> HostSample {
    let total_kib = u64::from(count) * 16 * GIB;
    HostSample {
        age_ms: 0,
        total_kib,
        available_kib: total_kib,
        cgroup: None,
        limit_kib: Some(u64::from(count) * GIB * 3 / 2 * percent / 100),
        psi_some_permille: 0,
        psi_full_permille: 0,
        swapped_in_kib: 0,
        huge_pages_free_kib: 0,
    }
}

fn policy() -> Policy {
    Policy { host_reserve_kib: Some(0), ..Policy::default() }
}

/// VMs at the given sizes.
fn vms(sizes: &[u64], second: u32) -> Vec<Vm> {
    let vm = |(id, &actual_kib): (u32, &u64)| {
        let form = SettingsForm {
            startup_kib: 2 * GIB,
            minimum_kib: GIB / 2,
            maximum_kib: 8 * GIB,
            buffer_percent: 20,
            weight: 1 + id % 10_000,
        };
        let process = ProcessSample {
            rss_kib: actual_kib,
            swapped_kib: 0,
            cgroup_limit_kib: None,
            psi_some_permille: 0,
        };
        let sample = VmSample {
            actual_kib: Aged { value: actual_kib, age_ms: 100 },
            guest: Some(Aged { value: report(id, second, actual_kib), age_ms: 100 }),
            awaits_report: true,
            process: Some(Aged { value: process, age_ms: 100 }),
        };
        Vm {
            id: VmId(id),
            settings: VmSettings::new(form).expect("they are right"),
            mode: Mode::Automatic,
            pool: Pool::Ordinary,
            sample,
        }
    };
    (0..).zip(sizes).map(vm).collect()
}

/// The samples of some seconds in which every VM follows at once, and the host is in this zone.
fn history(count: u32, host: &HostSample, zone: Zone) -> Vec<Vec<Vm>> {
    let mut balancer = Balancer::new(policy());
    let mut sizes = vec![2 * GIB; usize::try_from(count).expect("it fits")];
    let seconds = (0..SECONDS).map(|second| {
        let vms = vms(&sizes, second);
        let decision = balancer.decide(u64::from(second) * 1000, host, &vms, &[]);
        let decision = decision.expect("they are in order");
        assert!(second == 0 || decision.zone == zone, "{zone} is {} at {second}", decision.zone);
        sizes = decision.vms.iter().map(|vm| vm.target_kib).collect();
        vms
    });
    seconds.collect()
}

fn balancer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    for count in COUNTS {
        for (zone, percent) in HOSTS {
            let host = host(count, percent);
            let history = history(count, &host, zone);
            let mut balancer = Balancer::new(policy());
            let mut seconds = history.iter().cycle();
            let mut now_ms = 0;
            group.bench_function(BenchmarkId::new(zone.to_string(), count), |bencher| {
                bencher.iter(|| {
                    now_ms += 1000;
                    let vms = seconds.next().expect("it has no end");
                    let decision = balancer.decide(now_ms, &host, vms, &[]);
                    black_box(decision.expect("they are in order").vms.len())
                });
            });
        }
    }
    group.finish();
}

/// What the daemon knows of VMs in a second.
fn inputs(count: u32, second: u32, now_ms: u64) -> Vec<VmInput> {
    let input = |vm: u32| {
        let actual_kib = 2 * GIB;
        let reading = Reading {
            facts: Facts { boot_kib: 2 * GIB, maximum_kib: 8 * GIB },
            actual: Stamped { value: actual_kib, at_ms: now_ms },
            report: Some(Stamped { value: report(vm, second, actual_kib), at_ms: now_ms }),
            can_report: true,
            told_kib: None,
            obstacle: None,
        };
        let mut input = VmInput::default();
        input.name = format!("machine-{vm}");
        input.socket = format!("/run/hvb/machine-{vm}.sock");
        input.life = 1;
        input.link = Link::Up;
        input.reading = Some(reading);
        input.is_settled = true;
        input
    };
    (0..count).map(input).collect()
}

fn core(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("core");
    for count in COUNTS {
        let host = host(count, 115);
        let limit_kib = host.limit_kib;
        let configuration =
            Configuration { policy: policy(), limit_kib, ..Configuration::default() };
        let mut core = Core::new(configuration, false);
        let mut second = 0;
        group.bench_function(BenchmarkId::new("tight", count), |bencher| {
            bencher.iter_batched(
                || {
                    second += 1;
                    let now_ms = u64::from(second) * 1000;
                    (now_ms, inputs(count, second % SECONDS, now_ms))
                },
                |(now_ms, inputs)| {
                    let host = Stamped { value: host, at_ms: now_ms };
                    core.decide(now_ms, Some(host), inputs)
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, balancer, core);
criterion_main!(benches);
