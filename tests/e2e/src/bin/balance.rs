//! Four machines that share a host's memory, run by `cargo xtask demo --balance`.
//!
//! Two are of `hvb`; QEMU has one with hv-balloon and one with virtio-balloon. All are in a cgroup, whose
//! limit gives each an equal share. In each in turn a process needs more than that share: without
//! `hvb balance` the guests kill it, with it each finishes. Then the same with a monitor that answers
//! nobody, a machine that is reset before its turn, another that is killed, and a balancer that is killed
//! and started again. Ends with status 0 only if all that holds.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::cgroup::Group;
use e2e::peer::{Machine, Peer, PeerVm};
use e2e::{MIB, Setup, wait_for};
use serde_json::{Value, json};

/// What a process needs in each guest in turn.
const NEED: u64 = 2048 * MIB;

/// The most that all machines may take from the host, and what each may have if they share it equally:
/// a quarter, without what the machine's own process needs.
const LIMIT: u64 = 6144 * MIB;
const SHARE: u64 = LIMIT / 4 - 128 * MIB;
const MOST: u64 = 3072 * MIB;

/// How much of it a process takes at a time: Linux refuses to promise more than there is at once.
const STEP: u64 = 256 * MIB;

/// Where to write.
#[derive(Debug, Parser)]
struct Plan {
    /// The balancer's record.
    #[arg(long)]
    record: PathBuf,
}

