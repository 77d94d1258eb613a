//! Version 1 of the saved state, as it is written.
//!
//! The bytes follow from the order of fields and variants, so nothing here may change but by a new
//! version beside this one. Golden files in `tests/golden` hold it.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::time::Duration;

use saved_state::{Range, RangeSet};
use serde::{Deserialize, Serialize};

/// All of a device. Page counts and page numbers are plain numbers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Device<'a> {
    pub(crate) config: Config<'a>,
    pub(crate) state: State<'a>,
    pub(crate) guest_os_id: Option<u64>,
    pub(crate) goal: Option<Goal>,
    pub(crate) books: Books<'a>,
    pub(crate) region: Option<Region>,
    pub(crate) next_job: u64,
    pub(crate) removals: Removals,
    /// Messages that are not in the ring, the one that the driver has first.
    pub(crate) outbox: Vec<Cow<'a, [u8]>>,
    pub(crate) transaction_id: u32,
    pub(crate) status: Option<Status>,
    pub(crate) faults: [u64; 10],
    pub(crate) last_refusal: Option<(u64, Refusal)>,
    pub(crate) announced_hot_added: u64,
    pub(crate) announced: u64,
    /// The driver was not told yet that a close has ended.
    pub(crate) close_finished: bool,
}

/// Memory on its way out of the guest's reach.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Removals {
    /// To be removed once the jobs of the last session have ended.
    pub(crate) waiting: Vec<Range>,
    /// Jobs that are in flight.
    pub(crate) in_flight: Vec<(u64, Range)>,
    /// Could not be removed.
    pub(crate) stuck: Vec<Range>,
}

/// What the device was made from and must be made from again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Config<'a> {
    pub(crate) boot_ram: RangeSet<'a>,
    pub(crate) discard_unit: u64,
    pub(crate) hot_add: Option<HotAdd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HotAdd {
    pub(crate) window: Range,
    pub(crate) capacity: u64,
    pub(crate) least_alignment: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum State<'a> {
    Closed,
    /// The jobs in flight are void: see `Device::save`.
    Closing {
        absent: RangeSet<'a>,
    },
    AwaitVersion,
    AwaitCaps {
        version: u32,
    },
    Settling {
        session: Session,
        left: Duration,
    },
    Idle {
        session: Session,
    },
    Pausing {
        session: Session,
        left: Duration,
        short_answers: u32,
    },
    Ballooning {
        session: Session,
        asked: Asked,
        left: Duration,
    },
    Unballooning {
        session: Session,
        all_sent: bool,
        left: Duration,
    },
    Preparing {
        session: Session,
        job: u64,
        /// Memory to add; without, pages to give back.
        added: Option<Range>,
    },
    HotAdding {
        session: Session,
        range: Range,
        /// How long ago the request was put into the ring.
        waited: Option<Duration>,
        left: Duration,
    },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) version: u32,
    pub(crate) capabilities: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    pub(crate) pages: u64,
    pub(crate) gained: u64,
    pub(crate) named_pages: bool,
    pub(crate) short_answers: u32,
    /// The time the whole request has left.
    pub(crate) left: Duration,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) target: u64,
    pub(crate) pursuit: Pursuit,
}

/// Reasons are numbers: see [`super::codes`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Pursuit {
    Open,
    Stopping(u8),
    Stopped(u8),
    Reached,
}

/// The sets of the books, RAM as what it has beyond the boot RAM.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Books<'a> {
    pub(crate) added: Vec<Range>,
    pub(crate) pending: RangeSet<'a>,
    pub(crate) discarding: Vec<(u64, RangeSet<'a>)>,
    pub(crate) ballooned: RangeSet<'a>,
    pub(crate) undiscarded: RangeSet<'a>,
    pub(crate) held: RangeSet<'a>,
    pub(crate) providing: RangeSet<'a>,
    pub(crate) foreign: RangeSet<'a>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Region {
    pub(crate) base: Option<u64>,
    pub(crate) used: u64,
    pub(crate) reach: u64,
    /// Memory whose request timed out, and whether the request is in the ring.
    pub(crate) unanswered: Option<(Range, bool)>,
    pub(crate) is_proven: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) available: u64,
    pub(crate) committed: u64,
    pub(crate) page_file: u64,
    pub(crate) zero_and_free: u64,
    pub(crate) page_file_writes: u32,
    pub(crate) io_difference: u32,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    Zero,
    AboveMaximum { requested: u64, maximum: u64 },
    CannotBalloon { present: u64 },
    CannotHotAdd { maximum: u64 },
    Stopped(u8),
}
