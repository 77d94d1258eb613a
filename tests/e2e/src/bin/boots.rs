//! Boots guests again and again, run by `cargo xtask boots`.
//!
//! `boots COUNT CPUS[,CPUS...] PARALLEL`. Each guest is booted to its agent's first word and powered
//! off. The evidence of one that fails (log, console, flight recorder) is printed when it fails.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use e2e::{MIB, Vm, VmConfig};

/// What to boot.
struct Plan {
    count: u32,
    /// Processors of the guests, which take turns.
    cpus: Vec<u32>,
    parallel: u32,
}

/// A boot that has ended.
struct Boot {
    cpus: u32,
    took: Duration,
    ok: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match plan(&arguments) {
        Ok(plan) => run(&plan),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn plan(arguments: &[String]) -> Result<Plan> {
    let [count, cpus, parallel] = arguments else {
        bail!(
            "give the number of boots, of processors and of guests at a time; or run cargo xtask boots"
        )
    };
    let cpus = cpus.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>()?;
    if cpus.is_empty() {
        bail!("give a number of processors");
    }
    Ok(Plan { count: count.parse()?, cpus, parallel: parallel.parse()? })
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
                    let boot = boot(number, plan.cpus[turn]);
                    let mut boots = boots.lock().expect("no thread panics with it");
                    boots.push(boot);
                    if boots.len() % 10 == 0 {
                        println!("{} of {}", boots.len(), plan.count);
                    }
                }
            });
        }
    });
    let boots = boots.into_inner().expect("no thread panics with it");
    report(plan, &boots);
    if boots.iter().all(|boot| boot.ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn boot(number: u32, cpus: u32) -> Boot {
    let start = Instant::now();
    let config = VmConfig { cpus, memory: 320 * MIB, ..VmConfig::default() };
    let mut took = Duration::ZERO;
    let result = Vm::start(&config).and_then(|vm| {
        took = start.elapsed();
        vm.power_off()
    });
    if let Err(error) = &result {
        took = start.elapsed();
        println!(
            "boot {number} with {cpus} CPUs failed after {:.1} s: {error:#}",
            took.as_secs_f64()
        );
    }
    Boot { cpus, took, ok: result.is_ok() }
}

fn report(plan: &Plan, boots: &[Boot]) {
    println!("| CPUs | boots | failed | median, s | longest, s |");
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
