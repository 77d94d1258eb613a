//! The actions and observations of a soak, and the table of them.

use std::collections::BTreeMap;
use std::fmt;

use qmp::DynamicMemoryInfo;

use super::footprint::Footprint;
use super::steps::{ResetBy, Step};
use super::{MORE_PRIVATE_AT_END, MORE_PRIVATE_EVER, MORE_PRIVATE_HUGE, OVER_THE_BOOKS};
use crate::{Checked, MIB};

/// All figures of a soak.
#[derive(Debug, Default)]
pub(super) struct Tally {
    steps: BTreeMap<&'static str, u64>,
    pub(super) reached: u64,
    pub(super) stopped: u64,
    pub(super) resets: BTreeMap<ResetBy, u64>,
    pub(super) resets_midway: u64,
    pub(super) reloads: u64,
    pub(super) reloads_midway: u64,
    pub(super) clients: u64,
    pub(super) reports: u64,
    pub(super) events: BTreeMap<String, u64>,
    pub(super) moved: Moved,
    pub(super) checks: Checks,
    pub(super) host: Host,
}

/// Memory that moved between guest and host, in bytes.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) ballooned: u64,
    pub(super) returned: u64,
    pub(super) added: u64,
}

/// The work of the checkers in the guest; each boot has its own checker.
#[derive(Debug, Default)]
pub(super) struct Checks {
    /// How often everything was verified.
    pub(super) asked: u64,
    verified_before: u64,
    verified: u64,
    pub(super) mismatches: u64,
    smallest: Option<u64>,
    largest: u64,
}

/// Observations of the `hvb` process.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) start: Option<Footprint>,
    pub(super) end: Option<Footprint>,
    pub(super) most: Footprint,
    /// The guest's resident memory beyond its size by the books.
    pub(super) over: u64,
    looks: u64,
}

impl Tally {
    pub(super) fn count(&mut self, step: &Step) {
        *self.steps.entry(step.name()).or_default() += 1;
    }

    pub(super) fn steps(&self) -> u64 {
        self.steps.values().sum()
    }

    pub(super) fn resets(&self) -> u64 {
        self.resets.values().sum()
    }
}

impl Moved {
    /// Adds the changes between two observations of the same machine.
    pub(super) fn add(&mut self, before: &DynamicMemoryInfo, now: &DynamicMemoryInfo) {
        self.ballooned += now.ballooned.saturating_sub(before.ballooned);
        self.returned += before.ballooned.saturating_sub(now.ballooned);
        self.added += now.hot_added.saturating_sub(before.hot_added);
    }
}

impl Checks {
    pub(super) fn add(&mut self, checked: &Checked) {
        self.asked += 1;
        self.verified = checked.verified;
        self.smallest = Some(self.smallest.map_or(checked.pages, |least| least.min(checked.pages)));
        self.largest = self.largest.max(checked.pages);
    }

    /// Starts over: the checker is gone with its guest.
    pub(super) fn begin_anew(&mut self) {
        self.verified_before += std::mem::take(&mut self.verified);
    }

    fn verified(&self) -> u64 {
        self.verified_before + self.verified
    }
}

impl Host {
    pub(super) fn add(&mut self, now: &Footprint, over: u64) {
        self.looks += 1;
        self.over = self.over.max(over);
        let most = &mut self.most;
        most.guest = most.guest.max(now.guest);
        most.private = most.private.max(now.private);
        most.private_huge = most.private_huge.max(now.private_huge);
        most.descriptors = most.descriptors.max(now.descriptors);
        most.threads = most.threads.max(now.threads);
        most.mappings = most.mappings.max(now.mappings);
        most.guest_mappings = most.guest_mappings.max(now.guest_mappings);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<24}{value}");
        row("steps", self.steps().to_string())?;
        for name in Step::names() {
            row(&format!("  {name}"), self.steps.get(name).unwrap_or(&0).to_string())?;
        }
        let (reached, stopped) = (self.reached, self.stopped);
        row("targets", format!("{reached} reached, {stopped} stopped by the guest's floor"))?;
        let by = |how: ResetBy| format!("{} {}", self.resets.get(&how).unwrap_or(&0), how.name());
        let ways = ResetBy::ALL.map(by).join(", ");
        row("resets", format!("{} ({ways}), {} midway", self.resets(), self.resets_midway))?;
        row("driver reloads", format!("{}, {} midway", self.reloads, self.reloads_midway))?;
        row("clients", format!("{} came and went", self.clients))?;
        row("status reports", format!("{} answered", self.reports))?;
        let events = self.events.iter().map(|(name, count)| format!("{count} {name}"));
        row("events", events.collect::<Vec<_>>().join(", "))?;
        self.memory(f)?;
        self.host(f)
    }
}

