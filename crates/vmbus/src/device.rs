//! What the driver of the bus needs to know of a device, whatever the device does.

use core::time::Duration;

use crate::{GuestMemory, GuestSignal, Offer, OpenChannel, protocol::VpIndex, ring::RingError};

/// What happens to a device's channel.
#[derive(Debug)]
pub enum ChannelEvent<M> {
    /// The guest opens the channel ([`Action::Open`](crate::Action::Open)). The device answers with
    /// [`ChannelOutput::OpenFinished`].
    Open {
        /// The guest's memory as it is now. It stays reachable until the channel has closed.
        memory: M,
        /// The rings, and how to signal the guest.
        channel: OpenChannel,
        /// The guest's `HV_X64_MSR_GUEST_OS_ID`, 0 where unknown.
        guest_os_id: u64,
    },
    /// The guest wants its signals on another VP.
    SetTargetVp(VpIndex),
    /// The guest signalled the channel, or may have: looking in vain does no harm.
    Signalled,
    /// The channel is to close ([`Action::Close`](crate::Action::Close)). The device answers with
    /// [`ChannelOutput::CloseFinished`] once it is quiet.
    Close,
    /// The time that [`VmbusDevice::poll_timeout`] gave has come. Too early or too often does no
    /// harm.
    Timeout,
    /// The machine was stopped for a reset. The channel closes as well, by an event of its own.
    Reset,
}

/// What a device asks of the driver of the bus. `W` is the work that is particular to the device.
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
    /// The guest broke its ring. The device has stopped the channel, which stays of no use until the
    /// guest opens it anew. For the log.
    Broken(RingError),
    /// Work of the device's own.
    Work(W),
}

/// A device on the bus: events in, outputs out.
///
/// The driver of the bus gives the device each event with the time since the VM started, then takes
/// outputs by [`VmbusDevice::poll_output`] until there are none. Any number of devices, of any kind,
/// are driven alike.
pub trait VmbusDevice<M: GuestMemory> {
    /// The work that is particular to this kind of device.
    type Work;

    /// What the guest is offered; always the same.
    fn offer(&self) -> Offer;

    /// Takes in what happened at `now`.
    fn handle(&mut self, now: Duration, event: ChannelEvent<M>);

    /// The next thing to do, until there is none.
    fn poll_output(&mut self) -> Option<ChannelOutput<Self::Work>>;

    /// When [`ChannelEvent::Timeout`] is due, as time since the VM started.
    fn poll_timeout(&self) -> Option<Duration>;

    /// Whether something waits for room in the guest's ring. Not every guest signals that it made
    /// room (Linux `hv_balloon` does not), so give the device a [`ChannelEvent::Signalled`] every few
    /// milliseconds meanwhile.
    fn waits_for_room(&self) -> bool;

    /// Whether nothing is under way: no channel, and no work.
    fn is_quiet(&self) -> bool;
}
