//! The figures, as a table and as JSON.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::floor::Floor;
use crate::host::Usage;
use crate::large::{BALLOON, LargeReturn};
use crate::scenario::{Pieces, Scenario};

/// Writes a time in nanoseconds.
pub(crate) fn nanoseconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// All results. Times in JSON are in nanoseconds, one entry for each round.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The size of the memory that contains the pieces.
    size_mib: u64,
    rounds: u32,
    /// Whether a VM was attached, or the reason why not.
    kvm: String,
    kernel: String,
    pub(crate) rows: Vec<Row>,
    pub(crate) large_return: Option<LargeReturn>,
}

impl Report {
    pub(crate) fn new(size_mib: u64, rounds: u32, kvm: &Result<(), String>) -> Self {
        let kvm = match kvm {
            Ok(()) => "attached, memory dirtied by its vCPU".to_string(),
            Err(reason) => format!("not attached ({reason})"),
        };
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = kernel.trim().to_string();
        Self { size_mib, rounds, kvm, kernel, rows: Vec::new(), large_return: None }
    }
}

/// One scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    memory: &'static str,
    state: &'static str,
    pieces: &'static str,
    #[serde(skip)]
    scenario: Scenario,
    /// Ranges the guest named.
    ranges: u64,
    /// The bytes in them.
    bytes: u64,
    summary: Summary,
    rounds: Rounds,
}

/// The measurements, round by round.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Rounds {
    pub(crate) shrink: Vec<Usage>,
    pub(crate) grow: Vec<Usage>,
    /// One call for each range.
    pub(crate) bare: Vec<Floor>,
    /// The best known calls.
    pub(crate) best: Vec<Floor>,
}

/// The best of the rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Summary {
    shrink_ms: f64,
    shrink_gib_per_s: f64,
    bare_ms: f64,
    /// Time of a shrink relative to one call for each range.
    over_bare: f64,
    best_ms: f64,
    over_best: f64,
    return_ms: f64,
    return_gib_per_s: f64,
    /// CPU time of the VSP in a shrink.
    vsp_ns_per_range: f64,
    /// CPU time of the VSP relative to that of `hvb`'s discard.
    vsp_over_discard: f64,
    /// CPU time of the VSP relative to that of one call for each range.
    vsp_over_bare: f64,
}

impl Row {
    pub(crate) fn new(scenario: Scenario, ranges: u64, bytes: u64, rounds: Rounds) -> Self {
        let gib = bytes as f64 / f64::from(1 << 30);
        let shrink = least(&rounds.shrink, |usage| usage.wall);
        let grow = least(&rounds.grow, |usage| usage.wall);
        let bare = least(&rounds.bare, |floor| floor.wall);
        let best = least(&rounds.best, |floor| floor.wall);
        let vsp = least(&rounds.shrink, |usage| usage.vsp);
        let summary = Summary {
            shrink_ms: shrink * 1e3,
            shrink_gib_per_s: gib / shrink,
            bare_ms: bare * 1e3,
            over_bare: shrink / bare,
            best_ms: best * 1e3,
            over_best: shrink / best,
            return_ms: grow * 1e3,
            return_gib_per_s: gib / grow,
            vsp_ns_per_range: vsp * 1e9 / ranges as f64,
            vsp_over_discard: vsp / least(&rounds.shrink, |usage| usage.worker),
            vsp_over_bare: vsp / least(&rounds.bare, |floor| floor.cpu),
        };
        let (memory, state) = (scenario.memory(), scenario.state());
        let pieces = scenario.pieces.name();
        Self { memory, state, pieces, scenario, ranges, bytes, summary, rounds }
    }

    /// A line to print while the other rows are still being measured.
    pub(crate) fn progress(&self) -> String {
        format!("{}: {:.2} x the bare calls", self.scenario.name(), self.summary.over_bare)
    }
}

/// The least time of all rounds, in seconds.
fn least<T>(rounds: &[T], time: impl Fn(&T) -> Duration) -> f64 {
    rounds.iter().map(time).min().unwrap_or_default().as_secs_f64()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size_mib, rounds, kvm, kernel, .. } = self;
        writeln!(f, "{size_mib} MiB, best of {rounds} rounds; Linux {kernel}; KVM: {kvm}.\n")?;
        writeln!(
            f,
            "| memory | state | pieces | shrink, ms | GiB/s | one call each, ms | ratio | best \
             calls, ms | ratio | return, ms | GiB/s | VSP, ns a range | of the discard's CPU | \
             of one call each |"
        )?;
        writeln!(f, "|---|---|---|{}", "---:|".repeat(11))?;
        for row in &self.rows {
            write!(f, "| {} | {} | {} |", row.memory, row.state, row.pieces)?;
            let s = row.summary;
            write!(f, " {:.2} | {:.1} |", s.shrink_ms, s.shrink_gib_per_s)?;
            write!(f, " {:.2} | {:.2} |", s.bare_ms, s.over_bare)?;
            write!(f, " {:.2} | {:.2} |", s.best_ms, s.over_best)?;
            write!(f, " {:.3} | {:.0} |", s.return_ms, s.return_gib_per_s)?;
            let shares = [s.vsp_over_discard, s.vsp_over_bare].map(|share| share * 1e2);
            write!(f, " {:.1} | {:.2} % |", s.vsp_ns_per_range, shares[0])?;
            writeln!(f, " {:.2} % |", shares[1])?;
        }
        if let Some(large) = &self.large_return {
            writeln!(
                f,
                "\n{} GiB without memory, CPU time: taken in {:.2} ms (VSP {:.2} ms), given back \
                 in {:.3} ms (VSP {:.3} ms); VSP and guest together.",
                BALLOON.bytes() >> 30,
                least(&large.shrink, |usage| usage.thread) * 1e3,
                least(&large.shrink, |usage| usage.vsp) * 1e3,
                least(&large.grow, |usage| usage.thread) * 1e3,
                least(&large.grow, |usage| usage.vsp) * 1e3,
            )?;
        }
        self.goals(f)
    }
}

impl Report {
    fn goals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nGoals:")?;
        for row in self.rows.iter().filter(|row| row.scenario.is_dirty) {
            let (slower, share) = match row.scenario.pieces {
                Pieces::Large => (1.10, 1.0),
                Pieces::Single | Pieces::Neighbours => (1.25, 3.0),
                Pieces::Medium => continue,
            };
            let name = row.scenario.name();
            let Summary { over_bare, vsp_over_discard, vsp_over_bare, .. } = row.summary;
            goal(f, &name, "shrink over one call each", over_bare, slower, "")?;
            if row.scenario.pieces != Pieces::Neighbours {
                let of_ours = vsp_over_discard * 1e2;
                goal(f, &name, "VSP over our discard, CPU", of_ours, share, " %")?;
                let of_bare = vsp_over_bare * 1e2;
                goal(f, &name, "VSP over one call each, CPU", of_bare, share, " %")?;
            }
        }
        if let Some(large) = &self.large_return {
            let time = least(&large.grow, |usage| usage.thread) * 1e3;
            goal(f, "200 GiB", "return, CPU time", time, 50.0, " ms")?;
        }
        Ok(())
    }
}

fn goal(
    f: &mut fmt::Formatter<'_>,
    row: &str,
    what: &str,
    is: f64,
    most: f64,
    unit: &str,
) -> fmt::Result {
    let verdict = if is <= most { "met" } else { "MISSED" };
    writeln!(f, "- {row}: {what}: {is:.2}{unit}, at most {most}{unit}: {verdict}")
}
