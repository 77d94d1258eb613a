//! Memory on its way out of the guest's reach.
//!
//! ```text
//!   offer not taken ──► in flight ──► gone
//!   left over at a        ▲   │ failed
//!   close ──► waiting ────┘   ▼
//!                   ▲───── stuck
//!                 next close or reset, or memory is to be added
//! ```
//!
//! The host may be unable to take memory away. The guest may then still reach it, so the device
//! adds no memory to the guest until another removal of it has succeeded.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use page_range::{PageRange, PageRangeSet};

use crate::JobId;
use crate::action::JobIds;

/// The removals that wait, run, and failed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Removals {
    /// To be asked for once the jobs of the last session have ended.
    pub(crate) waiting: PageRangeSet,
    pub(crate) in_flight: BTreeMap<JobId, PageRange>,
    /// Could not be removed; the guest may still reach these pages.
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

    /// Lets what failed be tried again.
    pub(crate) fn retry(&mut self) {
        let stuck = core::mem::take(&mut self.stuck);
        self.waiting.insert_set(&stuck);
    }

    /// Memory to remove once that can be asked for.
    pub(crate) fn add(&mut self, range: PageRange) {
        self.waiting.insert(range);
    }

    /// The machine was reset: all memory that may have been added goes.
    pub(crate) fn restart(&mut self, added: Option<PageRange>) {
        self.waiting = added.into_iter().collect();
    }

    /// Begins all removals that wait.
    pub(crate) fn begin(&mut self, ids: &mut JobIds) -> Vec<(JobId, PageRange)> {
        let begun: Vec<_> =
            core::mem::take(&mut self.waiting).iter().map(|range| (ids.next(), range)).collect();
        self.in_flight.extend(begun.iter().copied());
        begun
    }

    /// A removal ended; `None` where the job is none of them.
    pub(crate) fn finish(&mut self, id: JobId, ok: bool) -> Option<PageRange> {
        let range = self.in_flight.remove(&id)?;
        if !ok {
            self.stuck.insert(range);
        }
        Some(range)
    }
}
