//! Notices for the operator, the log and monitors.

use dynmem_protocol::{StatusReport, Version};
use page_range::{PageCount, PageRange};

use crate::{GuestFault, StopReason};

/// A kind of exchange with the guest that can time out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// Pages from the guest. Late pages are still accepted.
    Balloon,
    /// Pages to the guest. They count as returned.
    Unballoon,
    /// New memory for the guest. It stays mapped, since the guest may be using it; a late answer
    /// still counts.
    HotAdd,
}

/// News for the operator, the log and monitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// The guest's driver is ready for requests.
    Ready {
        /// The protocol version agreed on.
        version: Version,
    },
    /// The guest requested a version that the device does not support; it may try a lower one.
    VersionRefused {
        /// The requested version.
        version: Version,
        /// Whether the guest gives up now.
        was_last_attempt: bool,
    },
    /// The guest's size as the host sees it changed.
    SizeChanged {
        /// The size in pages; see [`Snapshot::actual`](crate::Snapshot::actual).
        actual: PageCount,
    },
    /// Memory was added to the guest, or removed by a reset.
    HotAddedChanged {
        /// Pages that the guest now has beyond its boot RAM.
        hot_added: PageCount,
    },
    /// The guest's kernel was started after memory had been added, and has not confirmed that it
    /// knows it: a status report has less, or none came in time. The pages no longer count towards
    /// the guest's size until the guest confirms them or the machine is reset.
    Unconfirmed {
        /// The number of pages.
        pages: PageCount,
    },
    /// The target is reached.
    TargetReached {
        /// The target, in pages.
        actual: PageCount,
    },
    /// The device stopped short of the target. With [`StopReason::NotOnlined`], the size may equal
    /// the target.
    StoppedShort {
        /// The target, in pages.
        target: PageCount,
        /// The guest's size, in pages.
        actual: PageCount,
        /// The reason.
        reason: StopReason,
    },
    /// The guest did not answer in time.
    TimedOut(Transaction),
    /// The host could not discard pages. They count towards the guest's size, but the guest cannot
    /// use them. Setting a target at or below the present size retries the discard.
    DiscardFailed {
        /// The number of pages.
        pages: PageCount,
    },
    /// The host could not remove memory that the guest does not use; the guest may still have
    /// access to it. See [`Task::Remove`](crate::Task::Remove).
    RemovalFailed {
        /// The pages.
        range: PageRange,
    },
    /// The guest reported its memory pressure. Sent only with
    /// [`Config::status_reports`](crate::Config::status_reports).
    StatusReport(StatusReport),
    /// The guest broke the protocol. The fault is already counted; log it at a limited rate.
    Fault(GuestFault),
}
