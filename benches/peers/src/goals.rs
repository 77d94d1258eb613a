//! The project's goals for these figures, and whether they are met.

use serde::Serialize;

use crate::summary::{ALL_CPU, RETURN, Row, SHRINK, Unit};
use e2e::peer::Peer;

/// A goal and the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Goal {
    pub(crate) goal: String,
    /// The measured figure.
    pub(crate) measured: String,
    /// `None` if a peer that it concerns was not measured.
    pub(crate) met: Option<bool>,
}

const NOT_MEASURED: &str = "not measured";

/// All goals.
pub(crate) fn goals(rows: &[Row]) -> Vec<Goal> {
    let find = |name| rows.iter().find(|row| row.name == name);
    let mut goals = Vec::new();
    for (names, least) in [(SHRINK, 20.0), (RETURN, 1000.0)] {
        for row in names.into_iter().filter_map(find) {
            let goal = format!("{}: at least {least} x as fast as virtio-balloon", row.name);
            goals.push(at_least(goal, row, Peer::VirtioBalloon, least));
        }
    }
    goals.push(no_row_slower(rows));
    goals.push(faster_on_most(rows));
    for row in ALL_CPU.into_iter().filter_map(find) {
        let goal = format!("{}: at most half the CPU of QEMU's hv-balloon", row.name);
        goals.push(at_least(goal, row, Peer::HvBalloon, 2.0));
    }
    goals
}

fn at_least(goal: String, row: &Row, peer: Peer, least: f64) -> Goal {
    let times = row.times_hvb.get(&peer);
    let measured = times.map_or_else(|| NOT_MEASURED.to_owned(), |times| format!("{times:.2} x"));
    Goal { goal, measured, met: times.map(|times| *times >= least) }
}

/// The rows of elapsed time for which both peers were measured, with QEMU's time relative to
/// `hvb`'s.
fn against_hv_balloon(rows: &[Row]) -> Vec<(&'static str, f64)> {
    // The time before the guest's driver starts says nothing about the balloon.
    let walls = rows.iter().filter(|row| row.unit == Unit::Wall && !row.name.starts_with("boot"));
    walls.filter_map(|row| Some((row.name, *row.times_hvb.get(&Peer::HvBalloon)?))).collect()
}

fn no_row_slower(rows: &[Row]) -> Goal {
    let all = against_hv_balloon(rows);
    let slower: Vec<String> = all
        .iter()
        .filter(|(_, times)| *times < 1.0)
        .map(|(name, times)| format!("{name} ({times:.3} x)"))
        .collect();
    let measured = match (all.is_empty(), slower.is_empty()) {
        (true, _) => NOT_MEASURED.to_owned(),
        (_, true) => "none is slower".to_owned(),
        (_, false) => format!("slower: {}", slower.join(", ")),
    };
    let goal = "no slower than QEMU's hv-balloon on any row".to_owned();
    Goal { goal, measured, met: (!all.is_empty()).then_some(slower.is_empty()) }
}

fn faster_on_most(rows: &[Row]) -> Goal {
    let all = against_hv_balloon(rows);
    let faster = all.iter().filter(|(_, times)| *times > 1.0).count();
    Goal {
        goal: "faster than QEMU's hv-balloon on most rows".to_owned(),
        measured: match all.len() {
            0 => NOT_MEASURED.to_owned(),
            rows => format!("{faster} of {rows}"),
        },
        met: (!all.is_empty()).then_some(2 * faster > all.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn row(name: &'static str, unit: Unit, hv: f64, virtio: f64) -> Row {
        let times_hvb = [(Peer::HvBalloon, hv), (Peer::VirtioBalloon, virtio)];
        Row { name, unit, peers: BTreeMap::new(), times_hvb: times_hvb.into() }
    }

    fn met(goals: &[Goal]) -> Vec<Option<bool>> {
        goals.iter().map(|goal| goal.met).collect()
    }

    #[test]
    fn goals_are_met_at_their_bound_and_missed_below() {
        let rows = [
            row(SHRINK[0], Unit::Wall, 1.0, 20.0),
            row(SHRINK[1], Unit::Wall, 1.5, 19.9),
            row(RETURN[0], Unit::Wall, 1.5, 1000.0),
            row(ALL_CPU[0], Unit::Cpu, 2.0, 9.0),
            row(ALL_CPU[2], Unit::Cpu, 1.9, 9.0),
            row("boot until the agent is up", Unit::Wall, 0.5, 0.5),
        ];
        let yes = Some(true);
        let no = Some(false);
        assert_eq!(met(&goals(&rows)), [yes, no, yes, yes, yes, yes, no]);
    }

    #[test]
    fn a_slower_row_is_named() {
        let rows = [row(RETURN[0], Unit::Wall, 0.5, 1.0), row(SHRINK[0], Unit::Wall, 2.0, 30.0)];
        let goals = goals(&rows);
        let slower = goals.iter().find(|goal| goal.goal.starts_with("no slower")).unwrap();
        assert_eq!(slower.measured, format!("slower: {} (0.500 x)", RETURN[0]));
        assert_eq!(slower.met, Some(false));
        let most = goals.iter().find(|goal| goal.goal.starts_with("faster")).unwrap();
        assert_eq!((most.measured.as_str(), most.met), ("1 of 2", Some(false)));
    }

    #[test]
    fn nothing_is_said_of_a_peer_that_was_not_measured() {
        let rows = crate::summary::rows(&[]);
        assert!(
            goals(&rows).iter().all(|goal| goal.met.is_none() && goal.measured == NOT_MEASURED)
        );
    }
}
