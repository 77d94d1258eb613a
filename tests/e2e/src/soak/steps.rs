//! The steps of a soak, and the choice of the next one.

use std::fmt;
use std::time::Duration;

use super::devices::MOST_STORED;
use super::dice::Dice;
use super::{LEAST, MOST};
use crate::MIB;

/// One step, with all its random parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The guest gets another size; with `watched`, a client waits for the event that reports it.
    Resize { target: u64, watched: bool },
    /// A new target is set before the previous one is reached.
    ChangeOfMind { targets: Vec<(u64, Duration)>, last: u64 },
    /// A process in the guest writes to this much memory, as far as it is available.
    Touch(u64),
    /// The checker's memory limit changes.
    CheckerSize(u64),
    /// Every query is made, and the answers agree.
    Queries,
    /// The guest's memory pressure report is queried.
    Report,
    /// Impossible targets are refused.
    BadTargets,
    /// Clients of the monitor come and go.
    Clients(Visit),
    /// The driver leaves and comes back, with or without a request under way.
    Reload { midway: Option<u64> },
    /// The machine is reset, with or without a request under way.
    Reset { how: ResetBy, midway: Option<u64> },
    /// Something else is stored on the disk, and the network is used, perhaps while the guest's size
    /// changes.
    Devices { seed: u64, mib: u64, midway: Option<u64> },
}

/// A client's behaviour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// It stays, up to a number of clients.
    Stay,
    /// It sends something that is not QMP.
    Garbage,
    /// It disconnects in the middle of a command.
    HangUp,
    /// All leave.
    Leave,
}

/// The ways to reset the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ResetBy {
    /// The monitor.
    Monitor,
    /// A reboot of the guest.
    Reboot,
    /// A crash of the guest's kernel.
    Crash,
}

impl ResetBy {
    pub(super) const ALL: [Self; 3] = [Self::Monitor, Self::Reboot, Self::Crash];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Monitor => "system_reset",
            Self::Reboot => "reboot",
            Self::Crash => "crash",
        }
    }
}

/// The kinds of steps, each with its weight and its name in the report. The last one is for machines with
/// devices.
const KINDS: [(u64, Kind, &str); 11] = [
    (34, Kind::Resize, "resize"),
    (16, Kind::ChangeOfMind, "change of mind"),
    (8, Kind::Touch, "touch of free memory"),
    (8, Kind::CheckerSize, "checker's size"),
    (8, Kind::Queries, "queries"),
    (5, Kind::Report, "status report"),
    (4, Kind::BadTargets, "impossible targets"),
    (9, Kind::Clients, "clients"),
    (5, Kind::Reload, "driver reload"),
    (5, Kind::Reset, "reset"),
    (15, Kind::Devices, "disk and network"),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Resize,
    ChangeOfMind,
    Touch,
    CheckerSize,
    Queries,
    Report,
    BadTargets,
    Clients,
    Reload,
    Reset,
    Devices,
}

impl Step {
    /// The step that these dice choose. If the guest has lost much memory to drivers that left, it
    /// is a reset, the only useful step for such a guest.
    pub(super) fn choose(dice: &mut Dice, worn_out: bool, devices: bool) -> Self {
        let kinds = KINDS.map(|(weight, kind, _)| (weight, kind));
        let count = kinds.len() - usize::from(!devices);
        let kind = dice.weighted(&kinds[..count]);
        match if worn_out { Kind::Reset } else { kind } {
            Kind::Resize => Self::Resize { target: target(dice), watched: dice.one_in(4) },
            Kind::ChangeOfMind => {
                let count = dice.between(1, 3);
                let targets = (0..count).map(|_| (target(dice), pause(dice))).collect();
                Self::ChangeOfMind { targets, last: target(dice) }
            }
            Kind::Touch => Self::Touch(dice.between(32, 256) * MIB),
            Kind::CheckerSize => Self::CheckerSize(dice.between(16, 160) * MIB),
            Kind::Queries => Self::Queries,
            Kind::Report => Self::Report,
            Kind::BadTargets => Self::BadTargets,
            Kind::Clients => Self::Clients(dice.weighted(&[
                (3, Visit::Stay),
                (2, Visit::Garbage),
                (2, Visit::HangUp),
                (2, Visit::Leave),
            ])),
            Kind::Reload => Self::Reload { midway: sometimes(dice) },
            Kind::Reset => {
                let weights = [3, 2, 1];
                let ways = [0, 1, 2].map(|n| (weights[n], ResetBy::ALL[n]));
                Self::Reset { how: dice.weighted(&ways), midway: sometimes(dice) }
            }
            Kind::Devices => Self::Devices {
                seed: dice.between(1, 1000),
                mib: dice.between(1, MOST_STORED),
                midway: sometimes(dice),
            },
        }
    }

