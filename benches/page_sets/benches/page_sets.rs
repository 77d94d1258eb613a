//! The same workloads in criterion, for changes to this project's set and for full statistics.
//!
//! All peers share this process, so the `GTree` is measured with the allocator that `G_SLICE` names
//! when the process starts. `PAGE_SETS_SIZE` is the guest's size, 16G by default.

use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use page_sets::peer::Visit;
use page_sets::work::Answers;
use page_sets::{PageSet, Peer, Size, Work};

fn main() {
    let testing = std::env::args().any(|arg| arg == "--test");
    let asked = std::env::var("PAGE_SETS_SIZE").unwrap_or_else(|_| "16G".into());
    let size: Size = if testing { "1G".into() } else { asked }.parse().unwrap_or_else(|error| {
        eprintln!("PAGE_SETS_SIZE: {error}");
        std::process::exit(1);
    });
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(10))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    // `alt1t`, every other page of 1 TiB, is about memory, which criterion does not measure.
    for name in Work::NAMES.into_iter().filter(|&name| name != "alt1t") {
        match Work::new(name, size) {
            Ok(work) => bench(&mut criterion, name, &work),
            Err(error) => eprintln!("{error:#}"),
        }
    }
    criterion.final_summary();
}

fn bench(criterion: &mut Criterion, name: &str, work: &Work) {
    for (i, phase) in work.phases().iter().enumerate() {
        let mut group = criterion.benchmark_group(format!("{name}/{}", phase.name));
        group.sampling_mode(SamplingMode::Flat);
        if phase.ops() > 0 {
            group.throughput(Throughput::Elements(phase.ops()));
        }
        for &peer in peers() {
            group.bench_function(BenchmarkId::from_parameter(peer.name()), |bencher| {
                bencher.iter_custom(|times| {
                    (0..times).map(|_| peer.with(Until { work, phase: i })).sum()
                });
            });
        }
        group.finish();
    }
}

/// The peers that this process can measure.
fn peers() -> &'static [Peer] {
    static PEERS: std::sync::OnceLock<Vec<Peer>> = std::sync::OnceLock::new();
    PEERS.get_or_init(|| {
        let always_malloc = std::env::var("G_SLICE").is_ok_and(|value| value == "always-malloc");
        let other = if always_malloc { Peer::Gtree } else { Peer::GtreeMalloc };
        let glib = page_sets::find_glib().inspect_err(|error| eprintln!("{error:#}")).is_ok();
        let all = Peer::value_variants().iter().copied();
        all.filter(|&peer| peer != other && (glib || !peer.is_glib())).collect()
    })
}

/// Runs all phases up to and including this one, and times the last.
struct Until<'a> {
    work: &'a Work,
    phase: usize,
}

impl Visit for Until<'_> {
    type Output = Duration;

    fn visit<S: PageSet>(self) -> Duration {
        let mut set = S::empty(self.work.pages());
        let mut answers = Answers::default();
        let mut took = Duration::ZERO;
        for phase in self.work.phases().iter().take(self.phase + 1) {
            let begun = Instant::now();
            phase.run(black_box(&mut set), &mut answers);
            took = begun.elapsed();
        }
        black_box(answers);
        took
    }
}