impl Tally {
    fn memory(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<24}{value}");
        let Moved { ballooned, returned, added } = self.moved;
        let [ballooned, returned, added] = [ballooned, returned, added].map(gib);
        row("memory", format!("ballooned {ballooned}, returned {returned}, hot-added {added}"))?;
        let checks = &self.checks;
        let size = |pages: u64| pages * 4096 / MIB;
        row(
            "checks in the guest",
            format!(
                "{} of all, {} pages looked at, {} to {} MiB and a file",
                checks.asked,
                checks.verified(),
                size(checks.smallest.unwrap_or(0)),
                size(checks.largest)
            ),
        )?;
        row("mismatches", checks.mismatches.to_string())
    }

    fn host(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: String| writeln!(f, "  {name:<24}{value}");
        let host = &self.host;
        row(
            "guest's resident memory",
            format!(
                "at most {} over its books in {} looks (limit {})",
                kib(host.over),
                host.looks,
                kib(OVER_THE_BOOKS)
            ),
        )?;
        let (start, end) = (host.start.unwrap_or_default(), host.end.unwrap_or_default());
        row(
            "hvb's private memory",
            format!(
                "start {}, end {} (limit {} more), most {} (limit {} more)",
                kib(start.private),
                kib(end.private),
                kib(MORE_PRIVATE_AT_END),
                kib(host.most.private),
                kib(MORE_PRIVATE_EVER)
            ),
        )?;
        row(
            "  in huge pages",
            format!(
                "start {}, end {}, most {} (limit {} more)",
                kib(start.private_huge),
                kib(end.private_huge),
                kib(host.most.private_huge),
                kib(MORE_PRIVATE_HUGE)
            ),
        )?;
        for (name, of) in [
            ("descriptors", (|f| f.descriptors) as fn(&Footprint) -> u64),
            ("threads", |f| f.threads),
            ("mappings", |f| f.mappings),
            ("mappings, guest", |f| f.guest_mappings),
        ] {
            let (start, end, most) = (of(&start), of(&end), of(&host.most));
            row(&format!("hvb's {name}"), format!("start {start}, end {end}, most {most}"))?;
        }
        Ok(())
    }
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes / 1024)
}

fn gib(bytes: u64) -> String {
    // Tenths of a GiB, rounded.
    let tenths = (bytes * 10 + (512 << 20)) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_sides_is_counted_in_its_direction() {
        let look = |ballooned, hot_added| DynamicMemoryInfo {
            ballooned,
            hot_added,
            ..DynamicMemoryInfo::default()
        };
        let mut moved = Moved::default();
        moved.add(&look(0, 0), &look(5, 7));
        moved.add(&look(5, 7), &look(2, 7));
        assert_eq!((moved.ballooned, moved.returned, moved.added), (5, 3, 7));
    }

    #[test]
    fn checks_of_earlier_boots_count_too() {
        let mut checks = Checks::default();
        let checked = |pages, verified| Checked { pages, verified, ..Checked::default() };
        checks.add(&checked(10, 100));
        checks.add(&checked(30, 150));
        checks.begin_anew();
        checks.add(&checked(20, 40));
        assert_eq!((checks.verified(), checks.smallest, checks.largest), (190, Some(10), 30));
    }

    #[test]
    fn sizes_are_rounded_to_tenths() {
        assert_eq!(gib((3 << 30) + (1 << 28)), "3.3 GiB");
        assert_eq!(gib((3 << 30) - 1), "3.0 GiB");
    }
}
