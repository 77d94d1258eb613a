//! Events: the driver's reports to the device.

use crate::JobId;

/// An event that the driver reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The guest opened the channel. Valid after the start and after [`Action::CloseFinished`];
    /// ignored otherwise.
    ///
    /// [`Action::CloseFinished`]: crate::Action::CloseFinished
    ChannelOpened {
        /// The guest's `HV_X64_MSR_GUEST_OS_ID`, 0 if unknown.
        guest_os_id: u64,
        /// Whether the kernel had the channel open before: its connection to the bus has lasted
        /// since. Any other kernel may have been started by kexec, and need not know the memory
        /// that the one before it was given.
        is_reopened: bool,
    },
    /// The channel is gone: closed, unloaded, rescinded, or its ring broken. A message for which
    /// the driver has not reported [`Event::Sent`] is void.
    ChannelClosed,
    /// A packet arrived: its payload, copied out of guest memory.
    Packet(&'a [u8]),
    /// The message of the last [`Action::Send`] is in the ring.
    ///
    /// [`Action::Send`]: crate::Action::Send
    Sent,
    /// A discard, preparation or removal ended.
    JobDone {
        /// The job.
        id: JobId,
        /// Whether it succeeded for all of its pages.
        ok: bool,
    },
    /// The VM was reset: the guest restarts at its boot size, without a target. All added memory is
    /// removed by [`Task::Remove`] before the [`Action::CloseFinished`] that answers this event.
    /// Boot RAM must be complete when the guest starts: if [`Config::discard_unit`] is more than a
    /// page, map it anew or provide what was discarded; the device does not request this.
    ///
    /// [`Task::Remove`]: crate::Task::Remove
    /// [`Action::CloseFinished`]: crate::Action::CloseFinished
    /// [`Config::discard_unit`]: crate::Config::discard_unit
    SystemReset,
    /// The time that [`Device::next_deadline`] returned has come. Reporting this early or
    /// repeatedly does no harm.
    ///
    /// [`Device::next_deadline`]: crate::Device::next_deadline
    Deadline,
}
