//! The program that `cargo xtask bench-peers` runs: it resizes the same guest under `hvb` and under
//! QEMU's two balloons, and reports the cost of each step.

mod contestant;
mod goals;
mod plot;
mod round;
mod summary;
mod table;
mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::MIB;
use e2e::peer::Peer;
use goals::Goal;
use round::{BOOT, MOST, Round, SMALL, Terms};
use serde::{Deserialize, Serialize};
use summary::Row;

/// The same guest under `hvb` and under QEMU's balloons.
#[derive(Debug, Parser)]
struct Cli {
    /// How often each peer is measured; they take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The peers to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::ALL)]
    peers: Vec<Peer>,
    /// The most seconds a step may take.
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86400))]
    limit: u64,
    /// Boot a kernel that does not clear pages as it allocates them. Debian's kernel clears even
    /// those that it gives away, which takes most of a shrink in an emulated machine.
    #[arg(long)]
    no_clearing: bool,
    /// Keep the rounds that an earlier run wrote to this directory before it was cut off, and
    /// measure the rest.
    #[arg(long)]
    go_on: bool,
    /// The directory for the report.
    #[arg(long)]
    out: PathBuf,
}

/// All results, as `peers.json` contains them.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    work: String,
    /// Rounds that failed and were repeated.
    failed: Vec<String>,
    rows: Vec<Row>,
    goals: Vec<Goal>,
    rounds: Vec<Round>,
}

/// The part of `peers.json` that is reused after an earlier run was cut off.
#[derive(Debug, Default, Deserialize)]
struct Earlier {
    work: String,
    failed: Vec<String>,
    rounds: Vec<Round>,
}

impl Earlier {
    /// Reads the report in `dir`; it must be about the same work.
    fn read(dir: &Path, work: &str) -> Result<Self> {
        let file = dir.join("peers.json");
        let cannot = || format!("cannot go on with {}", file.display());
        let text = fs::read(&file).with_context(cannot)?;
        let earlier: Self = serde_json::from_slice(&text).with_context(cannot)?;
        ensure!(earlier.work == work, "{}: that is of other work: {}", cannot(), earlier.work);
        Ok(earlier)
    }
}

/// The machine that the guests ran on.
#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    processors: usize,
    memory_mib: u64,
    kernel: String,
    transparent_huge_pages: String,
    guest_kernel: String,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let mut peers = cli.peers.clone();
    peers.sort_unstable();
    peers.dedup();
    let machine = Machine::here()?;
    let work = format!(
        "the same Linux guest{}, 2 vCPUs, {} MiB at boot, all of it written: shrunk to {} MiB, given \
         it back, added to until {} MiB; time in seconds until the monitor says so, and until the \
         guest's MemTotal has followed",
        if cli.no_clearing { ", which does not clear pages" } else { "" },
        BOOT / MIB,
        SMALL / MIB,
        MOST / MIB
    );
    println!("{work}");
    let Earlier { failed, rounds, .. } = match cli.go_on {
        true => Earlier::read(&cli.out, &work)?,
        false => Earlier::default(),
    };
    let mut report = Report { machine, work, failed, rows: Vec::new(), goals: Vec::new(), rounds };
    let terms = Terms { limit: Duration::from_secs(cli.limit), clears: !cli.no_clearing };
    for number in 1..=cli.rounds {
        for &peer in &peers {
            let of_peer = report.rounds.iter().filter(|round| round.peer == peer);
            if of_peer.count() >= number as usize {
                continue;
            }
            println!("round {number} of {}: {}", cli.rounds, peer.name());
            let round = measure(peer, terms, &mut report.failed)?;
            println!("  {}", progress(&round));
            report.rounds.push(round);
            // Keep what was measured, even if a later round fails.
            report.write(&cli.out, &peers)?;
        }
    }
    report.write(&cli.out, &peers)?;
    println!("{}", table::table(&report.rows, &peers));
    println!("{NOTES}\n\n{}", table::goals(&report.goals));
    for failed in &report.failed {
        println!("repeated, as it failed: {failed}");
    }
    println!("written: {0}/peers.json and {0}/peers.svg", cli.out.display());
    Ok(())
}

const NOTES: &str = "\
device threads: of hvb `vmbus` and `memory`, of QEMU the main loop. The whole process has the\n\
guest's own work, too. The monitor's threads are left out, and of QEMU's main loop what it takes\n\
to answer the monitor, measured before.";

/// Measures a round, and measures it again if it fails: an emulated machine loses a guest now and
/// then. A second failure is no accident.
fn measure(peer: Peer, terms: Terms, failed: &mut Vec<String>) -> Result<Round> {
    Round::measure(peer, terms).or_else(|error| {
        println!("  failed, and is repeated: {error:#}");
        failed.push(format!("{}: {error:#}", peer.name()));
        Round::measure(peer, terms).with_context(|| peer.name())
    })
}

fn progress(round: &Round) -> String {
    let step = |name: &str, step: &contestant::Step| {
        format!("{name} {:.3} s, MemTotal {:.3} s", step.monitor, step.guest)
    };
    let added = round.add.as_ref().map(|added| step("; hot-add", added)).unwrap_or_default();
    let (shrink, back) = (step("shrink", &round.shrink), step("return", &round.give_back));
    format!("effect after {:.1} s; {shrink}; {back}{added}", round.first_effect)
}

impl Report {
    fn write(&mut self, dir: &Path, peers: &[Peer]) -> Result<()> {
        self.rows = summary::rows(&self.rounds);
        self.goals = goals::goals(&self.rows);
        let cannot = || format!("cannot write to {}", dir.display());
        fs::create_dir_all(dir).with_context(cannot)?;
        let json = serde_json::to_string_pretty(self)?;
        fs::write(dir.join("peers.json"), json + "\n").with_context(cannot)?;
        plot::draw(&dir.join("peers.svg"), &self.rows, peers).with_context(cannot)
    }
}

impl Machine {
    fn here() -> Result<Self> {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
            let line =
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_prefix(':'));
            anyhow::Ok(line.unwrap_or_default().trim().to_owned())
        };
        let kib: u64 = field("/proc/meminfo", "MemTotal")?.trim_end_matches(" kB").parse()?;
        let read = |file| fs::read_to_string(file).map(|text| text.trim().to_owned());
        Ok(Self {
            processor: field("/proc/cpuinfo", "model name")?,
            processors: std::thread::available_parallelism()?.get(),
            memory_mib: kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease")?,
            transparent_huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled")
                .unwrap_or_default(),
            guest_kernel: std::env::var("HVB_PEER_GUEST").unwrap_or_default(),
        })
    }
}
