//! The cost of a guest's reports of free pages, for each GiB: from the hypercall's exit to its result, in
//! calls as Linux makes them. Most of it is the kernel's, which frees the pages.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use dynmem_protocol::{GpaPageRange, MEMORY_HEAT_HINT};
use guest_ram::{GuestRam, HugePages, MemoryKind, RamAddressSpace, RamConfig};
use kvm_hyperv::exit::HypervExit;
use page_range::{Gpfn, PageCount, PageRange};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmbus::ServerConfig;
use vmbus::protocol::{ConnectionId, VpIndex};
use vmbus_kvm::{
    Bound, Config, HostBuilder, HostFailure, Machine, MemoryGuard, NoMachine, Platform, Report,
    Supervisor,
};
use vmm_sys_util::eventfd::EventFd;

const GIB: u64 = 1 << 30;
/// Linux reports at most this much in a range, and this many ranges in a call.
const RANGE: u64 = 4 << 20;
const RANGES: u64 = 32;
/// The page of the input; reported memory begins above it.
const INPUT: u64 = 0x1000;
const START: u64 = 1 << 21;

struct NoVm(RamAddressSpace);

impl Platform for NoVm {
    type Memory = RamAddressSpace;

    fn memory(&self) -> MemoryGuard<Self> {
        self.0.memory()
    }

    fn kick(&self, _: VpIndex) {}

    fn raise_sint(&self, _: VpIndex) -> io::Result<()> {
        Ok(())
    }

    fn bind_signal(&self, _: ConnectionId, _: &EventFd) -> io::Result<Bound> {
        Ok(Bound::InKernel)
    }

    fn unbind_signal(&self, _: ConnectionId) {}
}

struct Strict;

impl Supervisor for Strict {
    fn failed(&self, failure: HostFailure) {
        panic!("{failure}");
    }

    fn report(&self, report: Report) {
        panic!("{report}");
    }
}

fn touch(ram: &GuestRam) {
    for page in (START..START + GIB).step_by(4096) {
        ram.memory().write_obj(1_u8, GuestAddress(page)).unwrap();
    }
}

/// Reports 1 GiB.
fn report(machine: &Machine<NoVm>, memory: &RamAddressSpace) {
    let mut at = START;
    while at < START + GIB {
        let memory = memory.memory();
        memory.write_obj(2_u64, GuestAddress(INPUT)).unwrap();
        for index in 0..RANGES {
            let start = Gpfn::new((at + index * RANGE) >> 12).unwrap();
            let range = PageRange::new(start, PageCount::from_bytes(RANGE)).unwrap();
            let word = GpaPageRange::new(range).unwrap().to_wire();
            memory.write_obj(word, GuestAddress(INPUT + 8 + 8 * index)).unwrap();
        }
        let control = u64::from(MEMORY_HEAT_HINT) | RANGES << 32;
        let exit = HypervExit::Hypercall { control, parameters: [INPUT, 0] };
        let result = machine.on_exit(VpIndex::new(0), exit, || None);
        assert_eq!(result, Some(RANGES << 32));
        at += RANGES * RANGE;
    }
}

fn reports(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reports of 1 GiB");
    group.sample_size(10);
    let kinds = [
        ("small pages", MemoryKind::Anonymous, HugePages::Off),
        ("transparent huge pages", MemoryKind::Anonymous, HugePages::Transparent),
        ("a memfd", MemoryKind::Memfd, HugePages::Off),
    ];
    for (name, kind, huge_pages) in kinds {
        let size = PageCount::from_bytes(GIB + (64 << 20));
        let config = RamConfig { size, kind, huge_pages, ..RamConfig::default() };
        let ram = Arc::new(GuestRam::new(&config).unwrap());
        let mut builder = HostBuilder::new(ServerConfig::default(), Strict).unwrap();
        let device = Config { boot_ram: ram.pages().clone(), ..Config::default() };
        let handle = builder.dynamic_memory(device, NoMachine, |_| ()).unwrap();
        handle.report_free_pages(Some(Arc::clone(&ram) as _));
        let host = builder.start().unwrap();
        let machine = host.start_machine(NoVm(ram.address_space())).unwrap();
        let run = |ram: &GuestRam| {
            let begin = Instant::now();
            report(&machine, &ram.address_space());
            begin.elapsed()
        };
        group.bench_function(format!("in use, {name}"), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = Duration::ZERO;
                for _ in 0..rounds {
                    touch(&ram);
                    spent += run(&ram);
                }
                spent
            });
        });
        group.bench_function(format!("reported before, {name}"), |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| run(&ram)).sum());
        });
    }
    group.finish();
}

criterion_group!(benches, reports);
criterion_main!(benches);
