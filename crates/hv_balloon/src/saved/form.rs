//! Version 1 of the saved state: the device's own structs, with plain numbers.
//!
//! The order of fields and variants determines the bytes, so nothing here may change; a change
//! needs a new version beside this one. Golden files in `tests/golden` guard this.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use saved_state::{Range, RangeSet};
use serde::{Deserialize, Serialize};

use crate::FaultCounts;

/// A whole device. Page counts and page numbers are plain numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) config: Config,
    pub(crate) link: Link,
    pub(crate) goal: Option<Goal>,
    pub(crate) confirmation: Confirmation,
    pub(crate) ledger: Ledger,
    pub(crate) placement: Option<Placement>,
    pub(crate) next_job: u64,
    pub(crate) removals: Removals,
    pub(crate) faults: FaultCounts,
    pub(crate) last_refusal: Option<(u64, Refusal)>,
    pub(crate) announced_hot_added: u64,
    pub(crate) announced: u64,
    /// Whether a `CloseFinished` is still waiting for the driver.
    pub(crate) close_finished: bool,
}

/// Whether it is known which of the added memory the guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Confirmation {
    Settled,
    Awaited,
    Silent,
}

/// Memory to remove from the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removals {
    /// To be removed once the jobs of the last session have ended.
    pub(crate) waiting: Vec<Range>,
    /// Jobs that are in flight.
    pub(crate) in_flight: Vec<(u64, Range)>,
    /// Could not be removed.
    pub(crate) stuck: Vec<Range>,
}

/// The configuration of the device, with which it must be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) boot_ram: RangeSet,
    pub(crate) discard_unit: u64,
    pub(crate) hot_add: Option<HotAdd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HotAdd {
    pub(crate) window: Range,
    pub(crate) capacity: u64,
    pub(crate) least_alignment: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Link {
    Closed,
    Handshake {
        guest_os_id: u64,
        outbox: Vec<Vec<u8>>,
        /// The version, once accepted.
        version: Option<u32>,
    },
    Ready(Box<Session>),
    /// The jobs in flight are void: see `Device::save`.
    Closing {
        absent: RangeSet,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) guest_os_id: u64,
    pub(crate) version: u32,
    pub(crate) capabilities: u64,
    pub(crate) activity: Activity,
    /// Messages that are not in the ring, the driver's first.
    pub(crate) outbox: Vec<Vec<u8>>,
    pub(crate) transaction_id: u32,
    pub(crate) status: Option<Status>,
    pub(crate) late: Option<Offer>,
    pub(crate) is_proven: bool,
    pub(crate) fresh_status: Option<Status>,
    pub(crate) status_before: Option<Status>,
    /// The time that the guest has left to confirm the memory added before.
    pub(crate) confirmation_left: Option<Duration>,
    pub(crate) unused: Option<Unused>,
    pub(crate) given_up: u32,
    pub(crate) failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Activity {
    Settling {
        left: Duration,
    },
    Idle,
    Pausing {
        left: Duration,
        short_answers: u32,
    },
    Ballooning(Asked),
    Unballooning {
        all_sent: bool,
        left: Option<Duration>,
    },
    Preparing {
        job: u64,
        /// Memory to add; `None` for pages to return.
        added: Option<Range>,
    },
    HotAdding(Offer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) range: Range,
    /// How long ago the request was put into the ring.
    pub(crate) waited: Option<Duration>,
    /// The time that the guest has left to answer; `None` where it is overdue.
    pub(crate) left: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unused {
    pub(crate) pages: u64,
    pub(crate) before: Option<Status>,
    pub(crate) left: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) pages: u64,
    pub(crate) gained: u64,
    pub(crate) named_pages: bool,
    pub(crate) short_answers: u32,
    /// The time left for the whole request.
    pub(crate) whole_left: Duration,
    /// The time that it has left unless pages come; `None` where it is overdue.
    pub(crate) left: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) target: u64,
    pub(crate) pursuit: Pursuit,
    pub(crate) told_overdue: bool,
    pub(crate) told_unused: bool,
}

/// Reasons are numbers: see [`super::codes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Pursuit {
    Open,
    Overdue(u8),
    Stopping(u8),
    Stopped(u8),
    Reached,
}

/// The sets of the ledger. Of RAM, only the part beyond boot RAM is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) added: Vec<Range>,
    pub(crate) pending: RangeSet,
    pub(crate) discarding: Vec<(u64, RangeSet)>,
    pub(crate) ballooned: RangeSet,
    pub(crate) undiscarded: RangeSet,
    pub(crate) held: RangeSet,
    pub(crate) providing: RangeSet,
    pub(crate) foreign: RangeSet,
    pub(crate) unconfirmed: RangeSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Placement {
    pub(crate) base: Option<u64>,
    pub(crate) used: u64,
    pub(crate) reach: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) available: u64,
    pub(crate) committed: u64,
    pub(crate) page_file: u64,
    pub(crate) zero_and_free: u64,
    pub(crate) page_file_writes: u32,
    pub(crate) io_difference: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Zero,
    AboveMaximum { requested: u64, maximum: u64 },
    CannotBalloon { present: u64 },
    CannotHotAdd { maximum: u64 },
    Stopped(u8),
    Unconfirmed { maximum: u64, unconfirmed: u64 },
}
