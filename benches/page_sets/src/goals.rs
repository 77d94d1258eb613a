//! The performance goals of this project's set.

use page_sets::{Peer, Size};
use serde::Serialize;

use crate::measure::{Measured, Timed};

/// How many times faster than QEMU's tree the set must be: below 256 GiB, and from there on.
const FASTER: [(&str, &str, [f64; 2]); 17] = [
    ("linux", "2M", [6.0, 8.0]),
    ("linux", "4K tail", [10.0, 20.0]),
    ("altasc", "insert", [25.0, 45.0]),
    ("altrnd", "insert", [100.0, 190.0]),
    ("rnd50", "insert", [100.0, 190.0]),
    ("altasc", "again", [100.0, 100.0]),
    ("altrnd", "again", [100.0, 100.0]),
    ("rnd50", "again", [100.0, 100.0]),
    ("huge2g", "insert", [1.0, 1.0]),
    ("linux", "take", [4.0, 4.0]),
    ("altasc", "take", [10.0, 10.0]),
    ("altrnd", "take", [20.0, 20.0]),
    ("rnd50", "take", [20.0, 20.0]),
    ("linux", "take many", [4.0, 4.0]),
    ("altasc", "take many", [10.0, 10.0]),
    ("altrnd", "take many", [20.0, 20.0]),
    ("rnd50", "take many", [20.0, 20.0]),
];

/// The most nanoseconds that one operation may take.
const AT_MOST: [(&str, &str, f64); 2] = [("huge1", "insert", 2e3), ("cover", "cover", 1e6)];

/// Inserts of pages that are not in the set yet.
const FRESH: [(&str, &str); 7] = [
    ("linux", "2M"),
    ("linux", "4K tail"),
    ("altasc", "insert"),
    ("altrnd", "insert"),
    ("rnd50", "insert"),
    ("huge1", "insert"),
    ("huge2g", "insert"),
];

const SMALL_HEAP: f64 = 32.0 * 1024.0;
const SCATTERED_TIB: f64 = 33.8 * 1024.0 * 1024.0;
const BYTES_A_RANGE: f64 = 12.0;

/// A goal, and the figure reached.
#[derive(Debug, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) goal: f64,
    pub(crate) reached: f64,
    pub(crate) met: bool,
}

/// All goals for which there are measurements.
pub(crate) fn goals(size: Size, measured: &[Measured]) -> Vec<Goal> {
    let all = All(measured);
    let times = FASTER.iter().filter_map(|&(work, phase, goals)| {
        let goal = if size.gib() < 256 { goals[0] } else { goals[1] };
        let tree = [Peer::Gtree, Peer::GtreeMalloc]
            .into_iter()
            .filter_map(|peer| Some(all.find(peer, work, phase)?.each()))
            .reduce(f64::min)?;
        let reached = tree / all.find(Peer::Ours, work, phase)?.each();
        let what = format!("{work} {phase}: faster than GTree");
        Some(Goal { what, unit: "times", goal, reached, met: reached >= goal })
    });
    let rival = FRESH.iter().filter_map(|&(work, phase)| {
        let ours = all.find(Peer::Ours, work, phase)?.each();
        let reached = all.find(Peer::Roaring, work, phase)?.each() / ours;
        let what = format!("{work} {phase}: faster than roaring");
        Some(Goal { what, unit: "times", goal: 1.0, reached, met: reached > 1.0 })
    });
    let at_most = AT_MOST.iter().filter_map(|&(work, phase, goal)| {
        let reached = all.find(Peer::Ours, work, phase)?.each();
        Some(at_most(format!("{work} {phase}: one operation"), "ns", goal, reached))
    });
    times.chain(rival).chain(at_most).chain(all.heap()).collect()
}

fn at_most(what: String, unit: &'static str, goal: f64, reached: f64) -> Goal {
    Goal { what, unit, goal, reached, met: reached <= goal }
}

struct All<'a>(&'a [Measured]);

impl All<'_> {
    fn find(&self, peer: Peer, work: &str, phase: &str) -> Option<&Timed> {
        let of = self.0.iter().find(|measured| measured.is_of(peer, work))?;
        of.phases.iter().find(|timed| timed.phase == phase)
    }

    #[expect(clippy::cast_precision_loss, reason = "figures to read")]
    fn heap(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for of in self.0.iter().filter(|of| of.peer == Peer::Ours) {
            let Some((full, empty)) = of.heap() else { continue };
            let (full, empty) = (full as f64, empty as f64);
            match of.work.as_str() {
                "linux" => {
                    let each = full / of.answers.ranges.max(1) as f64;
                    goals.push(at_most("linux: heap a range".into(), "B", BYTES_A_RANGE, each));
                }
                "huge1" => goals.push(at_most("1 TiB merged: heap".into(), "B", SMALL_HEAP, full)),
                "alt1t" => {
                    let what = "every other page of 1 TiB: heap".into();
                    goals.push(at_most(what, "B", SCATTERED_TIB, full));
                }
                _ => {}
            }
            goals.push(at_most(format!("{}: heap once empty", of.work), "B", SMALL_HEAP, empty));
        }
        goals
    }
}
