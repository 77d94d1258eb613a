//! Messages per second: `cargo bench -p messages`. criterion prints the times and stores them as
//! JSON in `target/criterion/GROUP/NAME/new/estimates.json` (nanoseconds); `benchmark.json` next to
//! it has the number of messages.

use std::hint::{black_box, spin_loop};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use guest_model::vmbus::Received;
use messages::{
    BALLOON_RESPONSE, Ends, Floor, LINUX_RING, Machine, STATUS_REPORT, Workload, byte_array,
    real_memory, shared_memory,
};
use vmbus::GuestMemory;
use vmbus::ring::Sent;

/// Data pages of a ring that holds enough packets to make the cost of reading the clock negligible.
const LONG_RING: u64 = 32;

const SIZES: [usize; 2] = [STATUS_REPORT, BALLOON_RESPONSE];

type Group<'a> = BenchmarkGroup<'a, WallTime>;

/// Runs both in turn this many times and returns the time of `timed`.
fn time_of<T>(
    rounds: u64,
    ends: &mut T,
    untimed: impl Fn(&mut T),
    timed: impl Fn(&mut T),
    timed_first: bool,
) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..rounds {
        if !timed_first {
            untimed(ends);
        }
        let start = Instant::now();
        timed(ends);
        time += start.elapsed();
        if timed_first {
            untimed(ends);
        }
    }
    time
}

/// Measures rings in one kind of memory: each operation of the host alone, and both ends in turn.
fn ring<M: GuestMemory + Clone>(c: &mut Criterion, memory: &str, mem: &M) {
    for size in SIZES {
        let payload = vec![0x5a; size];
        let name = format!("{memory}/{size}");
        let mut ends = Ends::open(mem, LONG_RING);
        let packets = ends.guest_fills(&payload);
        ends.host_drains();
        let mut group = c.benchmark_group("host receives");
        group.throughput(Throughput::Elements(packets)).bench_function(&name, |b| {
            b.iter_custom(|rounds| {
                let fill = |ends: &mut Ends<M>| assert_eq!(ends.guest_fills(&payload), packets);
                let drain = |ends: &mut Ends<M>| assert_eq!(ends.host_drains(), packets);
                time_of(rounds, &mut ends, fill, drain, false)
            });
        });
        group.finish();
        let mut group = c.benchmark_group("host sends");
        group.throughput(Throughput::Elements(packets)).bench_function(&name, |b| {
            b.iter_custom(|rounds| {
                let fill = |ends: &mut Ends<M>| assert_eq!(ends.host_fills(&payload), packets);
                let drain = |ends: &mut Ends<M>| assert_eq!(ends.guest_drains(), packets);
                time_of(rounds, &mut ends, drain, fill, true)
            });
        });
        group.finish();
        let mut ends = Ends::open(mem, LINUX_RING);
        let packets = ends.guest_fills(&payload);
        ends.host_drains();
        let mut group = c.benchmark_group("guest sends, host receives");
        group.throughput(Throughput::Elements(packets)).bench_function(&name, |b| {
            b.iter(|| (ends.guest_fills(&payload), ends.host_drains()));
        });
        group.finish();
    }
}

/// Measures bare copies, in and out, of messages with descriptor and footer.
fn floor(c: &mut Criterion) {
    for size in SIZES {
        let packet = vec![0x5a; size + 24];
        let mut out = vec![0; packet.len()];
        let mut ring = Floor::new(usize::try_from(LINUX_RING << 12).unwrap_or(0), packet.len());
        let packets = ring.capacity();
        let mut group = c.benchmark_group("guest sends, host receives");
        group.throughput(Throughput::Elements(packets as u64));
        group.bench_function(format!("bare memcpy/{size}"), |b| {
            b.iter(|| {
                for _ in 0..packets {
                    ring.put(black_box(&packet));
                }
                for _ in 0..packets {
                    ring.take(black_box(&mut out));
                }
            });
        });
        group.finish();
    }
}

fn rings(c: &mut Criterion) {
    floor(c);
    ring(c, "byte array", &&byte_array());
    ring(c, "guest RAM", &real_memory());
}

/// Packets in one measured run of two threads.
const RUN: u64 = 1000;

/// Repeats an attempt until it succeeds. Both ends run on their own threads and never sleep; if
/// they share one core, they take turns.
fn spin(mut attempt: impl FnMut() -> bool) {
    let mut tries = 0_u32;
    while !attempt() {
        tries += 1;
        if tries.is_multiple_of(1000) {
            thread::yield_now();
        } else {
            spin_loop();
        }
    }
}

fn guest_to_host<M: GuestMemory + Clone + Send + Sync>(
    ends: &mut Ends<M>,
    payload: &[u8],
    count: u64,
) {
    let Ends { host, guest, .. } = ends;
    thread::scope(|scope| {
        scope.spawn(|| {
            for id in 0..count {
                spin(|| guest.send(payload, id).is_ok());
            }
        });
        for _ in 0..count {
            spin(|| host.receive().expect("the ring is sound").map(black_box).is_some());
        }
    });
    let _ = host.end_receive();
}

