//! Counts of what the runs came across: a simulation that never gets anywhere finds nothing.

use std::collections::BTreeMap;
use std::fmt;

use hv_balloon::{Notice, Snapshot, StateName, StopReason, Transaction};

/// How often things were seen, by kind and name.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    counts: BTreeMap<(&'static str, &'static str), u64>,
    /// Indexed by position in [`StateName::ALL`].
    states: [u64; StateName::ALL.len()],
}

impl Tally {
    /// How often something was seen.
    #[must_use]
    pub fn count(&self, kind: &'static str, name: &'static str) -> u64 {
        self.counts.get(&(kind, name)).copied().unwrap_or(0)
    }

    /// How many events left the device in this state.
    #[must_use]
    pub fn states(&self, state: StateName) -> u64 {
        StateName::ALL.iter().position(|other| *other == state).map_or(0, |at| self.states[at])
    }

    /// Adds the counts of another tally.
    pub fn add(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            *self.counts.entry(*key).or_default() += count;
        }
        for (mine, theirs) in self.states.iter_mut().zip(other.states) {
            *mine += theirs;
        }
    }

    pub(crate) fn see(&mut self, kind: &'static str, name: &'static str) {
        self.see_many(kind, name, 1);
    }

    pub(crate) fn see_many(&mut self, kind: &'static str, name: &'static str, count: u64) {
        if count != 0 {
            *self.counts.entry((kind, name)).or_default() += count;
        }
    }

    pub(crate) fn see_state(&mut self, state: StateName) {
        if let Some(at) = StateName::ALL.iter().position(|other| *other == state) {
            self.states[at] += 1;
        }
    }

    pub(crate) fn see_notice(&mut self, notice: &Notice) {
        let name = match notice {
            Notice::StoppedShort { reason, .. } => return self.see("stop", stop_name(*reason)),
            Notice::TimedOut(what) => return self.see("timeout", timeout_name(*what)),
            Notice::Ready { .. } => "ready",
            Notice::VersionRefused { .. } => "version refused",
            Notice::SizeChanged { .. } => "size changed",
            Notice::HotAddedChanged { .. } => "hot-added changed",
            Notice::TargetReached { .. } => "target reached",
            Notice::DiscardFailed { .. } => "discard failed",
            Notice::StatusReport(_) => "status report",
            Notice::Fault(_) => return,
            _ => "other",
        };
        self.see("notice", name);
    }

    /// Counts the guest's faults in a whole run.
    pub(crate) fn see_faults(&mut self, snapshot: &Snapshot, bus: &vmbus::Faults) {
        for (name, count) in snapshot.faults.iter() {
            self.see_many("fault", name, count);
        }
        for (name, count) in [
            ("unknown messages", bus.unknown_messages),
            ("malformed messages", bus.malformed_messages),
            ("out of state", bus.out_of_state),
            ("unknown channels", bus.unknown_channels),
            ("contacts refused", bus.contacts_refused),
            ("gpadls refused", bus.gpadls_refused),
            ("unknown gpadls", bus.unknown_gpadls),
            ("opens refused", bus.opens_refused),
            ("changes refused", bus.changes_refused),
            ("queue full", bus.queue_full),
        ] {
            self.see_many("bus fault", name, count);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (state, count) in StateName::ALL.iter().zip(self.states) {
            writeln!(f, "{:>14} {count:>12} {state}", "state")?;
        }
        for ((kind, name), count) in &self.counts {
            writeln!(f, "{kind:>14} {count:>12} {name}")?;
        }
        Ok(())
    }
}

const fn stop_name(reason: StopReason) -> &'static str {
    reason.as_str()
}

const fn timeout_name(what: Transaction) -> &'static str {
    match what {
        Transaction::Balloon => "balloon",
        Transaction::Unballoon => "unballoon",
        Transaction::HotAdd => "hot-add",
    }
}
