//! Events: their kinds, their JSON form, and the handle that sends one to every client.

use crate::schema::Member::{Optional, Required};
use crate::schema::{Member, Type, types};
use crate::server::Hub;
use qapi_qmp::{
    BALLOON_CHANGE, HV_BALLOON_STATUS_REPORT, HvBalloonInfo, MEMORY_DEVICE_SIZE_CHANGE, POWERDOWN,
    RESET, RESUME, SHUTDOWN, STOP, ShutdownCause,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// An event of the machine. Sizes are in bytes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// `BALLOON_CHANGE`: the guest's size changed, to `actual`.
    BalloonChange {
        /// The guest's size now.
        actual: u64,
    },
    /// `X_BALLOON_STOPPED`: the guest stopped short of its target. QEMU has no such event.
    BalloonStopped {
        /// The size requested.
        target: u64,
        /// The guest's size now.
        actual: u64,
        /// Why, in a few words.
        reason: String,
    },
    /// `HV_BALLOON_STATUS_REPORT`: the guest reported its memory pressure.
    StatusReport {
        /// Bytes the guest uses or cannot use.
        committed: u64,
        /// Bytes the guest could give away.
        available: u64,
    },
    /// `MEMORY_DEVICE_SIZE_CHANGE`: memory was added, or is gone after a reset. QEMU sends at most
    /// one a second; whoever emits it here must do the same.
    MemoryDeviceSizeChange {
        /// The device's id, if it has one.
        id: Option<String>,
        /// The memory the device now adds.
        size: u64,
        /// Where QEMU's clients find the device, such as `/machine/peripheral/balloon0`.
        qom_path: String,
    },
    /// `STOP`: the guest is held.
    Stop,
    /// `RESUME`: the guest goes on.
    Resume,
    /// `POWERDOWN`: the guest was asked to shut down.
    Powerdown,
    /// `GUEST_PANICKED`: the guest's kernel says that it crashed. The machine runs on, for the guest may
    /// restart itself or write a dump.
    GuestPanicked {
        /// Hyper-V's crash parameters, as the guest gave them.
        parameters: [u64; 5],
        /// What the guest wrote for its host, if it did; `x-message` in the event, which QEMU's lacks.
        message: Option<String>,
    },
    /// `RESET`: the machine restarts.
    Reset {
        /// Whether the guest asked for it.
        guest: bool,
        /// What caused it.
        reason: ShutdownCause,
    },
    /// `SHUTDOWN`: the machine ends.
    Shutdown {
        /// Whether the guest asked for it.
        guest: bool,
        /// What caused it.
        reason: ShutdownCause,
    },
}

impl Event {
    /// The event's name on the wire.
    pub fn name(&self) -> &'static str {
        self.kind().name
    }

    /// Whether a newer event of this kind makes an unsent older one pointless.
    pub(crate) fn is_a_state(&self) -> bool {
        self.kind().is_a_state
    }

    /// The event in QMP's form, stamped with `at`, the time since the UNIX epoch.
    pub(crate) fn to_json(&self, at: Duration) -> Value {
        let mut event = json!({
            "timestamp": { "seconds": at.as_secs(), "microseconds": at.subsec_micros() },
            "event": self.name(),
        });
        if !self.kind().data.is_empty() {
            event["data"] = self.data();
        }
        event
    }

    fn data(&self) -> Value {
        match *self {
            Self::Stop => value_of(STOP {}),
            Self::Resume => value_of(RESUME {}),
            Self::Powerdown => value_of(POWERDOWN {}),
            Self::GuestPanicked { parameters: [arg1, arg2, arg3, arg4, arg5], ref message } => {
                let mut data = json!({
                    "action": "run",
                    "info": {
                        "type": "hyper-v",
                        "arg1": arg1, "arg2": arg2, "arg3": arg3, "arg4": arg4, "arg5": arg5,
                    },
                });
                if let Some(message) = message {
                    data["x-message"] = json!(message);
                }
                data
            }
            Self::BalloonChange { actual } => {
                value_of(BALLOON_CHANGE { actual: i64::try_from(actual).unwrap_or(i64::MAX) })
            }
            Self::BalloonStopped { target, actual, ref reason } => {
                json!({ "target": target, "actual": actual, "reason": reason })
            }
            Self::StatusReport { committed, available } => {
                value_of(HV_BALLOON_STATUS_REPORT { data: HvBalloonInfo { committed, available } })
            }
            Self::MemoryDeviceSizeChange { ref id, size, ref qom_path } => {
                value_of(MEMORY_DEVICE_SIZE_CHANGE {
                    id: id.clone(),
                    size,
                    qom_path: qom_path.clone(),
                })
            }
            Self::Reset { guest, reason } => value_of(RESET { guest, reason }),
            Self::Shutdown { guest, reason } => value_of(SHUTDOWN { guest, reason }),
        }
    }
}

/// One row of the table of events.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) data: &'static [Member],
    is_a_state: bool,
}

/// The table, and which row is whose: no event can be without one.
macro_rules! table {
    ($($event:ident: $kind:expr,)*) => {
        pub(crate) static EVENTS: &[Kind] = &[$($kind,)*];

        impl Event {
            fn kind(&self) -> &'static Kind {
                match self {
                    $(Self::$event { .. } => const { &$kind },)*
                }
            }
        }
    };
}

