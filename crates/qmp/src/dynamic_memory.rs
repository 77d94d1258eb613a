//! The answer to `x-query-dynamic-memory`: the balloon's state and page accounting.

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
    /// Memory that the guest gave up and the host has back: `assigned` less `actual`.
    #[serde(default)]
    pub ballooned: u64,
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

/// A target that the device refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// The size requested, in bytes.
    pub target: u64,
    /// Why it is impossible, in a few words.
    pub reason: String,
}

/// Protocol violations by the guest, counted. None of them harms the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Faults {
    /// Packets that were not a message.
    pub malformed: u64,
    /// Messages that made no sense when they arrived.
    pub out_of_state: u64,
    /// Requests dropped because the guest does not read the answers.
    pub floods: u64,
    /// Page ranges that named no pages.
    pub bad_ranges: u64,
    /// Pages given up twice.
    pub duplicate_pages: u64,
    /// Pages given up that are not the guest's memory, and are remembered.
    pub foreign_pages: u64,
    /// Pages given up that are not the guest's memory, and were too many to remember.
    pub forgotten_pages: u64,
    /// Messages with pages that the device had not asked for.
    pub unasked_responses: u64,
    /// Pages given up beyond the number asked for.
    pub excess_pages: u64,
    /// Answers to a hot-add request that name more memory than was offered, or part of a block.
    pub odd_hot_adds: u64,
}

impl Faults {
    /// Each counter with its name on the wire.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("malformed", self.malformed),
            ("out-of-state", self.out_of_state),
            ("floods", self.floods),
            ("bad-ranges", self.bad_ranges),
            ("duplicate-pages", self.duplicate_pages),
            ("foreign-pages", self.foreign_pages),
            ("forgotten-pages", self.forgotten_pages),
            ("unasked-responses", self.unasked_responses),
            ("excess-pages", self.excess_pages),
            ("odd-hot-adds", self.odd_hot_adds),
        ]
        .into_iter()
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
            in_flight: 8,
            held: 9,
            undiscarded: 10,
            foreign: 11,
            ready_in_ms: Some(12),
            waiting: Some("w".to_owned()),
            stopped: Some("s".to_owned()),
            last_refusal: Some(Refusal { target: 13, reason: "r".to_owned() }),
            guest_os_id: Some(u64::MAX),
            guest_os: Some("Linux 6.1".to_owned()),
            protocol_version: Some("2.0".to_owned()),
            hot_add_alignment: Some(14),
            faults: Faults {
                malformed: 20,
                out_of_state: 21,
                floods: 22,
                bad_ranges: 23,
                duplicate_pages: 24,
                foreign_pages: 25,
                forgotten_pages: 26,
                unasked_responses: 27,
                excess_pages: 28,
                odd_hot_adds: 29,
            },
        }
    }

    #[test]
    fn the_json_is_kebab_case_and_comes_back_the_same() {
        let value = serde_json::to_value(full()).unwrap();
        let expected = json!({
            "state": "idle", "actual": 1, "target": 2, "maximum": 3, "boot": 4, "hot-added": 5,
            "assigned": 6, "ballooned": 7, "in-flight": 8, "held": 9, "undiscarded": 10,
            "foreign": 11, "ready-in-ms": 12, "waiting": "w", "stopped": "s",
            "last-refusal": { "target": 13, "reason": "r" }, "guest-os-id": u64::MAX,
            "guest-os": "Linux 6.1", "protocol-version": "2.0", "hot-add-alignment": 14,
            "faults": {
                "malformed": 20, "out-of-state": 21, "floods": 22, "bad-ranges": 23,
                "duplicate-pages": 24, "foreign-pages": 25, "forgotten-pages": 26,
                "unasked-responses": 27, "excess-pages": 28, "odd-hot-adds": 29,
            },
        });
        assert_eq!(value, expected);
        assert_eq!(serde_json::from_value::<DynamicMemoryInfo>(value).unwrap(), full());
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
        let least = json!({ "state": "", "actual": 0, "faults": { "new": 1 }, "new": [] });
        assert_eq!(serde_json::from_value::<DynamicMemoryInfo>(least).unwrap(), empty);
    }

    #[test]
    fn faults_are_listed_under_their_names_on_the_wire() {
        let faults = full().faults;
        let listed: serde_json::Map<_, _> =
            faults.iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
        assert_eq!(serde_json::to_value(faults).unwrap(), Value::Object(listed));
    }
}
