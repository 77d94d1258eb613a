//! The summary as text.

use std::fmt::Write;

use crate::goals::Goal;
use crate::summary::{Row, Spread, Unit};
use e2e::peer::Peer;

const NAME: usize = 36;
const CELL: usize = 26;
const RATIO: usize = 16;

/// The rows as a table: median and range for each peer, and the ratios to `hvb`.
pub(crate) fn table(rows: &[Row], peers: &[Peer]) -> String {
    let mut text = String::new();
    let others = || peers.iter().filter(|peer| **peer != Peer::Hvb && peers.contains(&Peer::Hvb));
    for (unit, title) in [
        (Unit::Wall, "seconds: median (least-most)"),
        (Unit::Cpu, "CPU seconds"),
        (Unit::Mib, "MiB"),
        (Unit::Count, "how often"),
    ] {
        let _ = write!(text, "\n{title:<NAME$}");
        for peer in peers {
            let _ = write!(text, "{:>CELL$}", peer.name());
        }
        for peer in others() {
            let _ = write!(text, "{:>RATIO$}", short_name(*peer));
        }
        text.push('\n');
        for row in rows.iter().filter(|row| row.unit == unit) {
            let _ = write!(text, "{:<NAME$}", row.name);
            for peer in peers {
                let _ = write!(text, "{:>CELL$}", cell(unit, row.peers.get(peer)));
            }
            for peer in others() {
                let times = row.times_hvb.get(peer);
                let times = times.map_or_else(|| "n/a".to_owned(), |times| format!("{times:.2} x"));
                let _ = write!(text, "{times:>RATIO$}");
            }
            text.push('\n');
        }
    }
    text
}

/// The heading of the column with this peer's ratios to `hvb`.
fn short_name(peer: Peer) -> &'static str {
    match peer {
        Peer::Hvb => "",
        Peer::HvBalloon => "hv / hvb",
        Peer::VirtioBalloon => "virtio / hvb",
        Peer::Microvm => "microvm / hvb",
    }
}

fn cell(unit: Unit, spread: Option<&Spread>) -> String {
    let Some(Spread { median, least, most }) = spread else { return "n/a".to_owned() };
    let places = if matches!(unit, Unit::Wall | Unit::Cpu) { 3 } else { 0 };
    match least < most {
        true => format!("{median:.places$} ({least:.places$}-{most:.places$})"),
        false => format!("{median:.places$}"),
    }
}

/// The goals, one per line.
pub(crate) fn goals(goals: &[Goal]) -> String {
    let line = |goal: &Goal| {
        let met = match goal.met {
            Some(true) => "met",
            Some(false) => "missed",
            None => "open",
        };
        format!("{met:<8}{}: {}\n", goal.goal, goal.measured)
    };
    goals.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_cannot_do_it_has_no_figure() {
        let spread = Spread { median: 2.0, least: 1.0, most: 3.5 };
        let row = Row {
            name: "hot-add",
            unit: Unit::Wall,
            peers: [(Peer::Hvb, spread)].into(),
            times_hvb: [].into(),
        };
        let text = table(&[row], &[Peer::Hvb, Peer::VirtioBalloon]);
        let line = text.lines().find(|line| line.starts_with("hot-add")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["hot-add", "2.000", "(1.000-3.500)", "n/a", "n/a"]);
    }
}
