//! Where the device is in its life.

use alloc::collections::BTreeMap;
use core::fmt;
use core::time::Duration;

use dynmem_protocol::{Capabilities, Version};
use page_range::{PageCount, PageRange, PageRangeSet};

use crate::JobId;
use crate::balloon::Asked;

/// What the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) version: Version,
    pub(crate) capabilities: Capabilities,
}

/// The state, each with the data that is valid in it only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No channel.
    Closed,
    /// No channel, and jobs of the last one in flight: discards, each of so many pages, and
    /// perhaps a preparation. Afterwards the host has to provide the `absent` pages again.
    Closing {
        discards: BTreeMap<JobId, PageCount>,
        preparation: Option<Preparation>,
        absent: PageRangeSet,
    },
    /// The guest is to name a version.
    AwaitVersion { settle: Duration },
    /// The guest is to name its capabilities.
    AwaitCaps { settle: Duration, version: Version },
    /// Nothing may be asked of the guest yet.
    Settling { session: Session, until: Duration },
    /// No transaction open.
    Idle { session: Session },
    /// No transaction open; the guest gave less than asked for and is left alone for a while.
    Pausing { session: Session, until: Duration, short_answers: u32 },
    /// A balloon request is out.
    Ballooning { session: Session, asked: Asked, deadline: Duration },
    /// An unballoon request is out, or part of one.
    Unballooning { session: Session, all_sent: bool, deadline: Duration },
    /// The host gets memory ready for the guest, which knows nothing of it.
    Preparing { session: Session, preparation: Preparation },
    /// A hot-add request is out: for which pages, and since when it is in the ring.
    HotAdding { session: Session, range: PageRange, since: Option<Duration>, deadline: Duration },
}

/// Memory that the host gets ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Preparation {
    pub(crate) job: JobId,
    pub(crate) what: Prepared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prepared {
    /// Pages to add.
    Added(PageRange),
    /// Pages to give back.
    Returned,
    /// While closing: the absent pages.
    Absent,
}

impl State {
    pub(crate) const fn session(&self) -> Option<Session> {
        match self {
            Self::Closed
            | Self::Closing { .. }
            | Self::AwaitVersion { .. }
            | Self::AwaitCaps { .. } => None,
            Self::Settling { session, .. }
            | Self::Idle { session }
            | Self::Pausing { session, .. }
            | Self::Ballooning { session, .. }
            | Self::Unballooning { session, .. }
            | Self::Preparing { session, .. }
            | Self::HotAdding { session, .. } => Some(*session),
        }
    }

    pub(crate) const fn deadline(&self) -> Option<Duration> {
        match self {
            Self::Closed
            | Self::Closing { .. }
            | Self::AwaitVersion { .. }
            | Self::AwaitCaps { .. }
            | Self::Idle { .. }
            | Self::Preparing { .. } => None,
            Self::Settling { until, .. } | Self::Pausing { until, .. } => Some(*until),
            Self::Ballooning { deadline, .. }
            | Self::Unballooning { deadline, .. }
            | Self::HotAdding { deadline, .. } => Some(*deadline),
        }
    }

    pub(crate) const fn name(&self) -> StateName {
        match self {
            Self::Closed => StateName::Closed,
            Self::Closing { .. } => StateName::Closing,
            Self::AwaitVersion { .. } => StateName::AwaitVersion,
            Self::AwaitCaps { .. } => StateName::AwaitCaps,
            Self::Settling { .. } => StateName::Settling,
            Self::Idle { .. } => StateName::Idle,
            Self::Pausing { .. } => StateName::Pausing,
            Self::Ballooning { .. } => StateName::Ballooning,
            Self::Unballooning { .. } => StateName::Unballooning,
            Self::Preparing { .. } => StateName::Preparing,
            Self::HotAdding { .. } => StateName::HotAdding,
        }
    }
}

/// The states without their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateName {
    /// The guest has no channel open: its driver is not loaded, or not yet.
    Closed,
    /// The channel is gone; discards or a preparation are in flight.
    Closing,
    /// The guest is to name a protocol version.
    AwaitVersion,
    /// The guest is to name its capabilities.
    AwaitCaps,
    /// The guest is left alone after its boot.
    Settling,
    /// Nothing under way.
    Idle,
    /// The guest gave less than asked for; it is asked again soon.
    Pausing,
    /// The guest is asked for pages.
    Ballooning,
    /// The guest is given pages.
    Unballooning,
    /// The host gets memory ready for the guest.
    Preparing,
    /// The guest is offered new memory.
    HotAdding,
}

impl StateName {
    /// All states.
    pub const ALL: [Self; 11] = [
        Self::Closed,
        Self::Closing,
        Self::AwaitVersion,
        Self::AwaitCaps,
        Self::Settling,
        Self::Idle,
        Self::Pausing,
        Self::Ballooning,
        Self::Unballooning,
        Self::Preparing,
        Self::HotAdding,
    ];

    /// The state as one word for logs and monitors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Closing => "closing",
            Self::AwaitVersion => "await-version",
            Self::AwaitCaps => "await-capabilities",
            Self::Settling => "settling",
            Self::Idle => "idle",
            Self::Pausing => "pausing",
            Self::Ballooning => "ballooning",
            Self::Unballooning => "unballooning",
            Self::Preparing => "preparing",
            Self::HotAdding => "hot-adding",
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
