//! The answer to `x-query-dynamic-memory`: the balloon's state and page accounting.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to `x-query-dynamic-memory`. Sizes are in bytes.
///
/// Once [`Machine::balloon`](crate::Machine::balloon) has returned, `target`, `waiting` and
/// `stopped` describe that call: a client that waits for the guest must not see why an earlier
/// target was missed.
///
/// Fields may be added. Clients treat a missing field as zero or absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DynamicMemoryInfo {
    /// What the device is doing, as one lower-case word.
    pub state: String,
    /// The guest's present size, as `query-balloon` gives it.
    pub actual: u64,
    /// The last size requested, as the device rounded it; absent if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// The largest size the guest can have: boot memory and all memory that can be added.
    #[serde(default)]
    pub maximum: u64,
    /// The memory the guest boots with.
    #[serde(default)]
    pub boot: u64,
    /// Memory added since the guest booted, ballooned or not.
    #[serde(default)]
    pub hot_added: u64,
    /// The memory assigned to the guest, ballooned or not: `boot` plus `hot_added`.
    #[serde(default)]
    pub assigned: u64,
    /// Memory that the guest gave up and the host has back: `assigned` less `actual` and
    /// `unconfirmed`.
    #[serde(default)]
    pub ballooned: u64,
    /// Memory added before the guest's kernel started, as with kexec, of which the kernel has not
    /// shown that it has it. Not part of `actual`, and not offered again.
    #[serde(default)]
    pub unconfirmed: u64,
    /// Memory that the guest gave up and the host does not have back yet.
    #[serde(default)]
    pub in_flight: u64,
    /// Memory that the guest gave up but the host cannot free, because it shares a huge page with
    /// memory the guest uses.
    #[serde(default)]
    pub held: u64,
    /// Memory that the guest gave up and the host failed to free.
    #[serde(default)]
    pub undiscarded: u64,
    /// Memory that the guest gave up although it was never assigned to it.
    #[serde(default)]
    pub foreign: u64,
    /// What the guest has reported as free, on its own account, since the machine was created. It is
    /// still the guest's, and part of `actual`. Absent if the guest cannot report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reported: Option<Reported>,
    /// Memory of the host that the process has, for the guest and for itself; absent if unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident: Option<u64>,
    /// The part of `resident` that exceeds `actual` and what the process may need for itself: memory
    /// that the guest gave up and the host has all the same.
    #[serde(default)]
    pub unexplained: u64,
    /// Milliseconds until the device acts on a target, while it waits for a guest that has only
    /// just started; absent if it acts at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_in_ms: Option<u64>,
    /// Why nothing can happen now, in a few words; absent if something can. The target stands, and
    /// the guest follows it once the obstacle is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Why the guest stopped short of the target; absent while it moves towards it or has reached
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// The last target the device refused; absent if it refused none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<Refusal>,
    /// The guest's operating system as it identified itself to the hypervisor: the value of
    /// `HV_X64_MSR_GUEST_OS_ID` (Hypervisor Top Level Functional Specification, "Reporting the
    /// Guest OS Identity"); absent if it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_os_id: Option<u64>,
    /// The same in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_os: Option<String>,
    /// The protocol version agreed with the guest's driver, such as `2.0`; absent without a driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// The alignment that the guest's driver wants for the start and size of added memory; absent
    /// if it accepts none, or has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_add_alignment: Option<u64>,
    /// Protocol violations by the guest since the machine was created.
    #[serde(default)]
    pub faults: Faults,
}

/// What a guest has reported as free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Reported {
    /// The memory that the host took back, each time that the guest reported it.
    pub bytes: u64,
    /// The guest's reports of which memory was taken back.
    pub calls: u64,
}

/// A target that the device refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// The size requested, in bytes.
    pub target: u64,
    /// Why it is impossible, in a few words.
    pub reason: String,
}

/// Protocol violations by the guest, counted by kind, such as `bad-ranges`. None of them harms the
/// host. Which kinds there are is the device's business; a client treats a missing one as zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Faults(BTreeMap<String, u64>);

