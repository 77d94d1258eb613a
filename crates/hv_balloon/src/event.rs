//! What the driver tells the device.

use crate::JobId;

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The guest opened the channel. Legal after start and after [`Action::CloseFinished`];
    /// elsewhere ignored.
    ///
    /// [`Action::CloseFinished`]: crate::Action::CloseFinished
    ChannelOpened {
        /// The guest's `HV_X64_MSR_GUEST_OS_ID`, 0 where unknown.
        guest_os_id: u64,
    },
    /// The channel is gone: closed, unloaded, rescinded, or its ring broken. A message handed out
    /// and not yet [`Event::Sent`] is void.
    ChannelClosed,
    /// A packet came: its payload, copied out of guest memory.
    Packet(&'a [u8]),
    /// The message of the last [`Action::Send`] is in the ring.
    ///
    /// [`Action::Send`]: crate::Action::Send
    Sent,
    /// A discard, a preparation or a removal ended.
    JobDone {
        /// Which one.
        id: JobId,
        /// Whether it succeeded, for all its pages.
        ok: bool,
    },
    /// The VM was reset: the guest starts again at boot size, with no target. Memory added since is
    /// taken away by [`Task::Remove`] before the [`Action::CloseFinished`] that answers this. Boot RAM
    /// must be there again when the guest starts: where [`Config::discard_unit`] is more than a page,
    /// map it anew or provide what was discarded; the device does not ask for it.
    ///
    /// [`Task::Remove`]: crate::Task::Remove
    /// [`Action::CloseFinished`]: crate::Action::CloseFinished
    /// [`Config::discard_unit`]: crate::Config::discard_unit
    SystemReset,
    /// The time [`Device::next_deadline`] gave has come. Too early or too often does no harm.
    ///
    /// [`Device::next_deadline`]: crate::Device::next_deadline
    Deadline,
}
