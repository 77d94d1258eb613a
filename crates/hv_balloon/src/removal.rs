//! Removal of memory from the guest.
//!
//! ```text
//!   offer not taken ──► in flight ──► gone
//!   left over at a        ▲   │ failed
//!   close ──► waiting ────┘   ▼
//!                   ▲───── stuck
//!                 next close or reset, or memory is to be added
//! ```
//!
//! The host may fail to remove memory. The guest may then still have access to it, so the device
//! adds no memory until a repeated removal has succeeded.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use page_range::{PageRange, PageRangeSet};

use crate::JobId;
use crate::action::JobIds;

/// The removals that wait, run or have failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Removals {
    /// To be requested once the jobs of the last session have ended.
    pub(crate) waiting: PageRangeSet,
    pub(crate) in_flight: BTreeMap<JobId, PageRange>,
    /// Could not be removed; the guest may still have access to these pages.
    pub(crate) stuck: PageRangeSet,
}

impl Removals {
    /// Whether there is nothing to remove.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges().next().is_none()
    }

    /// All memory to remove.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = PageRange> {
        let sets = self.waiting.iter().chain(self.stuck.iter());
        sets.chain(self.in_flight.values().copied())
    }

    /// Whether a removal is in flight.
    pub(crate) fn is_busy(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Queues failed removals again.
    pub(crate) fn retry(&mut self) {
        let stuck = core::mem::take(&mut self.stuck);
        self.waiting.insert_set(&stuck);
    }

    /// Queues memory for removal.
    pub(crate) fn add(&mut self, range: PageRange) {
        self.waiting.insert(range);
    }

    /// Starts all waiting removals.
    pub(crate) fn begin(&mut self, ids: &mut JobIds) -> Vec<(JobId, PageRange)> {
        let begun: Vec<_> =
            core::mem::take(&mut self.waiting).iter().map(|range| (ids.next(), range)).collect();
        self.in_flight.extend(begun.iter().copied());
        begun
    }

    /// Records the end of a removal and returns its range; `None` if the job is not a removal.
    pub(crate) fn finish(&mut self, id: JobId, ok: bool) -> Option<PageRange> {
        let range = self.in_flight.remove(&id)?;
        if !ok {
            self.stuck.insert(range);
        }
        Some(range)
    }
}