impl Faults {
    /// Each counter with its name on the wire, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (name.as_str(), *count))
    }

    /// Whether the guest did nothing wrong.
    #[must_use]
    pub fn are_none(&self) -> bool {
        self.0.values().all(|count| *count == 0)
    }
}

impl<N: Into<String>> FromIterator<(N, u64)> for Faults {
    fn from_iter<T: IntoIterator<Item = (N, u64)>>(counts: T) -> Self {
        Self(counts.into_iter().map(|(name, count)| (name.into(), count)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn full() -> DynamicMemoryInfo {
        DynamicMemoryInfo {
            state: "idle".to_owned(),
            actual: 1,
            target: Some(2),
            maximum: 3,
            boot: 4,
            hot_added: 5,
            assigned: 6,
            ballooned: 7,
            unconfirmed: 17,
            in_flight: 8,
            held: 9,
            undiscarded: 10,
            foreign: 11,
            reported: Some(Reported { bytes: 18, calls: 19 }),
            resident: Some(15),
            unexplained: 16,
            ready_in_ms: Some(12),
            waiting: Some("w".to_owned()),
            stopped: Some("s".to_owned()),
            last_refusal: Some(Refusal { target: 13, reason: "r".to_owned() }),
            guest_os_id: Some(u64::MAX),
            guest_os: Some("Linux 6.1".to_owned()),
            protocol_version: Some("2.0".to_owned()),
            hot_add_alignment: Some(14),
            faults: Faults::from_iter([("malformed", 20), ("odd-hot-adds", u64::MAX)]),
        }
    }

    #[test]
    fn the_json_is_kebab_case_and_comes_back_the_same() {
        let value = serde_json::to_value(full()).unwrap();
        let expected = json!({
            "state": "idle", "actual": 1, "target": 2, "maximum": 3, "boot": 4, "hot-added": 5,
            "assigned": 6, "ballooned": 7, "unconfirmed": 17, "in-flight": 8, "held": 9, "undiscarded": 10,
            "foreign": 11,
            "reported": { "bytes": 18, "calls": 19 }, "resident": 15, "unexplained": 16, "ready-in-ms": 12, "waiting": "w", "stopped": "s",
            "last-refusal": { "target": 13, "reason": "r" }, "guest-os-id": u64::MAX,
            "guest-os": "Linux 6.1", "protocol-version": "2.0", "hot-add-alignment": 14,
            "faults": { "malformed": 20, "odd-hot-adds": u64::MAX },
        });
        assert_eq!(value, expected);
        assert_eq!(serde_json::from_value::<DynamicMemoryInfo>(value).unwrap(), full());
    }

    #[test]
    fn the_schema_names_all_members_and_which_of_them_may_be_missing() {
        let shape = &crate::schema::types::DYNAMIC_MEMORY;
        shape.assert_names(&serde_json::to_value(full()).unwrap(), &DynamicMemoryInfo::default());
    }

    #[test]
    fn what_is_absent_is_left_out_and_may_be_missing() {
        let empty = DynamicMemoryInfo::default();
        let value = serde_json::to_value(&empty).unwrap();
        assert!(!value.as_object().unwrap().values().any(Value::is_null), "{value}");
        for name in ["target", "ready-in-ms", "waiting", "last-refusal", "guest-os-id"] {
            assert_eq!(value.get(name), None);
        }
        assert_eq!(serde_json::from_value::<DynamicMemoryInfo>(value).unwrap(), empty);
        let least = json!({ "state": "", "actual": 0, "new": [] });
        assert_eq!(serde_json::from_value::<DynamicMemoryInfo>(least).unwrap(), empty);
    }

    #[test]
    fn faults_are_none_unless_one_was_counted() {
        let counted =
            |counts: [u64; 2]| Faults::from_iter(["floods", "new"].into_iter().zip(counts));
        assert!(counted([0, 0]).are_none() && Faults::default().are_none());
        assert!(!counted([0, 1]).are_none());
    }
}
