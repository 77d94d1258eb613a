//! A database under load while its memory follows, run by `cargo xtask demo --workload`.
//!
//! A Debian with PostgreSQL runs `pgbench` while it is shrunk to half its boot size and grown to
//! double, three times, and then at the size below which it gives nothing. Ends with status 0 only if
//! no transaction failed or was lost, the balances agree, freed memory came back by itself, and the
//! machine shut down cleanly.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use e2e::debian::{DebianImage, Shell, is_unmounted};
use e2e::{MIB, Vm, VmConfig, resident, wait_for};
use qmp::{HvBalloonInfo, XQueryDynamicMemory, qapi};
use serde_json::Value;
use timeline::{Curve, Panel, Timeline};

const BOOT: u64 = 1024 * MIB;
const ROUNDS: u32 = 3;

/// What `pgbench` is to do at a time: at least this long, in seconds, with four clients.
const LOAD: u32 = 30;

/// What a process has for a moment, in MiB, and how long its memory may take to come back.
const PASSING: u64 = 200;
const SOON: Duration = Duration::from_secs(10);

/// The balances of each kind and the history of all transactions must agree; and how many there were.
const BALANCES: &str = "select (select sum(abalance) from pgbench_accounts), \
    (select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers), \
    (select coalesce(sum(delta), 0) from pgbench_history), count(*) from pgbench_history";

/// Where to draw.
#[derive(Debug, Parser)]
struct Plan {
    /// The picture.
    #[arg(long)]
    picture: PathBuf,
}

/// Memory at one moment, in bytes.
struct Sample {
    at: Duration,
    actual: u64,
    resident: u64,
    /// None before the guest's first one.
    report: Option<HvBalloonInfo>,
}

fn main() -> ExitCode {
    match run(&Plan::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nthe workload failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<()> {
    let image = DebianImage::from_env()?;
    let directory = tempfile::tempdir()?;
    let layer = directory.path().join("layer.qcow2");
    image.layer(&layer)?;
    let begin = Instant::now();
    let config = VmConfig {
        memory: BOOT,
        max_memory: Some(2 * BOOT),
        status_report: true,
        append: "root=LABEL=debian",
        ..VmConfig::default()
    };
    let mut vm = image.start(&layer, config)?;
    let samples = Mutex::new(Vec::new());
    let is_over = AtomicBool::new(false);
    let (socket, process) = (vm.socket(), vm.process());
    thread::scope(|scope| {
        let sampler = scope.spawn(|| sample(&socket, process, begin, &samples, &is_over));
        let result = work(&mut vm, begin);
        is_over.store(true, Ordering::Relaxed);
        sampler.join().expect("it does not panic")?;
        result
    })?;

    vm.monitor.execute("system_powerdown", Value::Null)?;
    vm.wait_event("POWERDOWN")?;
    vm.end()?;
    ensure!(is_unmounted(&layer)?, "the file system was not unmounted");
    println!("  the guest shut down when it was asked to; its file system is clean");
    let samples = samples.into_inner().expect("nobody panicked with it");
    draw(&plan.picture, &samples).context("cannot draw the picture")?;
    println!("  {} samples are drawn in {}", samples.len(), plan.picture.display());
    Ok(())
}

/// Everything between login and shutdown.
fn work(vm: &mut Vm, begin: Instant) -> Result<()> {
    let mut shell = Shell::log_in(vm)?;
    println!("  login after {:.1} s", begin.elapsed().as_secs_f64());
    wait_for("PostgreSQL", || Ok(psql(&mut shell, "postgres", "select 1").ok()))?;
    sql_command(&mut shell, "createdb bench")?;
    sql_command(&mut shell, "pgbench -i -q -s 2 bench")?;
    shell.vm().wait_for_driver()?;
    println!("  {:38}{:>12}{:>10}{:>14}", "", "transactions", "a second", "resident");

    let mut total = 0;
    for round in 1..=ROUNDS {
        total += under_load(&mut shell, |vm| {
            // Linux keeps some memory available, and needs some to describe the pages that were added.
            let least = vm.approach(BOOT / 2)?.actual;
            ensure!(least <= BOOT / 10 * 6, "the guest gives no more at {least}");
            vm.resize(2 * BOOT)?;
            vm.resize(BOOT)?;
            Ok(format!("round {round}: 1024 > {} > 2048 > 1024 MiB", least / MIB))
        })?;
        check(&mut shell, total)?;
    }
    let floor = shell.vm().approach(64 * MIB)?.actual;
    let label = format!("at the floor, {} MiB", floor / MIB);
    total += under_load(&mut shell, |_| Ok(label))?;
    check(&mut shell, total)?;
    shell.vm().resize(BOOT)?;
    println!("  all balances agree after {total} transactions; none failed, none is missing");
    passes(&mut shell)
}

/// Runs `pgbench` and, beside it, what is given, which says what it did; returns the number of
/// transactions.
fn under_load(
    shell: &mut Shell<'_>,
    beside: impl FnOnce(&mut Vm) -> Result<String>,
) -> Result<u64> {
    let load = format!("su postgres -c 'pgbench -n -c 4 -T {LOAD} bench' >/tmp/load 2>&1 &");
    shell.run(&format!("{load} LOAD=$!"))?;
    let label = beside(shell.vm())?;
    shell.run("wait $LOAD").or_else(|error| bail!("{error:#}: {}", shell.run("cat /tmp/load")?))?;
    let report = shell.run("cat /tmp/load")?;
    let transactions: u64 = figure(&report, "number of transactions actually processed: ")?;
    let failed: u64 = figure(&report, "number of failed transactions: ")?;
    ensure!(failed == 0 && transactions > 0, "transactions failed: {report}");
    let rate: f64 = figure(&report, "tps = ")?;
    let resident = shell.vm().resident()? / MIB;
    println!("  {label:38}{transactions:>12}{rate:>10.1}{resident:>10} MiB");
    Ok(transactions)
}

/// A figure of `pgbench`'s report.
fn figure<T: FromStr>(report: &str, name: &str) -> Result<T> {
    let line = report.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("{name}: {report}"))
}

/// The balances are right, and no transaction is missing.
fn check(shell: &mut Shell<'_>, transactions: u64) -> Result<()> {
    let row = psql(shell, "bench", BALANCES)?;
    let figures: Vec<i64> =
        row.trim().split('|').map(str::parse).collect::<Result<_, _>>().context(row.clone())?;
    let [accounts, branches, tellers, deltas, count] = figures[..] else { bail!("{row}") };
    ensure!(accounts == deltas && branches == deltas && tellers == deltas, "balances: {row}");
    ensure!(u64::try_from(count)? == transactions, "{transactions} transactions, but {row}");
    Ok(())
}

/// A process uses memory and ends: the host has it back, without a target, where its KVM lets guests
/// report.
fn passes(shell: &mut Shell<'_>) -> Result<()> {
    if shell.vm().dynamic_memory()?.reported.is_none() {
        println!("  this host's KVM does not let guests report what they free");
        return Ok(());
    }
    // What is free by now has been reported.
    thread::sleep(SOON);
    let before = shell.vm().resident()?;
    // `tail` keeps the last line, which is all there is.
    shell.run(&format!("head -c {PASSING}M /dev/zero | tail | tail -c 1 | wc -c"))?;
    let begin = Instant::now();
    let peak = shell.vm().resident()?;
    let expected = PASSING * MIB / 10 * 9;
    let mut now = peak;
    while now > before && now > peak.saturating_sub(expected) {
        ensure!(begin.elapsed() < SOON, "resident memory was {before}, {peak}, and is {now}");
        thread::sleep(Duration::from_millis(100));
        now = shell.vm().resident()?;
    }
    let (before, peak, now) = (before / MIB, peak / MIB, now / MIB);
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "  a process of {PASSING} MiB came and went: {before}, {peak}, {now} MiB resident, the last after {seconds:.1} s"
    );
    Ok(())
}