    /// The name of this kind of step in the report.
    pub(super) fn name(&self) -> &'static str {
        let kind = match self {
            Self::Resize { .. } => Kind::Resize,
            Self::ChangeOfMind { .. } => Kind::ChangeOfMind,
            Self::Touch(_) => Kind::Touch,
            Self::CheckerSize(_) => Kind::CheckerSize,
            Self::Queries => Kind::Queries,
            Self::Report => Kind::Report,
            Self::BadTargets => Kind::BadTargets,
            Self::Clients(_) => Kind::Clients,
            Self::Reload { .. } => Kind::Reload,
            Self::Reset { .. } => Kind::Reset,
            Self::Devices { .. } => Kind::Devices,
        };
        KINDS.iter().find(|(_, found, _)| *found == kind).map_or("", |(_, _, name)| name)
    }

    /// The names of all kinds, in the report's order.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        KINDS.iter().map(|(_, _, name)| *name)
    }
}

/// A target size, to the page; occasionally the largest, or close to the smallest.
fn target(dice: &mut Dice) -> u64 {
    const PAGE: u64 = 4096;
    match dice.between(0, 9) {
        0 => MOST,
        1 => LEAST,
        2..=5 => dice.between(LEAST / MIB, MOST / MIB) * MIB,
        _ => dice.between(LEAST / PAGE, MOST / PAGE) * PAGE,
    }
}

fn pause(dice: &mut Dice) -> Duration {
    Duration::from_millis(match dice.between(0, 2) {
        0 => 0,
        1 => dice.between(1, 50),
        _ => dice.between(50, 800),
    })
}

fn sometimes(dice: &mut Dice) -> Option<u64> {
    dice.one_in(2).then(|| target(dice))
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resize { target, watched } => {
                write!(
                    f,
                    "resize to {} KiB{}",
                    target / 1024,
                    if *watched { ", watched" } else { "" }
                )
            }
            Self::ChangeOfMind { targets, last } => {
                f.write_str("resize to")?;
                for (target, pause) in targets {
                    write!(f, " {} KiB, after {pause:?} to", target / 1024)?;
                }
                write!(f, " {} KiB", last / 1024)
            }
            Self::CheckerSize(bytes) => write!(f, "checker may have {} MiB", bytes / MIB),
            Self::Clients(visit) => write!(f, "clients: {visit:?}"),
            Self::Reload { midway } => write!(f, "driver reload{}", Midway(*midway)),
            Self::Reset { how, midway } => write!(f, "{}{}", how.name(), Midway(*midway)),
            Self::Devices { seed, mib, midway } => {
                write!(f, "store {mib} MiB of {seed}{}", Midway(*midway))
            }
            Self::Touch(bytes) => write!(f, "touch of {} MiB", bytes / MIB),
            Self::Queries | Self::Report | Self::BadTargets => f.write_str(self.name()),
        }
    }
}

struct Midway(Option<u64>);

impl fmt::Display for Midway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(target) => write!(f, " on the way to {} KiB", target / 1024),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(worn_out: bool, devices: bool) -> Vec<Step> {
        (0..2000).map(|n| Step::choose(&mut Dice::new(5, n), worn_out, devices)).collect()
    }

    #[test]
    fn every_kind_of_step_comes_and_so_do_both_ends_of_the_sizes() {
        let steps = steps(false, true);
        for name in Step::names() {
            assert!(steps.iter().any(|step| step.name() == name), "no {name}");
        }
        for size in [LEAST, MOST] {
            assert!(
                steps.iter().any(|s| matches!(s, Step::Resize { target, .. } if *target == size))
            );
        }
        for how in ResetBy::ALL {
            assert!(steps.iter().any(|s| matches!(s, Step::Reset { how: h, .. } if *h == how)));
        }
    }

    #[test]
    fn what_needs_devices_comes_with_devices_only() {
        assert!(!steps(false, false).iter().any(|step| matches!(step, Step::Devices { .. })));
    }

    #[test]
    fn a_worn_out_guest_is_reset() {
        assert!(steps(true, true).iter().all(|step| matches!(step, Step::Reset { .. })));
    }
}
