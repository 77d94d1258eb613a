//! How fast a machine starts and how little it takes, run by `cargo xtask bench-startup`: `hvb` and
//! QEMU's `microvm` in turn, each with a disk, a network card and an entropy device.

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::peer::{Machine, Peer, PeerVm};
use e2e::process::{Private, private_bytes};
use e2e::tap::Interface;
use e2e::{MIB, Setup};

const PEERS: [Peer; 2] = [Peer::Hvb, Peer::Microvm];
const MEMORY: u64 = 256 * MIB;

/// How often.
#[derive(Debug, Parser)]
struct Plan {
    /// Starts of each.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

/// One start.
#[derive(Clone, Copy)]
struct Start {
    /// From the start of the process to the first character that the guest's kernel writes.
    kernel: Duration,
    /// To its first process.
    init: Duration,
    /// Memory that only this process has, without the guest's, when the guest is idle.
    private: Private,
}

fn main() -> ExitCode {
    match run(&Plan::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("the measurement failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let disk = directory.path().join("disk.img");
    File::create(&disk)?.set_len(64 * MIB)?;
    let tap = Interface::new("hvbstart0")?;
    let mut starts = PEERS.map(|_| Vec::new());
    for _ in 0..plan.rounds {
        for (peer, starts) in PEERS.into_iter().zip(&mut starts) {
            starts.push(start(peer, &disk, tap.name()).with_context(|| peer.name())?);
        }
    }
    let program = Setup::from_env()?.hvb;
    println!("{} starts of each, medians; {}", plan.rounds, program.display());
    println!(
        "| machine | to the kernel's first word, s | to init, s | private memory: written, MiB | \
         of the program, MiB |"
    );
    println!("|---|---:|---:|---:|---:|");
    for (peer, starts) in PEERS.into_iter().zip(&starts) {
        let median = |figure: fn(&Start) -> f64| {
            let mut figures: Vec<f64> = starts.iter().map(figure).collect();
            figures.sort_unstable_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        println!(
            "| {} | {:.2} | {:.2} | {:.1} | {:.1} |",
            peer.name(),
            median(|it| it.kernel.as_secs_f64()),
            median(|it| it.init.as_secs_f64()),
            median(|it| it.private.written as f64 / MIB as f64),
            median(|it| it.private.clean as f64 / MIB as f64)
        );
    }
    Ok(())
}

fn start(peer: Peer, disk: &Path, tap: &str) -> Result<Start> {
    let machine = Machine {
        cpus: 1,
        boot: MEMORY,
        most: MEMORY,
        clears: true,
        // The kernel's first words, before it has a console.
        append: "earlyprintk=ttyS0,115200 agent.modules=devices",
        devices: Some((disk, tap)),
        group: None,
    };
    let mut vm = PeerVm::start(peer, machine)?;
    let kernel = vm.agent.first_word()?.saturating_duration_since(vm.started);
    vm.agent.wait_up().with_context(|| vm.agent.last_words())?;
    let init = vm.started.elapsed();
    let private = private_bytes(vm.id(), MEMORY)?;
    ensure!(private.written > 0, "no memory");
    vm.power_off()?;
    Ok(Start { kernel, init, private })
}
