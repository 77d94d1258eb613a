//! Four machines that share a host's memory, run by `cargo xtask demo --balance`.
//!
//! Two are of `hvb`; QEMU has one with hv-balloon and one with virtio-balloon. All are in a cgroup, whose
//! limit gives each an equal share. In each in turn a process needs more than that share: without
//! `hvb balance` the guests kill it, with it each finishes. Then the same with a monitor that answers
//! nobody, a machine that is reset before its turn, another that is killed, and a balancer that is killed
//! and started again. Ends with status 0 only if all that holds.
//!
//! The process is a patient one: where less is available than it takes next, it waits a while, once in vain, before it
//! takes it all the same. A virtio balloon gives a guest back some 26 MiB in a second here, and a process that takes
//! memory faster than that is killed with any balancer, unless its guest has swap.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use e2e::cgroup::Group;
use e2e::peer::{Machine, Peer, PeerVm};
use e2e::{MIB, Setup, poll_for, wait_for};
use serde_json::{Value, json};

/// What a process needs in each guest in turn.
const NEED: u64 = 2048 * MIB;

/// The most that all machines may take from the host, and what each may have if they share it equally:
/// a quarter, without what the machine's own process needs.
const LIMIT: u64 = 6144 * MIB;
const SHARE: u64 = LIMIT / 4 - 128 * MIB;
const MOST: u64 = 3072 * MIB;

/// How much of it a process takes at a time.
const STEP: u64 = 64 * MIB;

/// What has to be available for that: a little more, for the process itself.
const ROOM: u64 = STEP + 16 * MIB;

/// How long a process waits for it.
const ITS_PATIENCE: Duration = Duration::from_secs(40);

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
    let places = Places { group: &group, sockets: directory.path() };
    for (name, peer) in [
        ("hvb-a", Peer::Hvb),
        ("hvb-b", Peer::Hvb),
        ("qemu-hv", Peer::HvBalloon),
        ("qemu-virtio", Peer::VirtioBalloon),
    ] {
        machines.push(Member::start(name, peer, places)?);
    }
    println!("4 machines of {} MiB below a limit of {} MiB", SHARE / MIB, LIMIT / MIB);

    println!("\nwithout a balancer, a process needs {} MiB in each in turn:", NEED / MIB);
    let mut fits = 0;
    for machine in &mut machines {
        machine.revive()?;
        let outcome = machine.work();
        fits += usize::from(outcome.is_ok());
        let text =
            outcome.map_or_else(|_| "its guest killed it".to_owned(), |s| format!("{s:.0} s"));
        println!("  {:<12} {text}", machine.name);
    }
    ensure!(fits == 0, "{fits} fit without a balancer");

    println!("\nwith `hvb balance`:");
    machines.iter_mut().try_for_each(Member::revive)?;
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
    machines.iter_mut().try_for_each(Member::revive)?;
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

    fourth.revive()?;
    balancer.wait_for_all(3)?;
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
    for mut machine in [reset, third, fourth] {
        machine.revive()?;
        machine.vm.power_off()?;
    }
    Ok(())
}

/// What the machines have in common.
#[derive(Clone, Copy)]
struct Places<'a> {
    group: &'a Group,
    /// Where the balancer looks for them.
    sockets: &'a Path,
}

/// A machine of the group.
struct Member<'a> {
    name: &'static str,
    peer: Peer,
    places: Places<'a>,
    vm: PeerVm,
    /// How many processes its guest has killed that the test knows of.
    kills: usize,
}

impl<'a> Member<'a> {
    /// Starts a machine that has its share, and tells the balancer of its socket.
    fn start(name: &'static str, peer: Peer, places: Places<'a>) -> Result<Self> {
        let (boot, most) = if peer.can_add() { (SHARE, MOST) } else { (MOST, MOST) };
        let machine = Machine {
            cpus: 1,
            boot,
            most,
            clears: false,
            append: "",
            devices: None,
            group: Some(&places.group.child(name)?),
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
        symlink(vm.second_socket(), places.sockets.join(format!("{name}.sock")))?;
        Ok(Self { name, peer, places, vm, kills: 0 })
    }

    /// Starts a QEMU anew that has failed its own assertion (docs/balancing.md). A balancer has to live with a
    /// machine that ends and comes back.
    fn revive(&mut self) -> Result<()> {
        let Some(words) = self.vm.failed_assertion()? else { return Ok(()) };
        println!("  {:<12} ended by itself, and is started again: {words}", self.name);
        fs::remove_file(self.places.sockets.join(format!("{}.sock", self.name)))?;
        *self = Self::start(self.name, self.peer, self.places)?;
        Ok(())
    }

    /// Waits until there is room for the next step, but not for ever; whether there is.
    fn wait_for_room(&mut self) -> Result<bool> {
        let room = poll_for(ITS_PATIENCE, || {
            Ok((self.vm.agent.meminfo()?.available >= ROOM).then_some(()))
        })?;
        Ok(room.is_some())
    }

    /// Lets a process fill memory and verify it; returns how long that took, in seconds.
    fn work(&mut self) -> Result<f64> {
        let begin = Instant::now();
        let steps = 1..=NEED / STEP;
        let mut is_patient = true;
        let filled = steps.clone().try_for_each(|step| {
            is_patient = is_patient && self.wait_for_room()?;
            self.vm.agent.fill(step, STEP)
        });
        let agent = &mut self.vm.agent;
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
    fn turn(&self, machine: &mut Member<'_>) -> Result<()> {
        machine.revive()?;
        let mut worked = machine.work();
        if worked.is_err() && machine.vm.failed_assertion()?.is_some() {
            machine.revive()?;
            worked = machine.work();
        }
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
