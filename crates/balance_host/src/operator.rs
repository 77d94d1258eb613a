//! The other end of the control socket.

use std::path::Path;
use std::time::Duration;

use qmp::{Client, ClientError, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::command;
use crate::status::{Explanation, ReservationStatus, Status};
use crate::wish::Wish;

/// A connection to a running daemon.
#[derive(Debug)]
pub struct Operator(Client);

impl Operator {
    /// Connects to the control socket. `timeout` applies to this and to each command.
    ///
    /// # Errors
    /// No daemon listens there.
    pub fn connect(control: &Path, timeout: Duration) -> Result<Self, ClientError> {
        Client::connect(control, timeout).map(Self)
    }

    /// What is known of everything.
    ///
    /// # Errors
    /// As all commands: the daemon does not answer, or says why not.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.run(command::STATUS, &())
    }

    /// Why a VM has what it has.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn explain(&mut self, vm: &str) -> Result<Explanation, ClientError> {
        self.run(command::EXPLAIN, &command::Name { vm: vm.to_owned() })
    }

    /// Changes settings of a VM until the daemon ends; returns all that were set so.
    ///
    /// # Errors
    /// There is no such VM, or the settings contradict each other.
    pub fn set(&mut self, vm: &str, settings: Wish) -> Result<Wish, ClientError> {
        self.run(command::SET, &command::Set { vm: vm.to_owned(), settings })
    }

    /// Asks for room for a VM that is about to start, for `seconds` at most.
    ///
    /// # Errors
    /// The size or the time is none, or there are too many reservations.
    pub fn reserve(
        &mut self,
        size_kib: u64,
        seconds: u64,
    ) -> Result<command::Reserved, ClientError> {
        self.run(command::RESERVE, &command::Reserve { size_kib, seconds })
    }

    /// How a reservation stands; `None` if it has ended.
    ///
    /// # Errors
    /// As all commands.
    pub fn reservation(
        &mut self,
        reserved: command::Reserved,
    ) -> Result<Option<ReservationStatus>, ClientError> {
        self.run(command::RESERVATION, &reserved)
    }

    /// Withdraws a reservation.
    ///
    /// # Errors
    /// It has ended.
    pub fn withdraw(&mut self, reserved: command::Reserved) -> Result<(), ClientError> {
        self.run::<Value>(command::WITHDRAW, &reserved).map(|_| ())
    }

    fn run<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: &impl Serialize,
    ) -> Result<T, ClientError> {
        let unexpected = |source| ClientError::Answer { command: command.to_owned(), source };
        let arguments = serde_json::to_value(arguments).map_err(unexpected)?;
        serde_json::from_value(self.0.execute(command, arguments)?).map_err(unexpected)
    }
}
