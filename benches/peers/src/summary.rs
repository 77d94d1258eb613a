//! The summary of the rounds: a row for each thing measured, with all peers side by side.

use std::collections::BTreeMap;

use e2e::MIB;
use serde::Serialize;

use crate::round::Round;
use e2e::peer::Peer;

/// The unit of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    /// Seconds of elapsed time.
    #[serde(rename = "seconds")]
    Wall,
    /// Seconds of CPU time.
    #[serde(rename = "CPU seconds")]
    Cpu,
    /// MiB.
    #[serde(rename = "MiB")]
    Mib,
    /// A number of events.
    #[serde(rename = "count")]
    Count,
}

/// A thing measured, by peer. Peers that cannot do it are missing.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) peers: BTreeMap<Peer, Spread>,
    /// The median of each other peer, divided by that of `hvb`.
    pub(crate) times_hvb: BTreeMap<Peer, f64>,
}

/// The median and the range of the values of all rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

type Value = fn(&Round) -> Option<f64>;

/// The names of the rows that the goals are about.
pub(crate) const SHRINK: [&str; 2] = ["shrink, by the monitor", "shrink, by MemTotal"];
pub(crate) const RETURN: [&str; 2] = ["return, by the monitor", "return, by MemTotal"];
pub(crate) const ALL_CPU: [&str; 3] =
    ["all steps, device threads", "all steps, all but vCPUs", "all steps, whole process"];

const ROWS: [(&str, Unit, Value); 28] = [
    ("start until a target has an effect", Unit::Wall, |round| Some(round.first_effect)),
    (SHRINK[0], Unit::Wall, |round| Some(round.shrink.monitor)),
    (SHRINK[1], Unit::Wall, |round| Some(round.shrink.guest)),
    (RETURN[0], Unit::Wall, |round| Some(round.give_back.monitor)),
    (RETURN[1], Unit::Wall, |round| Some(round.give_back.guest)),
    ("hot-add, by the monitor", Unit::Wall, |round| Some(round.add.as_ref()?.monitor)),
    ("hot-add, by MemTotal", Unit::Wall, |round| Some(round.add.as_ref()?.guest)),
    ("shrink, device threads", Unit::Cpu, |round| Some(round.shrink.cpu.device)),
    ("shrink, all but vCPUs", Unit::Cpu, |round| Some(round.shrink.cpu.beside())),
    ("shrink, whole process", Unit::Cpu, |round| Some(round.shrink.cpu.process)),
    ("return, device threads", Unit::Cpu, |round| Some(round.give_back.cpu.device)),
    ("return, all but vCPUs", Unit::Cpu, |round| Some(round.give_back.cpu.beside())),
    ("return, whole process", Unit::Cpu, |round| Some(round.give_back.cpu.process)),
    ("hot-add, device threads", Unit::Cpu, |round| Some(round.add.as_ref()?.cpu.device)),
    ("hot-add, all but vCPUs", Unit::Cpu, |round| Some(round.add.as_ref()?.cpu.beside())),
    ("hot-add, whole process", Unit::Cpu, |round| Some(round.add.as_ref()?.cpu.process)),
    (ALL_CPU[0], Unit::Cpu, |round| {
        Some(round.shrink.cpu.device + round.give_back.cpu.device + round.add.as_ref()?.cpu.device)
    }),
    (ALL_CPU[1], Unit::Cpu, |round| {
        Some(
            round.shrink.cpu.beside()
                + round.give_back.cpu.beside()
                + round.add.as_ref()?.cpu.beside(),
        )
    }),
    (ALL_CPU[2], Unit::Cpu, |round| {
        Some(
            round.shrink.cpu.process
                + round.give_back.cpu.process
                + round.add.as_ref()?.cpu.process,
        )
    }),
    ("resident before", Unit::Mib, |round| Some(mib(round.resident))),
    ("of it in huge pages", Unit::Mib, |round| Some(mib(round.huge))),
    ("resident after shrink", Unit::Mib, |round| Some(mib(round.shrink.resident))),
    ("resident after return", Unit::Mib, |round| Some(mib(round.give_back.resident))),
    ("resident after hot-add", Unit::Mib, |round| Some(mib(round.add.as_ref()?.resident))),
    ("VM exits, shrink", Unit::Count, |round| count(round.shrink.exits)),
    ("VM exits, return", Unit::Count, |round| count(round.give_back.exits)),
    ("VM exits, hot-add", Unit::Count, |round| count(round.add.as_ref()?.exits)),
    ("boot until the agent is up", Unit::Wall, |round| Some(round.booted)),
];

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

fn count(exits: Option<u64>) -> Option<f64> {
    exits.map(|exits| exits as f64)
}

/// All rows.
pub(crate) fn rows(rounds: &[Round]) -> Vec<Row> {
    let row = |&(name, unit, value): &(&'static str, Unit, Value)| {
        let spread = |peer| {
            let of_peer = rounds.iter().filter(|round| round.peer == peer);
            Some((peer, Spread::of(of_peer.filter_map(value).collect())?))
        };
        let peers: BTreeMap<Peer, Spread> = Peer::ALL.into_iter().filter_map(spread).collect();
        Row { name, unit, times_hvb: times_hvb(&peers), peers }
    };
    ROWS.iter().map(row).collect()
}

fn times_hvb(peers: &BTreeMap<Peer, Spread>) -> BTreeMap<Peer, f64> {
    let Some(ours) = peers.get(&Peer::Hvb).filter(|ours| ours.median > 0.0) else {
        return BTreeMap::new();
    };
    let others = peers.iter().filter(|(peer, _)| **peer != Peer::Hvb);
    others.map(|(peer, theirs)| (*peer, theirs.median / ours.median)).collect()
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => f64::midpoint(*values.get(middle.checked_sub(1)?)?, *values.get(middle)?),
            _ => *values.get(middle)?,
        };
        Some(Self { median, least: *values.first()?, most: *values.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_stands_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0]), Some(Spread { median: 3.0, least: 3.0, most: 3.0 }));
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(Spread { median: 2.0, least: 1.0, most: 9.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, least: 1.0, most: 4.0 }));
    }

    #[test]
    fn rows_have_names_of_their_own_and_hold_those_that_goals_are_about() {
        let rows = rows(&[]);
        let mut names: Vec<&str> = rows.iter().map(|row| row.name).collect();
        assert!(SHRINK.iter().chain(&RETURN).chain(&ALL_CPU).all(|name| names.contains(name)));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), rows.len());
    }
}
