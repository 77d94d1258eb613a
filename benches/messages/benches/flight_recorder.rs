//! The cost of the flight recorder, for each exit of a vCPU and each event of the bus.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use vmbus::protocol::VpIndex;
use vmbus_kvm::Trace;
use vmm::flight_recorder::{Exit, Recorder};

fn flight_recorder(criterion: &mut Criterion) {
    let recorder = Recorder::new(2);
    let mut group = criterion.benchmark_group("flight_recorder");
    let mut port = 0;
    group.bench_function("a vCPU enters the guest and comes out", |bencher| {
        bencher.iter(|| {
            port ^= 1;
            recorder.entering(black_box(1));
            recorder.exited(black_box(1), Exit::PortIn(port));
        });
    });
    group.bench_function("the same exit again", |bencher| {
        bencher.iter(|| {
            recorder.entering(black_box(1));
            recorder.exited(black_box(1), Exit::Serial);
        });
    });
    let mut kicked = false;
    group.bench_function("an event of the bus", |bencher| {
        bencher.iter(|| {
            kicked ^= true;
            recorder.trace(black_box(Trace::Acknowledged { vp: VpIndex::new(0), kicked }));
        });
    });
    group.finish();
}

criterion_group!(benches, flight_recorder);
criterion_main!(benches);
