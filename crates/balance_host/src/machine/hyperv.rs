//! Reports of guests with Hyper-V's Dynamic Memory.

use balancer::{Committed, GuestReport};
use qmp::{DynamicMemoryInfo, MonitorError, Value};

use crate::reading::Stamped;

use super::KIB;

/// `HV_BALLOON_STATUS_REPORT`, in KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StatusReport {
    committed_kib: u64,
    available_kib: u64,
}

/// What the host's side knows that belongs to a report.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    /// The size now.
    actual_kib: u64,
    /// What the guest gave up and the host has.
    ballooned_kib: u64,
    /// What the guest gave up and the host does not have, which counts in the size.
    between_kib: u64,
}

impl Known {
    /// What our own monitor tells.
    pub(super) fn of(info: &DynamicMemoryInfo) -> Self {
        let between = info.in_flight.saturating_add(info.held).saturating_add(info.undiscarded);
        Self {
            actual_kib: info.actual / KIB,
            ballooned_kib: info.ballooned / KIB,
            between_kib: between / KIB,
        }
    }

    /// What follows from the memory that a VM has got, ballooned or not.
    pub(super) fn assigned(assigned_kib: u64, actual_kib: u64) -> Self {
        let ballooned_kib = assigned_kib.saturating_sub(actual_kib);
        Self { actual_kib, ballooned_kib, between_kib: 0 }
    }
}

impl StatusReport {
    /// The data of an event, or the answer to the query of the same name.
    pub(super) fn parse(data: &Value) -> Option<Self> {
        let kib = |name| Some(data.get(name)?.as_u64()? / KIB);
        Some(Self { committed_kib: kib("committed")?, available_kib: kib("available")? })
    }

    /// The report of a guest that had `size` then.
    pub(super) fn of_guest(self, size: Stamped<u64>, known: &Known) -> Stamped<GuestReport> {
        // What went between report and now was not ballooned then.
        let since_kib = size.value.saturating_sub(known.actual_kib);
        let ballooned_kib = known.ballooned_kib.saturating_sub(since_kib);
        let report = GuestReport {
            actual_kib: size.value.saturating_sub(known.between_kib),
            available_kib: self.available_kib,
            committed: Some(Committed {
                reported_kib: self.committed_kib,
                ballooned_kib: ballooned_kib.saturating_add(known.between_kib),
            }),
            swapped_in_kib: None,
            oom_kills: None,
        };
        Stamped { value: report, at_ms: size.at_ms }
    }
}

/// What a failed `query-hv-balloon-status-report` says: `None` if there is no device, else whether
/// reports will come.
pub(super) fn reports(desc: &str) -> Option<bool> {
    if desc == MonitorError::status_report_no_device().desc {
        return None;
    }
    Some(desc != MonitorError::status_report_not_enabled().desc)
}

/// The memory that hv-balloon devices can add, of the answer to `query-memory-devices`.
pub(super) fn region_kib(devices: &[Value]) -> u64 {
    let ours = devices.iter().filter(|device| device.get("type") == Some(&"hv-balloon".into()));
    let sizes = ours.filter_map(|device| device.pointer("/data/max-size")?.as_u64());
    sizes.fold(0, |sum, bytes| sum.saturating_add(bytes / KIB))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const GIB: u64 = 1 << 20;

    #[test]
    fn a_report_belongs_to_the_size_that_the_guest_had() {
        let data = json!({ "committed": 6_u64 << 30, "available": 1_u64 << 30 });
        let report = StatusReport::parse(&data).unwrap();
        // Of 8 GiB, 3 are ballooned, of which one has gone since, and half a one is on its way.
        let known = Known { actual_kib: 5 * GIB, ballooned_kib: 3 * GIB, between_kib: GIB / 2 };
        let size = Stamped { value: 6 * GIB, at_ms: 7 };
        let report = report.of_guest(size, &known);
        assert_eq!(report.at_ms, 7);
        assert_eq!(report.value.actual_kib, 6 * GIB - GIB / 2);
        assert_eq!(report.value.available_kib, GIB);
        let committed = Committed { reported_kib: 6 * GIB, ballooned_kib: 2 * GIB + GIB / 2 };
        assert_eq!(report.value.committed, Some(committed));
    }

    #[test]
    fn reports_without_figures_are_none() {
        for data in [
            json!(null),
            json!({ "committed": 1 }),
            json!({ "committed": 1, "available": -1 }),
            json!({ "committed": "1", "available": 1 }),
        ] {
            assert_eq!(StatusReport::parse(&data), None, "{data}");
        }
    }

    #[test]
    fn a_refusal_tells_whether_reports_will_come() {
        assert_eq!(reports(&MonitorError::status_report_no_device().desc), None);
        assert_eq!(reports(&MonitorError::status_report_not_enabled().desc), Some(false));
        assert_eq!(reports(&MonitorError::status_report_none_yet().desc), Some(true));
    }

    #[test]
    fn the_region_is_that_of_hv_balloon_devices() {
        let devices = [
            json!({ "type": "dimm", "data": { "max-size": 5 } }),
            json!({ "type": "hv-balloon", "data": { "max-size": 4_u64 << 30 } }),
            json!({ "type": "hv-balloon", "data": {} }),
        ];
        assert_eq!(region_kib(&devices), 4 * GIB);
    }
}
