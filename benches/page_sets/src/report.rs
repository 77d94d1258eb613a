//! The tables of results.

use std::fs;

use page_sets::{Peer, Size};
use serde::Serialize;

use crate::goals::{Goal, goals};
use crate::measure::Measured;

/// All results.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    processor: String,
    size: String,
    runs: u32,
    measured: Vec<Measured>,
    goals: Vec<Goal>,
}

impl Report {
    pub(crate) fn new(size: Size, runs: u32, measured: Vec<Measured>) -> Self {
        let goals = goals(size, &measured);
        Self { processor: processor(), size: size.to_string(), runs, measured, goals }
    }

    pub(crate) fn print(&self) {
        println!(
            "{}, one core; guest of {}; fastest of {} runs",
            self.processor, self.size, self.runs
        );
        let peers = self.peers();
        println!("\nTime of one operation");
        self.print_head(&peers);
        for (work, phase) in self.rows() {
            let cells = peers.iter().map(|&peer| self.time(peer, &work, &phase));
            print_row(&format!("{work} {phase}"), cells);
        }
        println!("\nHeap before all is taken, and for each range");
        self.print_head(&peers);
        for work in self.works() {
            print_row(&work, peers.iter().map(|&peer| self.heap(peer, &work)));
        }
        println!("\nHeap once all is taken");
        self.print_head(&peers);
        for work in self.works() {
            print_row(&work, peers.iter().map(|&peer| self.heap_left(peer, &work)));
        }
        println!("\nGoals");
        for goal in &self.goals {
            let met = if goal.met { "met" } else { "MISSED" };
            let (reached, wanted) = (number(goal.reached), number(goal.goal));
            println!("{:<44} {reached:>12} of {wanted:>12} {:<5} {met}", goal.what, goal.unit);
        }
    }

    fn print_head(&self, peers: &[Peer]) {
        print_row("", peers.iter().map(|peer| peer.name().to_owned()));
    }

    fn peers(&self) -> Vec<Peer> {
        let mut peers: Vec<Peer> = self.measured.iter().map(|of| of.peer).collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    fn works(&self) -> Vec<String> {
        let mut works: Vec<String> = self.measured.iter().map(|of| of.work.clone()).collect();
        works.dedup();
        works
    }

    fn rows(&self) -> Vec<(String, String)> {
        let phases = |work: String| {
            let of = self.measured.iter().find(|of| of.work == work);
            of.into_iter()
                .flat_map(|of| &of.phases)
                .map(|timed| (work.clone(), timed.phase.clone()))
                .collect::<Vec<_>>()
        };
        self.works().into_iter().flat_map(phases).collect()
    }

    fn of(&self, peer: Peer, work: &str) -> Option<&Measured> {
        self.measured.iter().find(|of| of.is_of(peer, work))
    }

    fn time(&self, peer: Peer, work: &str, phase: &str) -> String {
        let timed =
            self.of(peer, work).and_then(|of| of.phases.iter().find(|timed| timed.phase == phase));
        timed.map_or_else(|| "-".into(), |timed| duration(timed.each()))
    }

    #[expect(clippy::cast_precision_loss, reason = "figures to read")]
    fn heap(&self, peer: Peer, work: &str) -> String {
        let Some(of) = self.of(peer, work) else { return "-".into() };
        let Some((full, _)) = of.heap() else { return "-".into() };
        let each = full as f64 / of.answers.ranges.max(1) as f64;
        if of.answers.ranges > 1 {
            format!("{} {}B", bytes(full), number(each))
        } else {
            bytes(full)
        }
    }

    fn heap_left(&self, peer: Peer, work: &str) -> String {
        let heap = self.of(peer, work).and_then(Measured::heap);
        heap.map_or_else(|| "-".into(), |(_, empty)| bytes(empty))
    }
}

fn print_row(name: &str, cells: impl Iterator<Item = String>) {
    let cells: String = cells.map(|cell| format!("{cell:>17}")).collect();
    println!("{name:<16}{cells}");
}

fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e4 => format!("{} ns", number(ns)),
        ns if ns < 1e7 => format!("{} us", number(ns / 1e3)),
        ns => format!("{} ms", number(ns / 1e6)),
    }
}

#[expect(clippy::cast_precision_loss, reason = "figures to read")]
fn bytes(bytes: usize) -> String {
    match bytes as f64 / 1024.0 {
        kib if kib < 1.0 => format!("{bytes} B"),
        kib if kib < 1024.0 => format!("{} KiB", number(kib)),
        kib => format!("{} MiB", number(kib / 1024.0)),
    }
}

/// Formats with three significant digits.
fn number(number: f64) -> String {
    match number {
        number if number < 10.0 => format!("{number:.2}"),
        number if number < 100.0 => format!("{number:.1}"),
        number => format!("{number:.0}"),
    }
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| "unknown processor".into())
}