fn host_to_guest<M: GuestMemory + Clone + Send + Sync>(
    ends: &mut Ends<M>,
    payload: &[u8],
    count: u64,
) {
    let Ends { host, guest, .. } = ends;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut received = Received::new();
            for _ in 0..count {
                spin(|| guest.receive_into(&mut received));
            }
        });
        for id in 0..count {
            spin(|| matches!(host.send(payload, id), Ok(Sent::Written { .. })));
        }
    });
}

fn two_threads<M: GuestMemory + Clone + Send + Sync>(group: &mut Group<'_>, memory: &str, mem: &M) {
    for size in SIZES {
        let payload = vec![0x5a; size];
        let mut ends = Ends::open(mem, LINUX_RING);
        group.bench_function(BenchmarkId::new(format!("to host, {memory}"), size), |b| {
            b.iter_custom(|runs| {
                let start = Instant::now();
                guest_to_host(&mut ends, &payload, runs * RUN);
                start.elapsed()
            });
        });
        group.bench_function(BenchmarkId::new(format!("to guest, {memory}"), size), |b| {
            b.iter_custom(|runs| {
                let start = Instant::now();
                host_to_guest(&mut ends, &payload, runs * RUN);
                start.elapsed()
            });
        });
    }
}

fn threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("two threads");
    group.throughput(Throughput::Elements(RUN));
    two_threads(&mut group, "shared words", &shared_memory());
    two_threads(&mut group, "guest RAM", &real_memory());
    group.finish();
}

/// Nanoseconds since the first call.
fn nanoseconds() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// The side whose time counts.
#[derive(Clone, Copy)]
enum Side {
    Both,
    Host,
}

const SIDES: [(Side, &str); 2] = [(Side::Both, "both sides"), (Side::Host, "host")];

/// Runs `before` and then `run` this many times; returns the time of `run`.
fn time_of_run<M: GuestMemory + Clone>(
    machine: &mut Machine<M>,
    rounds: u64,
    side: Side,
    before: impl Fn(&mut Machine<M>),
    run: impl Fn(&mut Machine<M>),
) -> Duration {
    let mut time = Duration::ZERO;
    for _ in 0..rounds {
        before(machine);
        machine.host_count = 0;
        let start = Instant::now();
        run(machine);
        time += match side {
            Side::Both => start.elapsed(),
            Side::Host => Duration::from_nanos(machine.host_count),
        };
    }
    time
}

fn status_reports<M: GuestMemory + Clone>(c: &mut Criterion, memory: &str, mem: &M) {
    let mut machine = Machine::new(mem, Workload::LargePages, nanoseconds);
    let mut group = c.benchmark_group("device: status reports");
    group.throughput(Throughput::Elements(RUN));
    for (side, name) in SIDES {
        group.bench_function(format!("{memory}/{name}"), |b| {
            b.iter_custom(|rounds| {
                time_of_run(
                    &mut machine,
                    rounds,
                    side,
                    |_| {},
                    |machine| machine.report_status(RUN),
                )
            });
        });
    }
    group.finish();
}

fn resizes<M: GuestMemory + Clone>(c: &mut Criterion, memory: &str, mem: &M, workload: Workload) {
    let pages = match workload {
        Workload::LargePages => "2 MiB",
        Workload::EveryOtherPage => "every other page",
    };
    let mut machine = Machine::new(mem, workload, nanoseconds);
    let before = machine.to_host;
    machine.shrink();
    let responses = machine.to_host - before;
    let before = machine.to_guest;
    machine.grow();
    let requests = machine.to_guest - before;
    let mut group = c.benchmark_group(format!("device: balloon responses, {pages}"));
    group.sample_size(20).throughput(Throughput::Elements(responses));
    for (side, name) in SIDES {
        group.bench_function(format!("{memory}/{name}"), |b| {
            b.iter_custom(|rounds| {
                let time = time_of_run(&mut machine, rounds, side, grow, shrink);
                machine.grow();
                time
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group(format!("device: unballoon requests, {pages}"));
    group.sample_size(20).throughput(Throughput::Elements(requests));
    for (side, name) in SIDES {
        group.bench_function(format!("{memory}/{name}"), |b| {
            b.iter_custom(|rounds| time_of_run(&mut machine, rounds, side, shrink, grow));
        });
    }
    group.finish();
}

fn shrink<M: GuestMemory + Clone>(machine: &mut Machine<M>) {
    machine.shrink();
}

fn grow<M: GuestMemory + Clone>(machine: &mut Machine<M>) {
    machine.grow();
}

fn device(c: &mut Criterion) {
    status_reports(c, "byte array", &&byte_array());
    status_reports(c, "guest RAM", &real_memory());
    for workload in [Workload::LargePages, Workload::EveryOtherPage] {
        resizes(c, "byte array", &&byte_array(), workload);
        resizes(c, "guest RAM", &real_memory(), workload);
    }
}

criterion_group!(benches, rings, threads, device);
criterion_main!(benches);