fn main() -> ExitCode {
    match run(&Plan::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nthe balance failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(plan: &Plan) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let group = Group::new("hvb-balance", LIMIT)?;
    let mut machines = Vec::new();
    for (name, peer) in [
        ("hvb-a", Peer::Hvb),
        ("hvb-b", Peer::Hvb),
        ("qemu-hv", Peer::HvBalloon),
        ("qemu-virtio", Peer::VirtioBalloon),
    ] {
        machines.push(Member::start(name, peer, &group, directory.path())?);
    }
    println!("4 machines of {} MiB below a limit of {} MiB", SHARE / MIB, LIMIT / MIB);

    println!("\nwithout a balancer, a process needs {} MiB in each in turn:", NEED / MIB);
    let mut fits = 0;
    for machine in &mut machines {
        let outcome = machine.work();
        fits += usize::from(outcome.is_ok());
        let text =
            outcome.map_or_else(|_| "its guest killed it".to_owned(), |s| format!("{s:.0} s"));
        println!("  {:<12} {text}", machine.name);
    }
    ensure!(fits == 0, "{fits} fit without a balancer");

    println!("\nwith `hvb balance`:");
    let balancer = Balancer::start(directory.path(), &plan.record)?;
    let mut worked = balancer.wait_for_all(machines.len());
    for machine in &mut machines {
        worked = worked.and_then(|()| balancer.turn(machine));
    }
    if worked.is_err() {
        machines.iter_mut().for_each(|machine| println!("{}", machine.vm.last_words()));
        println!("-- hvb balance:\n{}", balancer.log()?);
        return worked;
    }

    println!("\nthe same with a monitor that answers nobody, and with losses:");
    let silent = UnixListener::bind(directory.path().join("silent.sock"))?;
    let mut machines = machines.into_iter();
    let mut next = || machines.next().context("four machines");
    let (mut reset, killed, mut third, mut fourth) = (next()?, next()?, next()?, next()?);
    reset.vm.monitor.execute("system_reset", json!({}))?;
    reset.vm.agent.wait_up()?;
    reset.kills = 0;
    println!("  {:<12} was reset", reset.name);
    balancer.turn(&mut reset)?;
    println!("  {:<12} is killed", killed.name);
    drop(killed);
    balancer.turn(&mut third)?;

    let before = balancer.sizes()?;
    drop(balancer);
    let second = plan.record.with_extension("2.record");
    let balancer = Balancer::start(directory.path(), &second)?;
    balancer.wait_for_all(3)?;
    let after = balancer.sizes()?;
    println!("  the balancer was killed: {before:?} MiB, and started again: {after:?} MiB");
    ensure!(before == after, "a machine was moved by the new balancer at once");
    balancer.turn(&mut fourth)?;
    drop(silent);
    for machine in [reset, third, fourth] {
        machine.vm.power_off()?;
    }
    Ok(())
}

/// A machine of the group.
struct Member {
    name: &'static str,
    vm: PeerVm,
    /// How many processes its guest has killed that the test knows of.
    kills: usize,
}

impl Member {
    /// Starts a machine that has its share, and tells the balancer of its socket.
    fn start(name: &'static str, peer: Peer, group: &Group, directory: &Path) -> Result<Self> {
        let (boot, most) = if peer.can_add() { (SHARE, MOST) } else { (MOST, MOST) };
        let machine = Machine {
            cpus: 1,
            boot,
            most,
            clears: false,
            append: "",
            devices: None,
            group: Some(&group.child(name)?),
        };
        let mut vm = PeerVm::start(peer, machine)?;
        vm.agent.wait_up().with_context(|| vm.last_words())?;
        if boot != SHARE {
            vm.monitor.execute("balloon", json!({ "value": SHARE }))?;
            wait_for("a guest with its share", || {
                let answer = vm.monitor.execute("query-balloon", json!({}))?;
                Ok((answer["actual"].as_u64() == Some(SHARE)).then_some(()))
            })?;
        }
        symlink(vm.second_socket(), directory.join(format!("{name}.sock")))?;
        Ok(Self { name, vm, kills: 0 })
    }

    /// Lets a process fill memory and verify it; returns how long that took, in seconds.
    fn work(&mut self) -> Result<f64> {
        let begin = Instant::now();
        let steps = 1..=NEED / STEP;
        let agent = &mut self.vm.agent;
        let filled = steps.clone().try_for_each(|step| agent.fill(step, STEP));
        let done = filled.and_then(|()| steps.clone().try_for_each(|step| agent.check(step)));
        for step in steps {
            // Whether it lives, or was ever there.
            let _ = agent.ask(&format!("free {step}"));
        }
        let kills = agent.ask("dmesg Out of memory")?.lines.len();
        let new = kills - std::mem::replace(&mut self.kills, kills);
        done?;
        ensure!(new == 0, "the guest of {} killed {new} processes", self.name);
        Ok(begin.elapsed().as_secs_f64())
    }
}

/// `hvb balance`.
struct Balancer {
    child: Child,
    control: PathBuf,
    hvb: PathBuf,
}

impl Balancer {
    fn start(directory: &Path, record: &Path) -> Result<Self> {
        let hvb = Setup::from_env()?.hvb;
        let control = directory.join("control");
        let log = File::create(directory.join("balance.log"))?;
        let child = Command::new(&hvb)
            .args(["balance", "--vms"])
            .arg(directory.join("*.sock"))
            .arg("--control")
            .arg(&control)
            .arg("--record")
            .arg(record)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { child, control, hvb })
    }

    /// What it says of itself.
    fn status(&self) -> Result<Value> {
        let output = Command::new(&self.hvb)
            .args(["balance", "status", "--json", "--control"])
            .arg(&self.control)
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The machines that it knows the size of, with their sizes in MiB.
    fn sizes(&self) -> Result<Vec<(String, u64)>> {
        let status = self.status()?;
        let machines = status["vms"].as_array().context("no machines")?;
        let size = |machine: &Value| {
            let assigned = machine["assigned-kib"].as_u64()?;
            Some((machine["name"].as_str()?.to_owned(), assigned >> 10))
        };
        Ok(machines.iter().filter_map(size).collect())
    }

    fn wait_for_all(&self, count: usize) -> Result<()> {
        wait_for("the balancer to know all machines", || {
            // It listens a moment after its start.
            let Ok(sizes) = self.sizes() else { return Ok(None) };
            Ok((sizes.len() == count).then_some(()))
        })
        .with_context(|| format!("{:?}", self.status()))
    }

    /// A machine's turn to work; shows the sizes when it has its data.
    fn turn(&self, machine: &mut Member) -> Result<()> {
        let worked = machine.work();
        let sizes = self.sizes()?;
        let sizes: Vec<String> = sizes.iter().map(|(name, mib)| format!("{name} {mib}")).collect();
        let seconds =
            worked.with_context(|| format!("{}; {:?}", sizes.join(", "), self.status()))?;
        println!("  {:<12} {seconds:.0} s; MiB afterwards: {}", machine.name, sizes.join(", "));
        Ok(())
    }

    /// What it has logged.
    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.control.with_file_name("balance.log"))?)
    }
}

impl Drop for Balancer {
    /// Without a chance to end as it would like to. What it listened on stays, as after a power cut.
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
