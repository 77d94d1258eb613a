//! The page set bench: measures each set in its own process, and prints the times, how many times
//! faster than QEMU's tree this project's set is, and the memory that the sets use.

mod goals;
mod measure;
mod report;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use page_sets::heap::Counting;
use page_sets::{Peer, Size, Work};

use measure::Measured;
use report::Report;

#[global_allocator]
static HEAP: Counting = Counting;

/// Compares sets of pages.
#[derive(Debug, Parser)]
struct Cli {
    /// RAM of the guest, such as 16G. QEMU's tree takes 4 GiB and half an hour at 256G.
    #[arg(long, default_value = "16G")]
    size: Size,
    /// The sets to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Peer::value_variants().to_vec())]
    peers: Vec<Peer>,
    /// The workloads to run.
    #[arg(long, value_delimiter = ',', default_values_t = Work::NAMES.map(String::from))]
    works: Vec<String>,
    /// How often to measure each; the fastest time counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Omits the trees with a node for each range.
    #[arg(long)]
    quick: bool,
    /// The processor to measure on.
    #[arg(long, default_value_t = 1)]
    core: usize,
    /// The file for all figures as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measures one peer with one workload and prints JSON; this program runs itself with it.
    #[arg(long, hide = true)]
    child: bool,
}

fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if cli.child {
        return child(&cli);
    }
    let peers: Vec<Peer> =
        cli.peers.iter().copied().filter(|peer| !(cli.quick && peer.is_slow())).collect();
    if peers.iter().any(|peer| peer.is_glib()) {
        page_sets::find_glib()?;
    }
    let mut measured: Vec<Measured> = Vec::new();
    for work in &cli.works {
        for run in 0..cli.runs {
            for &peer in peers.iter().filter(|&&peer| can_do(&cli, peer, work)) {
                eprintln!("{work}: {} ({}/{})", peer.name(), run + 1, cli.runs);
                let new = spawn(&cli, peer, work)?;
                match measured.iter_mut().find(|old| old.is_of(peer, work)) {
                    Some(old) => old.keep_fastest(&new),
                    None => measured.push(new),
                }
            }
        }
        check_answers(&measured, work)?;
    }
    let report = Report::new(cli.size, cli.runs, measured);
    report.print();
    if let Some(path) = &cli.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether to measure the peer: in `alt1t`, a node for each of 134 million ranges takes up to 15
/// GiB, and `roaring` takes minutes to list them.
fn can_do(cli: &Cli, peer: Peer, work: &str) -> bool {
    work != "alt1t" || !(peer.is_slow() || cli.quick && peer == Peer::Roaring)
}

fn child(cli: &Cli) -> Result<ExitCode> {
    let (&[peer], [name]) = (cli.peers.as_slice(), cli.works.as_slice()) else {
        bail!("a child measures one peer at one work");
    };
    measure::pin(cli.core)?;
    let work = Work::new(name, cli.size)?;
    println!("{}", serde_json::to_string(&measure::measure(peer, name, &work))?);
    Ok(ExitCode::SUCCESS)
}

fn spawn(cli: &Cli, peer: Peer, work: &str) -> Result<Measured> {
    let mut command = Command::new(env::current_exe().context("cannot find this program")?);
    let peer_arg = peer.to_possible_value().context("a peer without a name")?;
    command.args(["--child", "--peers", peer_arg.get_name(), "--works", work]);
    command.args(["--size", &cli.size.to_string(), "--core", &cli.core.to_string()]);
    match peer.g_slice() {
        Some(value) => command.env("G_SLICE", value),
        None => command.env_remove("G_SLICE"),
    };
    let output = command.stderr(Stdio::inherit()).output().context("cannot start a process")?;
    if !output.status.success() {
        bail!("{} at {work} failed: {}", peer.name(), output.status);
    }
    serde_json::from_slice(&output.stdout).context("a child printed no figures")
}

/// Peers that give different answers cannot be compared.
fn check_answers(measured: &[Measured], work: &str) -> Result<()> {
    let mut of_work = measured.iter().filter(|measured| measured.work == work);
    let Some(first) = of_work.next() else { return Ok(()) };
    match of_work.find(|other| other.answers != first.answers) {
        Some(other) => bail!(
            "{} and {} disagree on {work}: {:?}, {:?}",
            first.peer.name(),
            other.peer.name(),
            first.answers,
            other.answers
        ),
        None => Ok(()),
    }
}