fn sql_command(shell: &mut Shell<'_>, command: &str) -> Result<String> {
    shell.run(&format!("cd /; su postgres -c '{command}' 2>&1"))
}

fn psql(shell: &mut Shell<'_>, database: &str, query: &str) -> Result<String> {
    sql_command(shell, &format!("psql -At -d {database} -c \"{query}\""))
}

/// Looks at the machine from outside until it is over.
fn sample(
    socket: &Path,
    process: u32,
    begin: Instant,
    samples: &Mutex<Vec<Sample>>,
    is_over: &AtomicBool,
) -> Result<()> {
    let mut client = qmp::Client::connect(socket, e2e::PATIENCE)?;
    while !is_over.load(Ordering::Relaxed) {
        let books = client.run(&XQueryDynamicMemory {})?;
        let report = client.run(&qapi::query_hv_balloon_status_report {}).ok();
        let sample = Sample {
            at: begin.elapsed(),
            actual: books.actual,
            resident: resident(process)?,
            report,
        };
        samples.lock().expect("nobody panics with it").push(sample);
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

fn draw(picture: &Path, samples: &[Sample]) -> Result<()> {
    type Column = (&'static str, fn(&Sample) -> Option<u64>);
    let columns: [Column; 4] = [
        ("assigned (actual)", |it| Some(it.actual)),
        ("resident memory of hvb", |it| Some(it.resident)),
        ("committed, by the guest's report", |it| Some(it.report.as_ref()?.committed)),
        ("available, by the guest's report", |it| Some(it.report.as_ref()?.available)),
    ];
    let curves = columns.map(|(name, column)| {
        let mut curve = Curve::default();
        for sample in samples {
            let mib = column(sample).map(|bytes| bytes as f64 / MIB as f64);
            curve.push(sample.at.as_secs_f64(), mib);
        }
        (name.to_owned(), curve)
    });
    let (title, unit) = (String::new(), "MiB".to_owned());
    let panel = Panel { title, unit, top: 1.0, height: 460, curves: curves.into() };
    let title = "A database under load while its memory follows".to_owned();
    let time = "seconds since the start".to_owned();
    let svg = Timeline { title, time, panels: vec![panel] }.svg()?;
    std::fs::write(picture, svg)?;
    Ok(())
}
