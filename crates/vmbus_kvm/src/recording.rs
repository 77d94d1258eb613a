//! What the conversation with the guest tells a recording ([`Supervisor::record`](crate::Supervisor::record)).
//!
//! Everything that is told to the bus or the device is recorded under its lock, and so is everything
//! that it says, so the order of the events is the order in which they happened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bus_recording::{Event, FromBus, FromDevice, ToBus, ToDevice};
use kvm_hyperv::hypercall::Status;
use vmbus::protocol::ConnectionId;
use vmbus::{Action, ChannelId};

use crate::shared::Shared;

/// The state of a recording, if there is one.
pub(crate) struct Recording {
    is_on: bool,
    /// Nothing was recorded of the bus since it was idle. Changes under the bus's lock.
    bus_is_idle: AtomicBool,
    /// Nothing was recorded of the device since it was idle. Changes under the device's lock.
    device_is_idle: AtomicBool,
}

impl Recording {
    pub(crate) const fn new(is_on: bool) -> Self {
        let (bus_is_idle, device_is_idle) = (AtomicBool::new(true), AtomicBool::new(true));
        Self { is_on, bus_is_idle, device_is_idle }
    }
}

/// The bus. Each call changes it and records the change.
impl Shared {
    pub(crate) fn bus_message(&self, connection: ConnectionId, payload: &[u8]) -> Status {
        let mut server = self.server();
        let result = server.handle_message(connection, payload);
        let status = result.map_or_else(|error| error.hypercall_status(), |()| 0);
        self.record_bus(|| {
            let (connection, bytes) = (connection.get(), payload.to_vec());
            Event::ToBus(ToBus::Message { connection, status, bytes })
        });
        drop(server);
        Status(status)
    }

    pub(crate) fn open_finished(&self, id: ChannelId, ok: bool) {
        let mut server = self.server();
        self.record_bus(|| Event::ToBus(ToBus::OpenFinished { ok }));
        server.open_finished(id, ok);
    }

    pub(crate) fn close_finished(&self, id: ChannelId) {
        let mut server = self.server();
        self.record_bus(|| Event::ToBus(ToBus::CloseFinished));
        server.close_finished(id);
    }

    pub(crate) fn reset_bus(&self) {
        let mut server = self.server();
        self.record_bus(|| Event::ToBus(ToBus::Reset));
        server.reset();
    }

    /// The bus's next action; only one on a channel unless messages have room.
    pub(crate) fn next_action(&self, has_room: bool) -> Option<Action> {
        let mut server = self.server();
        let action = if has_room { server.poll_action() } else { server.poll_channel_action() };
        match &action {
            Some(action) => self.record_bus(|| Event::FromBus(action.into())),
            None if has_room && !self.recording().bus_is_idle.load(Ordering::Relaxed) => {
                self.record_bus(|| Event::FromBus(FromBus::Idle));
                self.recording().bus_is_idle.store(true, Ordering::Relaxed);
            }
            None => {}
        }
        drop(server);
        action
    }

    /// Call this under the bus's lock.
    fn record_bus(&self, event: impl FnOnce() -> Event) {
        if self.is_recording() {
            self.recording().bus_is_idle.store(false, Ordering::Relaxed);
            self.supervisor.record(self.now(), event());
        }
    }
}

/// The device. Call these under its lock.
impl Shared {
    pub(crate) const fn is_recording(&self) -> bool {
        self.recording().is_on
    }

    /// The device is told something, at `now`.
    pub(crate) fn tell_recording(&self, now: Duration, event: impl FnOnce() -> ToDevice) {
        if self.is_recording() {
            self.recording().device_is_idle.store(false, Ordering::Relaxed);
            self.supervisor.record(now, Event::ToDevice(event()));
        }
    }

    /// The device has an output. `event` is `None` if it does not concern the guest.
    pub(crate) fn record_output(&self, event: impl FnOnce() -> Option<Event>) {
        if self.is_recording()
            && let Some(event) = event()
        {
            self.recording().device_is_idle.store(false, Ordering::Relaxed);
            self.supervisor.record(self.now(), event);
        }
    }

    /// The device has no output.
    pub(crate) fn record_idle(&self, waits_for_room: impl FnOnce() -> bool) {
        let is_idle = &self.recording().device_is_idle;
        if self.is_recording() && !is_idle.load(Ordering::Relaxed) {
            let idle = FromDevice::Idle { waits_for_room: waits_for_room() };
            self.supervisor.record(self.now(), Event::FromDevice(idle));
            is_idle.store(true, Ordering::Relaxed);
        }
    }
}
