#![forbid(unsafe_code)]
//! What `hvb balance` costs with many live sockets: processor time, memory, and the time from a guest's
//! report that asks for more to the target sent. The guests are make-believe, and in another process
//! than the balancer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use balance_host::{Operator, Status};
use clap::Parser;
use qmp::Server;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use world::{Guest, Ledger, eventually, report};

#[expect(dead_code, reason = "shared with the tests of the daemon")]
#[path = "../../../crates/balance_host/tests/daemon/world.rs"]
mod world;

const MIB: u64 = 1 << 20;

/// Small guests, so that hundreds fit on any host. They use little, so little that they are left alone
/// (a surplus of less than 64 MiB is not taken), and now and then one needs more than it has.
const BOOT: u64 = 64 * MIB;
const USED: u64 = 16 * MIB;
const MORE: u64 = 128 * MIB;

/// A guest that needed more is small again at once, so that its next turn may come.
const SETTINGS: &str = r#"
[host]
reserve = "1M"
[policy]
surplus-lasts = 0
shrink-period = 0
[defaults]
minimum = "16M"
"#;

/// The balancer has so long to meet all guests.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures `hvb balance`.
#[derive(Debug, Parser)]
struct Cli {
    /// Sockets, each with a guest that reports once a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=4000))]
    sockets: u32,
    /// Seconds to measure processor time.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Reports that ask for more, to measure how long a target takes.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The program [default: hvb beside this one].
    #[arg(long)]
    hvb: Option<PathBuf>,
    /// Have the balancer record, too.
    #[arg(long)]
    record: bool,
}

/// A guest behind its monitor.
struct Vm {
    guest: Arc<Guest>,
    server: Server,
}

impl Vm {
    fn start(path: &Path, ledger: &Arc<Ledger>) -> Result<Self> {
        let guest = Guest::new(ledger, BOOT, USED);
        Ok(Self { server: Server::start(path, guest.clone())?, guest })
    }

    fn report(&self) {
        report(&self.server, &self.guest, false);
    }

    /// From a report that asks for more to the next command.
    fn asks_for_more(&self) -> Duration {
        let before = self.guest.commands().len();
        self.guest.uses(MORE);
        let begin = Instant::now();
        self.report();
        while self.guest.commands().len() == before && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_micros(50));
        }
        let time = begin.elapsed();
        self.guest.uses(USED);
        time
    }
}

struct Balancer(Child);

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    allow_descriptors()?;
    let hvb = match &cli.hvb {
        Some(hvb) => hvb.clone(),
        None => std::env::current_exe()?.with_file_name("hvb"),
    };
    ensure!(hvb.exists(), "{}: not there: cargo build --release -p hvb", hvb.display());
    let place = tempfile::tempdir()?;
    let ledger = Arc::default();
    let path = |name: &str| place.path().join(name);
    let vms: Result<Vec<Vm>> =
        (0..cli.sockets).map(|n| Vm::start(&path(&format!("vm{n}.sock")), &ledger)).collect();
    let vms = vms?;
    fs::write(path("balance.toml"), SETTINGS)?;
    let mut command = Command::new(hvb);
    command.args(["balance", "--config"]).arg(path("balance.toml"));
    command.env("HVB_RUN_DIR", place.path()).env("HVB_LOG", "warn").stdin(Stdio::null());
    if cli.record {
        command.arg("--record").arg(path("recording"));
    }
    let balancer = Balancer(command.spawn().context("cannot start hvb")?);
    let process = Process(format!("/proc/{}", balancer.0.id()));

    let ends = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| report_each_second(&vms, &ends));
        let result = measure(&cli, &vms, &process, &path("balance.control"));
        ends.store(true, Ordering::Relaxed);
        result
    })?;
    if cli.record {
        let bytes = fs::metadata(path("recording"))?.len();
        println!("recording: {} KiB", bytes / 1024);
    }
    Ok(())
}

fn measure(cli: &Cli, vms: &[Vm], process: &Process, control: &Path) -> Result<()> {
    let mut operator = None;
    eventually("the balancer listens", || {
        operator = Operator::connect(control, PATIENCE).ok();
        operator.is_some()
    });
    let mut operator = operator.context("it listens")?;
    eventually("it has a report of each guest", || {
        operator.status().is_ok_and(|status| knows_all(&status, vms.len()))
    });
    drop(operator);
    thread::sleep(Duration::from_secs(5));

    let (before, begin) = (process.cpu()?, Instant::now());
    thread::sleep(Duration::from_secs(cli.seconds));
    let (after, time) = (process.cpu()?, begin.elapsed());
    println!("{} sockets, {} s", vms.len(), time.as_secs());
    let mut sum = 0.0;
    for (name, cpu) in after {
        let spent = cpu.saturating_sub(before.get(&name).copied().unwrap_or_default());
        let percent = 100.0 * spent.as_secs_f64() / time.as_secs_f64();
        sum += percent;
        println!("processor, threads {name}: {percent:.3} % of a core");
    }
    println!("processor, all threads: {sum:.3} % of a core");

    let mut times = Vec::new();
    for vm in vms.iter().cycle().zip(0..cli.rounds).map(|(vm, _)| vm) {
        eventually("it is small again", || vm.guest.actual() < MORE);
        times.push(vm.asks_for_more());
    }
    times.sort();
    let at = |percent: usize| times.get((times.len() - 1) * percent / 100);
    for (name, percent) in [("median", 50), ("99 %", 99), ("most", 100)] {
        let ms = at(percent).map_or(0.0, |time| time.as_secs_f64() * 1000.0);
        println!("report to target, {name}: {ms:.2} ms");
    }
    for (name, field) in [("now", "VmRSS:"), ("most", "VmHWM:")] {
        println!("resident, {name}: {:.1} MiB", process.kib(field)? as f64 / 1024.0);
    }
    Ok(())
}

fn knows_all(status: &Status, guests: usize) -> bool {
    let reports = status.vms.iter().filter(|vm| vm.report_age_ms.is_some() && !vm.stale);
    reports.count() == guests
}

/// Each guest once a second, spread over it.
fn report_each_second(vms: &[Vm], ends: &AtomicBool) {
    let begin = Instant::now();
    let step = Duration::from_secs(1) / u32::try_from(vms.len()).unwrap_or(u32::MAX);
    for (vm, at) in vms.iter().cycle().zip(1_u32..) {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        vm.report();
        thread::sleep((step * at).saturating_sub(begin.elapsed()));
    }
}

/// A server and its client need some descriptors each.
fn allow_descriptors() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(())
}

/// The directory of a process.
struct Process(String);

impl Process {
    /// The processor time of its threads, by their names.
    fn cpu(&self) -> Result<BTreeMap<String, Duration>> {
        let mut sums = BTreeMap::<String, Duration>::new();
        for task in fs::read_dir(format!("{}/task", self.0))? {
            let task = task?.path();
            let name = fs::read_to_string(task.join("comm"))?.trim().to_owned();
            let stat = fs::read_to_string(task.join("schedstat"))?;
            let ns = stat.split_whitespace().next().context("an empty schedstat")?.parse()?;
            *sums.entry(name).or_default() += Duration::from_nanos(ns);
        }
        Ok(sums)
    }

    fn kib(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("{}/status", self.0))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no figure")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}
