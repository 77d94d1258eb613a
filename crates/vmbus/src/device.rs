//! The interface between a device on the bus and the driver of the bus.

use core::time::Duration;

use crate::{GuestMemory, GuestSignal, Offer, OpenChannel, protocol::VpIndex, ring::RingError};

/// An event on a device's channel.
#[derive(Debug)]
pub enum ChannelEvent<M> {
    /// The guest opens the channel ([`Action::Open`](crate::Action::Open)). The device answers with
    /// [`ChannelOutput::OpenFinished`].
    Open {
        /// Current guest memory. It stays reachable until the channel has closed.
        memory: M,
        /// The rings, and how to signal the guest.
        channel: OpenChannel,
        /// The guest's `HV_X64_MSR_GUEST_OS_ID`, or 0 if unknown.
        guest_os_id: u64,
    },
    /// The guest wants signals to go to another VP.
    SetTargetVp(VpIndex),
    /// The guest signalled the channel, or may have. A spurious event is harmless.
    Signalled,
    /// The channel must close ([`Action::Close`](crate::Action::Close)). The device answers with
    /// [`ChannelOutput::CloseFinished`] once it is quiet.
    Close,
    /// The time returned by [`VmbusDevice::poll_timeout`] has come. Early or repeated events are
    /// harmless.
    Timeout,
    /// The machine was stopped for a reset. A separate event closes the channel.
    Reset,
}

/// A request from a device to the driver of the bus. `W` is the device-specific work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelOutput<W> {
    /// Signal the guest.
    SignalGuest(GuestSignal),
    /// Answers [`ChannelEvent::Open`]: pass it to
    /// [`Server::open_finished`](crate::Server::open_finished). An error is the guest's fault.
    OpenFinished(Result<(), RingError>),
    /// Answers [`ChannelEvent::Close`]: pass it to
    /// [`Server::close_finished`](crate::Server::close_finished).
    CloseFinished,
    /// The guest corrupted its ring. The device has stopped the channel, which is unusable until
    /// the guest reopens it. Report this in the log.
    Broken(RingError),
    /// Device-specific work.
    Work(W),
}

/// A device on the bus: events in, outputs out.
///
/// The driver of the bus passes each event to the device with the time since the VM started, then
/// takes outputs with [`VmbusDevice::poll_output`] until there are none. It drives any number of
/// devices of any kind in the same way.
pub trait VmbusDevice<M: GuestMemory> {
    /// Work specific to this kind of device.
    type Work;

    /// The offer made to the guest; always the same.
    fn offer(&self) -> Offer;

    /// Handles an event that happened at `now`.
    fn handle(&mut self, now: Duration, event: ChannelEvent<M>);

    /// The next output, or `None` if there is none.
    fn poll_output(&mut self) -> Option<ChannelOutput<Self::Work>>;

    /// When [`ChannelEvent::Timeout`] is due, as time since the VM started.
    fn poll_timeout(&self) -> Option<Duration>;

    /// Whether something waits for room in the guest's ring. Not every guest signals when it makes
    /// room (Linux `hv_balloon` does not), so while this is true, give the device a
    /// [`ChannelEvent::Signalled`] every few milliseconds.
    fn waits_for_room(&self) -> bool;

    /// Whether the device is idle: no open channel and no pending work.
    fn is_quiet(&self) -> bool;
}
