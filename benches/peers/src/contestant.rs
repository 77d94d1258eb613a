//! A guest under one of the peers, and the measurement of its resizes.

use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::MIB;
use e2e::peer::{Machine, Peer, PeerVm};
use qmp::qapi;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::usage::{self, Cpu, Usage};

/// The shortest and the longest pause between two monitor queries.
const QUICK: Duration = Duration::from_millis(2);
const RARELY: Duration = Duration::from_secs(1);

/// How long after a step the process may still be working on it.
const SETTLE: Duration = Duration::from_millis(200);

/// How often the progress of a slow step is printed.
const PROGRESS: Duration = Duration::from_secs(30);

/// A guest under one of the peers; dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Contestant {
    /// The process, the agent in its guest, and its monitor.
    pub(crate) vm: PeerVm,
    /// CPU time of the device's threads for one monitor query, in seconds.
    question: f64,
}

/// The expected `MemTotal` of the guest, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Total {
    /// At least this.
    Least(u64),
    /// At most this.
    Most(u64),
}

/// When a resize was complete, and how many monitor queries that took.
struct Waited {
    monitor: Duration,
    guest: Duration,
    questions: u32,
}

/// The cost of a resize.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Seconds until the monitor reported the new size.
    pub(crate) monitor: f64,
    /// Seconds until the guest's kernel had gained or given up the memory.
    pub(crate) guest: f64,
    /// CPU time of the whole step, less what monitor queries cost the device's threads.
    pub(crate) cpu: Cpu,
    /// All CPU time, by thread.
    pub(crate) threads: BTreeMap<String, f64>,
    /// The number of monitor queries.
    pub(crate) questions: u32,
    /// VM exits, if KVM shows them.
    pub(crate) exits: Option<u64>,
    /// Resident memory of the process afterwards, in bytes.
    pub(crate) resident: u64,
}

impl Contestant {
    /// As [`PeerVm::start`].
    pub(crate) fn start(peer: Peer, machine: Machine) -> Result<Self> {
        Ok(Self { vm: PeerVm::start(peer, machine)?, question: 0.0 })
    }

    /// The guest's size in bytes, as the monitor reports it.
    ///
    /// # Errors
    ///
    /// As [`qmp::Client::run`].
    pub(crate) fn actual(&mut self) -> Result<u64> {
        Ok(self.vm.monitor.run(&qapi::query_balloon {})?.actual.unsigned_abs())
    }

    /// Asks for a size.
    ///
    /// # Errors
    ///
    /// As [`qmp::Client::execute`].
    pub(crate) fn set_target(&mut self, bytes: u64) -> Result<()> {
        self.vm.monitor.execute("balloon", json!({ "value": bytes }))?;
        Ok(())
    }

    /// The program's version, as the monitor reports it.
    pub(crate) fn version(&self) -> String {
        let qemu = &self.vm.monitor.version().qemu;
        format!("{}.{}.{}", qemu.major, qemu.minor, qemu.micro)
    }

    /// Measures the CPU time, in seconds, that the device's threads take for one monitor query
    /// while the guest is idle. QEMU's main loop serves both the device and the monitor.
    ///
    /// # Errors
    ///
    /// The monitor does not answer.
    pub(crate) fn price_question(&mut self) -> Result<f64> {
        const BATCHES: u32 = 5;
        const COUNT: u32 = 20;
        let mut least = f64::INFINITY;
        for _ in 0..BATCHES {
            let before = Usage::of(self.vm.id())?;
            for _ in 0..COUNT {
                self.actual()?;
                sleep(QUICK);
            }
            let cpu = (Usage::of(self.vm.id())? - &before).cpu(self.vm.peer);
            // Anything else that happens on the machine only adds to the time.
            least = least.min(cpu.device / f64::from(COUNT));
        }
        self.question = least;
        Ok(least)
    }

    /// Asks for a size, and waits until the monitor reports it and the guest's `MemTotal` has
    /// followed.
    ///
    /// # Errors
    ///
    /// The guest does not get there within `limit`.
    pub(crate) fn resize(
        &mut self,
        name: &str,
        bytes: u64,
        total: Total,
        limit: Duration,
    ) -> Result<Step> {
        let (side, kib) = match total {
            Total::Least(bytes) => ("least", bytes / 1024),
            Total::Most(bytes) => ("most", bytes / 1024),
        };
        let before = Usage::of(self.vm.id())?;
        self.vm.agent.tell(&format!("wait-total {side} {kib} {}", limit.as_secs()))?;
        let begin = Instant::now();
        self.set_target(bytes)?;
        let waited = self.wait_for_both(name, bytes, begin, limit)?;
        sleep(SETTLE);
        let used = Usage::of(self.vm.id())? - &before;
        Ok(Step {
            monitor: waited.monitor.as_secs_f64(),
            guest: waited.guest.as_secs_f64(),
            cpu: used.cpu(self.vm.peer).without(f64::from(waited.questions) * self.question),
            threads: used.by_name(),
            questions: waited.questions,
            exits: used.exits,
            resident: self.memory("Rss")?,
        })
    }

    /// Queries the monitor less and less often, since queries cost time, until the guest reports
    /// that it has followed. The monitor knows the new size after the guest, or within
    /// milliseconds.
    fn wait_for_both(
        &mut self,
        name: &str,
        bytes: u64,
        begin: Instant,
        limit: Duration,
    ) -> Result<Waited> {
        let (mut monitor, mut guest) = (None, None);
        let mut questions = 0;
        let mut report = PROGRESS;
        loop {
            if monitor.is_none() {
                let actual = self.actual()?;
                questions += 1;
                monitor = (actual == bytes).then(|| begin.elapsed());
                if begin.elapsed() > report {
                    println!("    {name}: {} of {} MiB", actual / MIB, bytes / MIB);
                    report += PROGRESS;
                }
            }
            let pause = match (monitor, guest) {
                (Some(monitor), Some(guest)) => return Ok(Waited { monitor, guest, questions }),
                (None, None) => (begin.elapsed() / 10).clamp(QUICK, RARELY),
                (None, Some(_)) => QUICK,
                (Some(_), None) => RARELY,
            };
            ensure!(
                begin.elapsed() < limit,
                "{name}: not done after {} s: {} was missing; --limit gives more time",
                limit.as_secs(),
                if guest.is_none() { "the guest's MemTotal" } else { "the monitor's word" }
            );
            match guest {
                Some(_) => sleep(pause),
                None => {
                    let answer = self.vm.agent.answer_until(Instant::now() + pause)?;
                    guest = answer.map(|(_, at)| at.saturating_duration_since(begin));
                }
            }
        }
    }

    /// Memory of the process in bytes: a field of `smaps_rollup`.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub(crate) fn memory(&self, field: &str) -> Result<u64> {
        usage::memory(self.vm.id(), field)
    }

    /// As [`PeerVm::last_words`], with the CPU time of its threads in a second.
    pub(crate) fn last_words(&mut self) -> String {
        let used = || {
            let before = Usage::of(self.vm.id())?;
            sleep(Duration::from_secs(1));
            anyhow::Ok((Usage::of(self.vm.id())? - &before).by_name())
        };
        let used = used();
        format!("{}\n-- its threads in a second: {used:?}", self.vm.last_words())
    }
}
