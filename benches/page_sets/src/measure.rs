//! The measurement of one peer with one workload.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use page_sets::peer::Visit;
use page_sets::work::Answers;
use page_sets::{PageSet, Peer, Work, heap};
use serde::{Deserialize, Serialize};

/// Short workloads are repeated in the same process this often or this long; the fastest time
/// counts.
const REPEAT: u32 = 50;
const REPEAT_FOR: Duration = Duration::from_millis(500);

/// One peer's figures for one workload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) peer: Peer,
    pub(crate) work: String,
    pub(crate) phases: Vec<Timed>,
    pub(crate) answers: Answers,
    /// The most heap in use at any time, in bytes; 0 if unknown.
    pub(crate) peak: usize,
}

/// One of its phases.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Timed {
    pub(crate) phase: String,
    pub(crate) ops: u64,
    /// The time of all operations together, in nanoseconds.
    pub(crate) ns: u64,
    /// Heap in use after the phase, in bytes.
    pub(crate) heap: usize,
}

impl Measured {
    pub(crate) fn is_of(&self, peer: Peer, work: &str) -> bool {
        self.peer == peer && self.work == work
    }

    /// Heap in use before anything is taken, and once everything is.
    pub(crate) fn heap(&self) -> Option<(usize, usize)> {
        let filled = self.phases.iter().take_while(|timed| !timed.phase.starts_with("take")).last();
        Some((filled?.heap, self.phases.last()?.heap))
    }

    pub(crate) fn keep_fastest(&mut self, other: &Self) {
        for (phase, other) in self.phases.iter_mut().zip(&other.phases) {
            phase.ns = phase.ns.min(other.ns);
        }
    }
}

impl Timed {
    /// Nanoseconds per operation.
    #[expect(clippy::cast_precision_loss, reason = "figures to read")]
    pub(crate) fn each(&self) -> f64 {
        self.ns as f64 / self.ops.max(1) as f64
    }
}

/// Keeps this process on one processor.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core).with_context(|| format!("there is no processor {core}"))?;
    sched_setaffinity(Pid::from_raw(0), &cores)
        .with_context(|| format!("cannot run on processor {core}: choose another with --core"))
}

/// Runs the workload until it has been repeated often enough.
pub(crate) fn measure(peer: Peer, name: &str, work: &Work) -> Measured {
    let begun = Instant::now();
    let mut measured = peer.with(Once { peer, name, work });
    for _ in 1..REPEAT {
        if begun.elapsed() > REPEAT_FOR {
            break;
        }
        measured.keep_fastest(&peer.with(Once { peer, name, work }));
    }
    measured
}

struct Once<'a> {
    peer: Peer,
    name: &'a str,
    work: &'a Work,
}

impl Visit for Once<'_> {
    type Output = Measured;

    fn visit<S: PageSet>(self) -> Measured {
        let in_use = if self.peer.is_glib() { heap::malloced } else { heap::used };
        // Allocate this before reading the heap in use, so that it does not count as the set's.
        let mut phases = Vec::with_capacity(self.work.phases().len());
        let mut answers = Answers::default();
        let names: Vec<String> =
            self.work.phases().iter().map(|phase| phase.name.to_owned()).collect();
        let before = in_use();
        heap::forget_peak();
        let mut set = S::empty(self.work.pages());
        for (phase, name) in self.work.phases().iter().zip(names) {
            let begun = Instant::now();
            let ops = phase.run(black_box(&mut set), &mut answers);
            let ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let heap = in_use().saturating_sub(before);
            phases.push(Timed { phase: name, ops, ns, heap });
        }
        let peak = if self.peer.is_glib() { 0 } else { heap::peak().saturating_sub(before) };
        Measured { peer: self.peer, work: self.name.to_owned(), phases, answers, peak }
    }
}