table! {
    BalloonChange: state("BALLOON_CHANGE", &[Required("actual", Type::Int)]),
    BalloonStopped: news(
        "X_BALLOON_STOPPED",
        &[
            Required("target", Type::Size),
            Required("actual", Type::Size),
            Required("reason", Type::Text),
        ],
    ),
    StatusReport: state("HV_BALLOON_STATUS_REPORT", types::HV_BALLOON_INFO.members),
    MemoryDeviceSizeChange: state(
        "MEMORY_DEVICE_SIZE_CHANGE",
        &[
            Optional("id", Type::Text),
            Required("size", Type::Size),
            Required("qom-path", Type::Text),
        ],
    ),
    Stop: news("STOP", &[]),
    Resume: news("RESUME", &[]),
    Powerdown: news("POWERDOWN", &[]),
    GuestPanicked: news("GUEST_PANICKED", PANIC),
    Reset: news("RESET", CAUSE),
    Shutdown: news("SHUTDOWN", CAUSE),
}

const PANIC: &[Member] = &[
    Required("action", Type::Choice(&types::GUEST_PANIC_ACTION)),
    Optional("info", Type::Object(&types::GUEST_PANIC_INFORMATION)),
    Optional("x-message", Type::Text),
];

const CAUSE: &[Member] =
    &[Required("guest", Type::Flag), Required("reason", Type::Choice(&types::SHUTDOWN_CAUSE))];

const fn state(name: &'static str, data: &'static [Member]) -> Kind {
    Kind { name, data, is_a_state: true }
}

const fn news(name: &'static str, data: &'static [Member]) -> Kind {
    Kind { name, data, is_a_state: false }
}

/// A QAPI structure as JSON. Such structures hold only strings, numbers, booleans and lists of
/// them, so this cannot fail; a failure would appear as `null`.
pub(crate) fn value_of(data: impl Serialize) -> Value {
    serde_json::to_value(data).unwrap_or(Value::Null)
}

/// Sends events to every client that has negotiated. Cheap to clone and usable from any thread;
/// does nothing once the server is gone.
#[derive(Clone, Debug)]
pub struct EventSender {
    hub: Arc<Hub>,
}

impl EventSender {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// Queues the event for every client. Never waits for one.
    ///
    /// A client that has not read earlier `BALLOON_CHANGE`, `MEMORY_DEVICE_SIZE_CHANGE` or
    /// `HV_BALLOON_STATUS_REPORT` events gets only the newest of each. A client whose queue is full
    /// all the same is disconnected, since it would otherwise miss an event without knowing.
    pub fn emit(&self, event: &Event) {
        // A clock before 1970 is no reason to lose an event.
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.hub.broadcast(event, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_without_data_has_none() {
        let at = Duration::new(1, 0);
        for (event, name) in
            [(Event::Stop, "STOP"), (Event::Resume, "RESUME"), (Event::Powerdown, "POWERDOWN")]
        {
            let timestamp = json!({ "seconds": 1, "microseconds": 0 });
            assert_eq!(event.to_json(at), json!({ "timestamp": timestamp, "event": name }));
        }
    }

    #[test]
    fn data_is_what_the_table_says() {
        let (guest, reason) = (true, ShutdownCause::guest_reset);
        let sized = |id: Option<&str>| Event::MemoryDeviceSizeChange {
            id: id.map(str::to_owned),
            size: u64::MAX,
            qom_path: "/".to_owned(),
        };
        for event in [
            Event::BalloonChange { actual: u64::MAX },
            Event::BalloonStopped { target: 1, actual: 2, reason: "r".to_owned() },
            Event::StatusReport { committed: 1, available: 2 },
            sized(None),
            sized(Some("b0")),
            Event::Stop,
            Event::Resume,
            Event::Powerdown,
            Event::GuestPanicked { parameters: [u64::MAX; 5], message: None },
            Event::GuestPanicked { parameters: [0; 5], message: Some("m".to_owned()) },
            Event::Reset { guest, reason },
            Event::Shutdown { guest, reason },
        ] {
            let data = event.data();
            let members = event.kind().data;
            let checked = crate::schema::check("", members.iter(), data.as_object().unwrap());
            assert_eq!(checked, Ok(()), "{event:?}");
            assert!(EVENTS.iter().any(|kind| kind.name == event.name()));
        }
    }

    #[test]
    fn events_look_like_those_of_qemu() {
        let at = Duration::new(1_795_405_320, 897_760_999);
        let reset = Event::Reset { guest: false, reason: ShutdownCause::host_qmp_system_reset };
        assert_eq!(
            reset.to_json(at),
            json!({
                "timestamp": { "seconds": 1_795_405_320, "microseconds": 897_760 },
                "event": "RESET",
                "data": { "guest": false, "reason": "host-qmp-system-reset" },
            })
        );
        let panicked = Event::GuestPanicked { parameters: [1, 2, 3, 4, 5], message: None };
        let info =
            json!({ "type": "hyper-v", "arg1": 1, "arg2": 2, "arg3": 3, "arg4": 4, "arg5": 5 });
        assert_eq!(panicked.data(), json!({ "action": "run", "info": info }));
        let quit = Event::Shutdown { guest: true, reason: ShutdownCause::guest_shutdown };
        assert_eq!(quit.data(), json!({ "guest": true, "reason": "guest-shutdown" }));
        assert_eq!(Event::BalloonChange { actual: 4096 }.data(), json!({ "actual": 4096 }));
        let report = Event::StatusReport { committed: 1, available: 2 };
        assert_eq!(report.data(), json!({ "committed": 1, "available": 2 }));
        let qom_path = "/machine/peripheral/b0".to_owned();
        let size = Event::MemoryDeviceSizeChange { id: None, size: 5, qom_path: qom_path.clone() };
        assert_eq!(size.name(), "MEMORY_DEVICE_SIZE_CHANGE");
        assert_eq!(size.data(), json!({ "size": 5, "qom-path": "/machine/peripheral/b0" }));
        let named = Event::MemoryDeviceSizeChange { id: Some("b0".into()), size: 5, qom_path };
        assert_eq!(named.data()["id"], "b0");
    }
}
