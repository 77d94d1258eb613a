//! Statistics of guests with a virtio balloon.

use balancer::GuestReport;
use qmp::Value;

use crate::reading::Stamped;

use super::KIB;

/// A time by two clocks: the daemon's, and that of `last-update`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) ms: u64,
    pub(super) epoch_s: u64,
}

/// What is remembered from one reading to the next.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    last_update: Option<u64>,
    /// The size at the last reading.
    actual_kib: Option<u64>,
    /// How much of the size the guest's kernel does not count as its own.
    beyond_kib: Option<u64>,
}

impl Statistics {
    /// Takes `guest-stats` in, of a VM that has `actual_kib` now; the guest's report if it is new.
    pub(super) fn take(
        &mut self,
        stats: &Value,
        actual_kib: u64,
        now: Moment,
    ) -> Option<Stamped<GuestReport>> {
        let before_kib = self.actual_kib.replace(actual_kib).unwrap_or(actual_kib);
        let updated = stats.get("last-update")?.as_u64().filter(|at| *at > 0)?;
        let last = self.last_update.replace(updated);
        if last == Some(updated) {
            return None;
        }
        // The first may be of any age; the others came since the last reading.
        let age_ms = match last {
            None => now.epoch_s.saturating_sub(updated).saturating_mul(1000),
            Some(_) => 0,
        };
        let figure = |name| figure(stats, name);
        let free_kib = || {
            let free_kib = figure("stat-free-memory")?;
            Some(free_kib.saturating_add(figure("stat-disk-caches").unwrap_or(0)))
        };
        let available_kib = figure("stat-available-memory").or_else(free_kib)?;
        let total_kib = figure("stat-total-memory");
        let report = GuestReport {
            actual_kib: self.size_then(before_kib, actual_kib, total_kib),
            available_kib,
            committed: None,
            swapped_in_kib: figure("stat-swap-in"),
            // A number of processes, not of bytes.
            oom_kills: raw(stats, "stat-oom-kill"),
        };
        Some(Stamped { value: report, at_ms: now.ms.saturating_sub(age_ms) })
    }

    /// The size when the guest reported, which was between two readings.
    ///
    /// Where the size did not change, that is known, and so is what the guest's kernel leaves out of its
    /// total (its own image, memory reserved by firmware). Where it did, the total tells, in guests
    /// whose total falls with the balloon. In others (those with `deflate-on-oom`) this gives the older
    /// size, from which a guest is neither thought short nor squeezed.
    fn size_then(&mut self, before_kib: u64, now_kib: u64, total_kib: Option<u64>) -> u64 {
        let Some(total_kib) = total_kib else { return before_kib };
        if before_kib == now_kib {
            self.beyond_kib = Some(now_kib.saturating_sub(total_kib));
            return now_kib;
        }
        let Some(beyond_kib) = self.beyond_kib else { return before_kib };
        let (low, high) = (before_kib.min(now_kib), before_kib.max(now_kib));
        total_kib.saturating_add(beyond_kib).clamp(low, high)
    }
}

/// A number of the statistics; QEMU gives all ones, or -1, for what the guest did not tell.
fn raw(stats: &Value, name: &str) -> Option<u64> {
    stats.get("stats")?.get(name)?.as_u64().filter(|value| *value != u64::MAX)
}

fn figure(stats: &Value, name: &str) -> Option<u64> {
    raw(stats, name).map(|bytes| bytes / KIB)
}

