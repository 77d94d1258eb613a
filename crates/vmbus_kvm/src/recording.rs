//! What the conversation with the guest tells a recording ([`Supervisor::record`](crate::Supervisor::record)).
//!
//! Everything that is told to the bus or a device is recorded under its lock, and so is everything
//! that it says, so the order of the events is the order in which they happened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
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
    /// The channels of the devices, by the device's number.
    channels: OnceLock<Vec<ChannelId>>,
}

impl Recording {
    pub(crate) const fn new(is_on: bool) -> Self {
        Self { is_on, bus_is_idle: AtomicBool::new(true), channels: OnceLock::new() }
    }

    /// The channels of all devices, in the order in which they were attached.
    pub(crate) fn set_channels(&self, channels: Vec<ChannelId>) {
        // Set only once, when the host starts.
        let _ = self.channels.set(channels);
    }

    /// The number of the device with this channel. A recording is not of a restored host, so there are no
    /// other channels.
    fn device(&self, id: ChannelId) -> u32 {
        let channels = self.channels.get().into_iter().flatten();
        let number =
            channels.zip(0..).find_map(|(channel, number)| (*channel == id).then_some(number));
        number.unwrap_or_default()
    }
}

/// The bus. Each call changes it and records the change.
impl Shared {
    pub(crate) fn bus_message(&self, connection: ConnectionId, payload: &[u8]) -> Status {
        let mut server = self.server();
        let result = server.handle_message(connection, payload);
        let status = result.map_or_else(|error| error.hypercall_status(), |()| 0);
        self.record_bus(None, || {
            let (connection, bytes) = (connection.get(), payload.to_vec());
            Event::ToBus(ToBus::Message { connection, status, bytes })
        });
        drop(server);
        Status(status)
    }

    pub(crate) fn open_finished(&self, id: ChannelId, ok: bool) {
        let mut server = self.server();
        self.record_bus(Some(id), || Event::ToBus(ToBus::OpenFinished { ok }));
        server.open_finished(id, ok);
    }

    pub(crate) fn close_finished(&self, id: ChannelId) {
        let mut server = self.server();
        self.record_bus(Some(id), || Event::ToBus(ToBus::CloseFinished));
        server.close_finished(id);
    }

    pub(crate) fn reset_bus(&self) {
        let mut server = self.server();
        self.record_bus(None, || Event::ToBus(ToBus::Reset));
        server.reset();
    }

    /// The bus's next action; only one on a channel unless messages have room.
    pub(crate) fn next_action(&self, has_room: bool) -> Option<Action> {
        let mut server = self.server();
        let action = if has_room { server.poll_action() } else { server.poll_channel_action() };
        match &action {
            Some(action) => {
                self.record_bus(channel_of(action), || Event::FromBus(action.into()));
            }
            None if has_room && !self.recording().bus_is_idle.load(Ordering::Relaxed) => {
                self.record_bus(None, || Event::FromBus(FromBus::Idle));
                self.recording().bus_is_idle.store(true, Ordering::Relaxed);
            }
            None => {}
        }
        drop(server);
        action
    }

    /// Call this under the bus's lock.
    fn record_bus(&self, channel: Option<ChannelId>, event: impl FnOnce() -> Event) {
        if self.is_recording() {
            self.recording().bus_is_idle.store(false, Ordering::Relaxed);
            let device = channel.map_or(0, |id| self.recording().device(id));
            self.supervisor.record(self.now(), device, event());
        }
    }

    pub(crate) const fn is_recording(&self) -> bool {
        self.recording().is_on
    }
}

/// The channel that an action concerns.
const fn channel_of(action: &Action) -> Option<ChannelId> {
    match action {
        Action::Open { channel, .. }
        | Action::Close { channel }
        | Action::SetTargetVp { channel, .. } => Some(*channel),
        Action::Send { .. } | Action::DropQueuedMessages => None,
    }
}

/// The recording of one device. Call its methods under the device's lock.
pub(crate) struct DeviceRecording {
    shared: Arc<Shared>,
    /// The device's number, in the order in which devices are attached.
    number: u32,
    /// Nothing was recorded of the device since it was idle. Changes under the device's lock.
    is_idle: AtomicBool,
}

impl DeviceRecording {
    pub(crate) const fn new(shared: Arc<Shared>, number: u32) -> Self {
        Self { shared, number, is_idle: AtomicBool::new(true) }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.shared.is_recording()
    }

    /// The device is told something, at `now`.
    pub(crate) fn tell(&self, now: Duration, event: impl FnOnce() -> ToDevice) {
        if self.is_on() {
            self.record(now, Event::ToDevice(event()));
        }
    }

    /// The device has an output. `event` is `None` if it does not concern the guest.
    pub(crate) fn output(&self, event: impl FnOnce() -> Option<Event>) {
        if self.is_on()
            && let Some(event) = event()
        {
            self.record(self.shared.now(), event);
        }
    }

    /// The device has no output.
    pub(crate) fn idle(&self, waits_for_room: impl FnOnce() -> bool) {
        if self.is_on() && !self.is_idle.load(Ordering::Relaxed) {
            let idle = FromDevice::Idle { waits_for_room: waits_for_room() };
            self.record(self.shared.now(), Event::FromDevice(idle));
            self.is_idle.store(true, Ordering::Relaxed);
        }
    }

    fn record(&self, at: Duration, event: Event) {
        self.is_idle.store(false, Ordering::Relaxed);
        self.shared.supervisor.record(at, self.number, event);
    }
}
