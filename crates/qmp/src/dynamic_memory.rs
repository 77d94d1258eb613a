//! What `x-query-dynamic-memory` answers: the balloon's books.

use serde::{Deserialize, Serialize};

/// What `x-query-dynamic-memory` returns. Sizes are in bytes.
///
/// Once [`Machine::balloon`](crate::Machine::balloon) has returned, `target`, `waiting` and
/// `stopped` are those of that call: a client that waits for the guest must not see why an earlier
/// target was not reached.
///
/// Fields may be added. A client takes a missing one as zero or absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DynamicMemoryInfo {
    /// What the device is doing, as one lower-case word.
    pub state: String,
    /// The guest's present size, as `query-balloon` gives it.
    pub actual: u64,
    /// The size last asked for, rounded as the device rounds; absent when none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u64>,
    /// The largest size the guest can have: what it boots with and what can be added.
    #[serde(default)]
    pub maximum: u64,
    /// The memory the guest boots with.
    #[serde(default)]
    pub boot: u64,
    /// Memory added since the guest booted, ballooned or not.
    #[serde(default)]
    pub hot_added: u64,
    /// Memory that is the guest's, ballooned or not: `boot` and `hot_added`.
    #[serde(default)]
    pub assigned: u64,
    /// Memory the guest gave and the host has back: `assigned` less `actual`.
    #[serde(default)]
    pub ballooned: u64,
    /// Memory the guest gave that the host has not got back yet.
    #[serde(default)]
    pub in_flight: u64,
    /// Memory the guest gave that the host cannot free, as it shares a huge page with memory the
    /// guest uses.
    #[serde(default)]
    pub held: u64,
    /// Memory the guest gave that the host failed to free.
    #[serde(default)]
    pub undiscarded: u64,
    /// Memory the guest gave that was never its own.
    #[serde(default)]
    pub foreign: u64,
    /// How long until the device will act on a target, in milliseconds, while it waits for a guest
    /// that has only just started; absent when it acts at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_in_ms: Option<u64>,
    /// Why nothing can happen now, in a few words; absent when something can. The target stands,
    /// and the guest follows once this is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// Why the guest stays short of the target; absent while it moves towards it or has reached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// The last target the device refused; absent when it refused none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<Refusal>,
    /// The guest's operating system as it told the hypervisor: the value of
    /// `HV_X64_MSR_GUEST_OS_ID` (Hypervisor Top Level Functional Specification, "Reporting the
    /// Guest OS Identity"); absent when it told none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_os_id: Option<u64>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_os: Option<String>,
    /// The protocol version agreed with the guest's driver, such as `2.0`; absent without a driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_version: Option<String>,
    /// What added memory begins and ends at multiples of, as the guest's driver wants it; absent
    /// when it does not want any, or has not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hot_add_alignment: Option<u64>,
    /// What the guest did wrong since the machine was made.
    #[serde(default)]
    pub faults: Faults,
}

/// A target the device did not take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Refusal {
    /// The size asked for, in bytes.
    pub target: u64,
    /// Why it is impossible, in a few words.
    pub reason: String,
}

/// What a guest did wrong, counted. Nothing of it harms the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Faults {
    /// Packets that were no message.
    pub malformed: u64,
    /// Messages without meaning when they came.
    pub out_of_state: u64,
    /// Requests dropped because the guest does not take the answers.
    pub floods: u64,
    /// Page ranges that named no pages.
    pub bad_ranges: u64,
    /// Pages given twice.
    pub duplicate_pages: u64,
    /// Pages given that are not the guest's memory, and remembered.
    pub foreign_pages: u64,
    /// Pages given that are not the guest's memory, and too many to remember.
    pub forgotten_pages: u64,
    /// Messages with pages that nobody was waiting for.
    pub unasked_responses: u64,
    /// Pages given beyond what was asked for.
    pub excess_pages: u64,
    /// Answers to an addition of memory that name more than was offered, or part of a block.
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