/// The name of the virtio balloon among the answers of `qom-list`.
pub(super) fn balloon_of(objects: &[Value]) -> Option<&str> {
    let is_balloon = |object: &&Value| {
        let kind = object.get("type").and_then(Value::as_str).unwrap_or_default();
        kind.starts_with("child<virtio-balloon")
    };
    let name = objects.iter().find(is_balloon)?.get("name")?.as_str()?;
    // It becomes a part of a path.
    (!name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GIB: u64 = 1 << 20;

    fn stats(update: u64, total_kib: u64, available_kib: u64) -> Value {
        json!({
            "last-update": update,
            "stats": {
                "stat-total-memory": total_kib * KIB,
                "stat-available-memory": available_kib * KIB,
                "stat-free-memory": 1,
                "stat-swap-in": 4096,
                "stat-oom-kill": 2,
                "stat-htlb-pgfail": u64::MAX,
            },
        })
    }

    const fn at(ms: u64, epoch_s: u64) -> Moment {
        Moment { ms, epoch_s }
    }

    #[test]
    fn a_report_is_new_when_the_guest_s_clock_of_it_moved() {
        let mut statistics = Statistics::default();
        let mut take = |update, now| {
            statistics.take(&stats(update, 3 * GIB, GIB), 4 * GIB, now).map(|report| report.at_ms)
        };
        assert_eq!(take(0, at(9000, 50)), None, "the guest has not answered yet");
        assert_eq!(take(47, at(10_000, 50)), Some(7000), "it is old already");
        assert_eq!(take(47, at(11_000, 51)), None);
        assert_eq!(take(52, at(12_000, 99)), Some(12_000), "other clocks do not matter");
    }

    #[test]
    fn figures_are_in_kib_and_those_not_told_are_none() {
        let mut statistics = Statistics::default();
        let report = statistics.take(&stats(1, 3 * GIB, GIB), 4 * GIB, at(0, 1)).unwrap().value;
        let expected = GuestReport {
            actual_kib: 4 * GIB,
            available_kib: GIB,
            committed: None,
            swapped_in_kib: Some(4),
            oom_kills: Some(2),
        };
        assert_eq!(report, expected);
        let old = json!({
            "last-update": 2,
            "stats": {
                "stat-available-memory": u64::MAX, "stat-swap-in": -1,
                "stat-free-memory": GIB * KIB, "stat-disk-caches": GIB * KIB,
            },
        });
        let report = statistics.take(&old, 4 * GIB, at(0, 1)).unwrap().value;
        assert_eq!((report.available_kib, report.swapped_in_kib), (2 * GIB, None));
        let nothing = json!({ "last-update": 3, "stats": { "stat-free-memory": u64::MAX } });
        assert_eq!(statistics.take(&nothing, 4 * GIB, at(0, 1)), None);
    }

    #[test]
    fn the_size_of_a_report_while_it_changes_is_what_the_guest_s_total_says() {
        let size = |sizes: [u64; 2], totals: [u64; 2]| {
            let mut statistics = Statistics::default();
            statistics.take(&stats(1, totals[0], 0), sizes[0], at(0, 1));
            statistics.take(&stats(2, totals[1], 0), sizes[1], at(0, 2)).unwrap().value.actual_kib
        };
        // The kernel leaves out 1 MiB.
        let total = |size: u64| size - 1024;
        assert_eq!(size([4 * GIB, 2 * GIB], [total(4 * GIB), total(3 * GIB)]), 3 * GIB);
        assert_eq!(size([2 * GIB, 4 * GIB], [total(2 * GIB), total(2 * GIB)]), 2 * GIB);
        assert_eq!(size([2 * GIB, 4 * GIB], [total(2 * GIB), total(9 * GIB)]), 4 * GIB);
        // A total that does not follow the balloon.
        assert_eq!(size([4 * GIB, 2 * GIB], [total(4 * GIB), total(4 * GIB)]), 4 * GIB);
    }

    #[test]
    fn the_balloon_is_found_among_devices() {
        let object = |name: &str, kind: &str| json!({ "name": name, "type": kind });
        let devices = [
            object("type", "string"),
            object("net0", "child<virtio-net-pci>"),
            object("b0", "child<virtio-balloon-pci>"),
        ];
        assert_eq!(balloon_of(&devices), Some("b0"));
        assert_eq!(balloon_of(&devices[..2]), None);
        assert_eq!(balloon_of(&[object("../x", "child<virtio-balloon-pci>")]), None);
        assert_eq!(balloon_of(&[json!(5), json!({ "type": "child<virtio-balloon-pci>" })]), None);
    }
}
