//! The host-limit bench: how fast the host resizes a guest that answers at memory speed.
//!
//! It runs the real device, ring, guest memory and worker against a minimal guest, with a KVM VM on
//! the same memory if KVM can be opened, and, in the same run, the bare system calls on the same
//! ranges of identically prepared memory. Each measurement has its own memory and VM. The bare
//! calls run on the device's thread.
//!
//! `cargo run --release -p host_limit -- --json host_limit.json`

mod cpu;
mod floor;
mod guest;
mod host;
mod large;
mod memory;
mod report;
mod scenario;
mod vm;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use page_range::PageRangeSet;

use crate::host::{Host, Usage};
use crate::memory::GuestMemory;
use crate::report::{Report, Rounds, Row};
use crate::scenario::Scenario;

/// Measures the host's share of a resize and compares it with the bare system calls.
#[derive(Debug, Parser)]
struct Options {
    /// MiB of guest memory that is taken and given back, a multiple of 2.
    #[arg(long, default_value_t = 1024)]
    size: u64,
    /// How often to make each measurement; the best one counts.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// The file for all figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Attaches no VM, even if KVM can be opened; this process dirties the memory instead.
    #[arg(long)]
    without_kvm: bool,
    /// Keeps the device's thread and the worker on one CPU each, for a machine that does other
    /// work.
    #[arg(long)]
    pin: bool,
    /// Measures only scenarios whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(options.size % 2 == 0 && options.size > 0, "--size must be a multiple of 2 MiB");
    ensure!(options.size <= memory::MAX_MIB, "--size must be at most {} MiB", memory::MAX_MIB);
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    if options.pin {
        cpu::pin();
    }
    let kvm = if options.without_kvm { Err("not wanted".into()) } else { vm::probe() };
    let mut report = Report::new(options.size, options.rounds, &kvm);
    let scenarios = Scenario::all().filter(|scenario| scenario.name().contains(&options.only));
    for scenario in scenarios {
        let row = measure(scenario, &options, kvm.is_ok())
            .with_context(|| format!("cannot measure {}", scenario.name()))?;
        eprintln!("{}", row.progress());
        report.rows.push(row);
    }
    report.large_return = Some(large::measure(options.rounds)?);
    print!("{report}");
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn measure(scenario: Scenario, options: &Options, with_vm: bool) -> Result<Row> {
    let untouched = || GuestMemory::new(scenario, options.size, with_vm);
    let prepared = || {
        let mut memory = untouched()?;
        memory.prepare().map(|()| memory)
    };
    let mut rounds = Rounds::default();
    let (mut ranges, mut bytes) = (0, 0);
    for _ in 0..options.rounds {
        let memory = untouched()?;
        (ranges, bytes) = (memory.pieces.len() as u64, memory.given().bytes());
        let (shrink, grow) = resize(memory)?;
        rounds.shrink.push(shrink);
        rounds.grow.push(grow);
        rounds.bare.push(floor::one_call_each(&prepared()?)?);
        rounds.best.push(floor::best_calls(&prepared()?)?);
    }
    Ok(Row::new(scenario, ranges, bytes, rounds))
}

/// The guest gives all pieces and gets them back, twice: the first time, before its memory is
/// touched, warms up the host and leaves the memory as it was.
fn resize(mut memory: GuestMemory) -> Result<(Usage, Usage)> {
    let full = memory.ram.pages().len();
    let shrunk = full.saturating_sub(memory.given());
    let mut host = Host::new(&memory)?;
    host.resize(shrunk)?;
    host.resize(full)?;
    // As `vmbus_kvm` does after a while: what is dirtied next is to have huge pages again.
    memory.ram.settle(&PageRangeSet::new());
    memory.prepare()?;
    let shrink = host.resize(shrunk)?;
    let grow = host.resize(full)?;
    drop(host);
    check(&memory)?;
    Ok((shrink, grow))
}

/// Checks that the pages are gone: a bench of something that did not happen is worthless.
fn check(memory: &GuestMemory) -> Result<()> {
    for piece in [memory.pieces.first(), memory.pieces.last()].into_iter().flatten() {
        let word = vmbus::GuestMemory::load_u32(
            &memory::bus_memory(&memory.ram),
            piece.start().gpa(),
            std::sync::atomic::Ordering::Relaxed,
        )?;
        ensure!(word == 0, "pages {piece} were not discarded");
    }
    Ok(())
}
