//! Boots guests again and again, run by `cargo xtask boots`.
//!
//! Each guest is booted to its agent's first word and powered off. The evidence of one that fails
//! (log, console, and the flight recorder or the processors' registers) is printed when it fails.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use e2e::peer::{Machine, Peer, PeerVm};
use e2e::{MIB, Vm, VmConfig};

/// Memory of a guest, in bytes.
const MEMORY: u64 = 320 * MIB;

/// What `--resizes` shrinks a guest to, in bytes.
const SMALL: u64 = 256 * MIB;

/// What to boot.
#[derive(Debug, Parser)]
struct Plan {
    /// How many guests.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Processors of the guests, which take turns.
    #[arg(long, value_delimiter = ',', required = true)]
    cpus: Vec<u32>,
    /// How many guests run at a time.
    #[arg(long, default_value_t = 1)]
    parallel: u32,
    /// The program that runs them.
    #[arg(long, value_enum, default_value = "hvb")]
    vmm: Peer,
    /// How often each guest of `hvb` shrinks and grows back before it is powered off.
    #[arg(long, default_value_t = 0)]
    resizes: u32,
}

/// A boot that has ended.
struct Boot {
    cpus: u32,
    took: Duration,
    ok: bool,
}

fn main() -> ExitCode {
    run(&Plan::parse())
}

fn run(plan: &Plan) -> ExitCode {
    let next = AtomicU32::new(0);
    let boots = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..plan.parallel {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= plan.count {
                        return;
                    }
                    let turn = number as usize % plan.cpus.len();
                    let boot = boot(number, plan, plan.cpus[turn]);
                    let mut boots = boots.lock().expect("no thread panics with it");
                    boots.push(boot);
                    if boots.len() % 10 == 0 {
                        let failed = boots.iter().filter(|boot: &&Boot| !boot.ok).count();
                        println!("{} of {}, {failed} failed", boots.len(), plan.count);
                    }
                }
            });
        }
    });
    let boots = boots.into_inner().expect("no thread panics with it");
    report(plan, &boots);
    if boots.iter().all(|boot| boot.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn boot(number: u32, plan: &Plan, cpus: u32) -> Boot {
    let start = Instant::now();
    let result = match plan.vmm {
        Peer::Hvb => boot_hvb(cpus, plan.resizes),
        Peer::HvBalloon | Peer::VirtioBalloon | Peer::Microvm => boot_qemu(plan.vmm, cpus),
    };
    if let Err(error) = &result {
        let after = start.elapsed().as_secs_f64();
        println!("boot {number} with {cpus} CPUs failed after {after:.1} s: {error:#}");
    }
    Boot { cpus, took: start.elapsed(), ok: result.is_ok() }
}

fn boot_hvb(cpus: u32, resizes: u32) -> Result<()> {
    let config = VmConfig { cpus, memory: MEMORY, ..VmConfig::default() };
    let mut vm = Vm::start(&config)?;
    if resizes > 0 {
        vm.wait_for_driver()?;
    }
    for _ in 0..resizes {
        vm.resize(SMALL)?;
        vm.resize(MEMORY)?;
    }
    vm.power_off()
}

fn boot_qemu(qemu: Peer, cpus: u32) -> Result<()> {
    let machine = Machine {
        cpus,
        boot: MEMORY,
        most: 2 * MEMORY,
        clears: true,
        append: "",
        devices: None,
        group: None,
    };
    let mut vm = PeerVm::start(qemu, machine)?;
    if let Err(error) = vm.agent.wait_up() {
        return Err(error.context(vm.last_words()));
    }
    vm.power_off()
}

fn report(plan: &Plan, boots: &[Boot]) {
    println!("| CPUs | boots | failed | boot and power-off: median, s | longest, s |");
    println!("|---:|---:|---:|---:|---:|");
    let mut kinds = plan.cpus.clone();
    kinds.sort_unstable();
    kinds.dedup();
    for cpus in kinds {
        let of_kind = || boots.iter().filter(move |boot| boot.cpus == cpus);
        let failed = of_kind().filter(|boot| !boot.ok).count();
        let mut times: Vec<f64> =
            of_kind().filter(|boot| boot.ok).map(|boot| boot.took.as_secs_f64()).collect();
        times.sort_unstable_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
        let longest = times.last().copied().unwrap_or(f64::NAN);
        println!("| {cpus} | {} | {failed} | {median:.1} | {longest:.1} |", of_kind().count());
    }
}
