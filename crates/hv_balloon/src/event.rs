//! What the driver tells the device.

use page_range::PageCount;

use crate::DiscardId;

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
    /// The operator wants the guest to have this many pages. The same target again is a new try.
    SetTarget(PageCount),
    /// A discard ended.
    Discarded {
        /// Which one.
        id: DiscardId,
        /// Whether all its pages went back to the host.
        ok: bool,
    },
    /// The VM was reset: the guest starts again at boot size, with no target.
    SystemReset,
    /// The time [`Device::next_deadline`] gave has come. Too early or too often does no harm.
    ///
    /// [`Device::next_deadline`]: crate::Device::next_deadline
    Deadline,
}
