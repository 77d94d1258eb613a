//! What the device tells the world.

use dynmem_protocol::{StatusReport, Version};
use page_range::{PageCount, PageRange};

use crate::{GuestFault, StopReason};

/// A kind of exchange with the guest that can time out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// Pages from the guest. What comes late is still taken.
    Balloon,
    /// Pages to the guest. They count as returned.
    Unballoon,
    /// New memory for the guest. It stays within the guest's reach, since the guest may be using
    /// it; a late answer still counts.
    HotAdd,
}

/// News for operator, log and monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The guest's driver is there and may be asked from now on.
    Ready {
        /// The protocol version agreed on.
        version: Version,
    },
    /// A version was asked for that the device does not speak; the guest may try a lower one.
    VersionRefused {
        /// The version asked for.
        version: Version,
        /// The guest gives up now.
        was_last_attempt: bool,
    },
    /// The guest's size as the host sees it changed.
    SizeChanged {
        /// Pages; see [`Snapshot::actual`](crate::Snapshot::actual).
        actual: PageCount,
    },
    /// Memory was added to the guest, or taken away by a reset.
    HotAddedChanged {
        /// Pages it has beyond its boot RAM now.
        hot_added: PageCount,
    },
    /// The target is reached.
    TargetReached {
        /// Pages, the target.
        actual: PageCount,
    },
    /// The device stopped on its way to the target; for [`StopReason::NotOnlined`] it may have
    /// arrived.
    StoppedShort {
        /// Pages wanted.
        target: PageCount,
        /// Pages there are.
        actual: PageCount,
        /// Why.
        reason: StopReason,
    },
    /// The guest did not answer in time.
    TimedOut(Transaction),
    /// The host could not discard pages. They count as the guest's but the guest cannot use them;
    /// setting a target at or below the present size tries again.
    DiscardFailed {
        /// Pages.
        pages: PageCount,
    },
    /// The host could not take memory away that the guest does not use; the guest may still reach
    /// it. See [`Task::Remove`](crate::Task::Remove).
    RemovalFailed {
        /// The pages.
        range: PageRange,
    },
    /// The guest reported its memory pressure. Only where the device is configured to say so.
    StatusReport(StatusReport),
    /// The guest broke the protocol; already counted. To be logged at a limited rate.
    Fault(GuestFault),
}
