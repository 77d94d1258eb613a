//! The figures as a table, and as JSON.

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

/// All that was measured. Times in JSON are nanoseconds, one entry a round.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// MiB of memory that the pieces lie in.
    size_mib: u64,
    rounds: u32,
    /// Whether a VM was attached, or why not.
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
    /// Bytes in them.
    bytes: u64,
    pub(crate) shrink: Vec<Usage>,
    pub(crate) grow: Vec<Usage>,
    /// One call for each range.
    pub(crate) bare: Vec<Floor>,
    /// The best calls known.
    pub(crate) best: Vec<Floor>,
}

/// The best of the rounds.
fn least<T>(rounds: &[T], time: impl Fn(&T) -> Duration) -> f64 {
    rounds.iter().map(time).min().unwrap_or_default().as_secs_f64()
}

impl Row {
    pub(crate) fn new(scenario: Scenario, ranges: u64, bytes: u64) -> Self {
        Self {
            memory: scenario.memory(),
            state: scenario.state(),
            pieces: scenario.pieces.name(),
            scenario,
            ranges,
            bytes,
            shrink: Vec::new(),
            grow: Vec::new(),
            bare: Vec::new(),
            best: Vec::new(),
        }
    }

    /// One line while the others are still measured.
    pub(crate) fn progress(&self) -> String {
        format!("{}: {:.2} x the bare calls", self.scenario.name(), self.over_bare())
    }

    fn shrink_time(&self) -> f64 {
        least(&self.shrink, |usage| usage.wall)
    }

    fn over_bare(&self) -> f64 {
        self.shrink_time() / least(&self.bare, |floor| floor.wall)
    }

    fn over_best(&self) -> f64 {
        self.shrink_time() / least(&self.best, |floor| floor.wall)
    }

    fn gib_per_second(&self, seconds: f64) -> f64 {
        self.bytes as f64 / f64::from(1 << 30) / seconds
    }

    /// CPU time of the device for each range, in seconds.
    fn device_per_range(&self) -> f64 {
        least(&self.shrink, |usage| usage.device) / self.ranges as f64
    }

    /// The device's share of the discard's CPU time.
    fn share(&self) -> f64 {
        least(&self.shrink, |usage| usage.device) / least(&self.shrink, |usage| usage.worker)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size_mib, rounds, kvm, kernel, .. } = self;
        writeln!(f, "{size_mib} MiB, best of {rounds} rounds; Linux {kernel}; KVM: {kvm}.\n")?;
        writeln!(
            f,
            "| memory | state | pieces | shrink GiB/s | ms | one call each, ms | ratio | \
             best calls, ms | ratio | return GiB/s | device ns/range | of the discard's CPU |"
        )?;
        writeln!(f, "|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for row in &self.rows {
            writeln!(
                f,
                "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.1} | {:.2} % |",
                row.memory,
                row.state,
                row.pieces,
                row.gib_per_second(row.shrink_time()),
                row.shrink_time() * 1e3,
                least(&row.bare, |floor| floor.wall) * 1e3,
                row.over_bare(),
                least(&row.best, |floor| floor.wall) * 1e3,
                row.over_best(),
                row.gib_per_second(least(&row.grow, |usage| usage.wall)),
                row.device_per_range() * 1e9,
                row.share() * 1e2,
            )?;
        }
        if let Some(large) = &self.large_return {
            writeln!(
                f,
                "\n{} GiB without memory, CPU time: taken in {:.2} ms (device {:.2} ms), given back \
                 in {:.3} ms (device {:.3} ms); device, ring and guest together.",
                BALLOON.bytes() >> 30,
                least(&large.shrink, |usage| usage.thread) * 1e3,
                least(&large.shrink, |usage| usage.device) * 1e3,
                least(&large.grow, |usage| usage.thread) * 1e3,
                least(&large.grow, |usage| usage.device) * 1e3,
            )?;
        }
        self.goals(f)
    }
}

impl Report {
    fn goals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nGoals:")?;
        for row in self.rows.iter().filter(|row| row.scenario.is_dirty) {
            let name = row.scenario.name();
            let most = match row.scenario.pieces {
                Pieces::Large => 1.10,
                Pieces::Single | Pieces::Neighbours => 1.25,
                Pieces::Medium => continue,
            };
            let what = format!("{name}: shrink over the bare calls");
            goal(f, &what, row.over_bare(), most, " x")?;
            let most = match row.scenario.pieces {
                Pieces::Large => 1.0,
                _ => 3.0,
            };
            goal(f, &format!("{name}: device's share"), row.share() * 1e2, most, " %")?;
        }
        if let Some(large) = &self.large_return {
            let time = least(&large.grow, |usage| usage.thread) * 1e3;
            goal(f, "giving 200 GiB back, CPU time", time, 50.0, " ms")?;
        }
        Ok(())
    }
}

fn goal(f: &mut fmt::Formatter<'_>, what: &str, is: f64, most: f64, unit: &str) -> fmt::Result {
    let verdict = if is <= most { "met" } else { "MISSED" };
    writeln!(f, "- {what}: {is:.2}{unit}, at most {most}{unit}: {verdict}")
}
