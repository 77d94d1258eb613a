//! The control socket: QMP with commands of our own, so that `qmp::Client` and QEMU's tools speak it.

use std::sync::{Arc, Mutex};

use qmp::{CommandSet, Map, MonitorError, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::board::{Bell, Clock, lock};
use crate::core::Core;
use crate::wish::Wish;

/// The names of the commands.
pub mod command {
    use serde::{Deserialize, Serialize};

    use crate::wish::Wish;

    /// Answers with [`Status`](crate::Status).
    pub const STATUS: &str = "query-status";
    /// Takes [`Name`], answers with [`Explanation`](crate::Explanation).
    pub const EXPLAIN: &str = "explain";
    /// Takes [`Set`], answers with the [`Wish`] that is now set live.
    pub const SET: &str = "set";
    /// Takes [`Reserve`], answers with [`Reserved`].
    pub const RESERVE: &str = "reserve";
    /// Takes [`Reserved`], answers with a
    /// [`ReservationStatus`](crate::ReservationStatus), or null if it has ended.
    pub const RESERVATION: &str = "query-reservation";
    /// Takes [`Reserved`].
    pub const WITHDRAW: &str = "withdraw";

    /// A VM.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Name {
        /// Its name.
        pub vm: String,
    }

    /// Settings for a VM.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Set {
        /// Its name.
        pub vm: String,
        /// Those that change.
        pub settings: Wish,
    }

    /// Room for a VM that is about to start.
    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case", deny_unknown_fields)]
    pub struct Reserve {
        /// How much, in KiB.
        pub size_kib: u64,
        /// For how long at most.
        pub seconds: u64,
    }

    /// A reservation.
    #[derive(Clone, Copy, Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct Reserved {
        /// Its number.
        pub id: u64,
    }
}

/// The longest reservation.
const MAX_SECONDS: u64 = 24 * 60 * 60;

/// The commands of the control socket.
#[derive(Debug)]
pub struct Control {
    core: Arc<Mutex<Core>>,
    bell: Arc<Bell>,
    clock: Clock,
}

impl Control {
    pub(crate) fn new(core: Arc<Mutex<Core>>, bell: Arc<Bell>, clock: Clock) -> Self {
        Self { core, bell, clock }
    }

    /// Has the daemon decide now, since something changed.
    fn changed(&self) {
        self.bell.ring(|calls| calls.decide = true);
    }

    fn reserve(&self, command::Reserve { size_kib, seconds }: command::Reserve) -> Answer {
        if !(1..=balancer::MAX_KIB).contains(&size_kib) {
            return Err(MonitorError::generic(format!("{size_kib} KiB is no size for a VM")));
        }
        if !(1..=MAX_SECONDS).contains(&seconds) {
            let text = format!("give from 1 to {MAX_SECONDS} seconds, not {seconds}");
            return Err(MonitorError::generic(text));
        }
        let now_ms = self.clock.now_ms();
        let id = lock(&self.core).reserve(size_kib, now_ms, seconds.saturating_mul(1000));
        let id = id.map_err(failed)?;
        self.changed();
        value(&command::Reserved { id })
    }

    fn set(&self, command::Set { vm, settings }: command::Set) -> Answer {
        let live: Wish = lock(&self.core).set(&vm, settings).map_err(failed)?;
        self.changed();
        value(&live)
    }
}

type Answer = Result<Value, MonitorError>;

impl CommandSet for Control {
    fn execute(&self, name: &str, arguments: Map<String, Value>) -> Answer {
        let now_ms = self.clock.now_ms();
        match name {
            command::STATUS => {
                none(&arguments)?;
                value(&lock(&self.core).status(now_ms))
            }
            command::EXPLAIN => {
                let command::Name { vm } = typed(arguments)?;
                value(&lock(&self.core).explain(&vm, now_ms).map_err(failed)?)
            }
            command::SET => self.set(typed(arguments)?),
            command::RESERVE => self.reserve(typed(arguments)?),
            command::RESERVATION => {
                let command::Reserved { id } = typed(arguments)?;
                value(&lock(&self.core).reservation(id, now_ms))
            }
            command::WITHDRAW => {
                let command::Reserved { id } = typed(arguments)?;
                if !lock(&self.core).withdraw(id) {
                    return Err(MonitorError::generic(format!("there is no reservation {id}")));
                }
                self.changed();
                value(&Map::new())
            }
            _ => Err(MonitorError::unknown_command(name)),
        }
    }
}

fn none(arguments: &Map<String, Value>) -> Result<(), MonitorError> {
    match arguments.keys().next() {
        None => Ok(()),
        Some(name) => Err(MonitorError::generic(format!("Parameter '{name}' is unexpected"))),
    }
}

fn typed<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, MonitorError> {
    serde_json::from_value(Value::Object(arguments)).map_err(failed)
}

fn value(answer: &impl Serialize) -> Answer {
    serde_json::to_value(answer).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> MonitorError {
    MonitorError::generic(error.to_string())
}
