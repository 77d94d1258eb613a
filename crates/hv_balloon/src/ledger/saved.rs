//! Saving and restoring the ledger.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use page_range::{PageCount, PageRange, PageRangeSet};
use saved_state::{Range, RangeSet};

use super::{MAX_DISCARDS_IN_FLIGHT, MAX_FOREIGN_PAGES, MAX_FOREIGN_RANGES, Out, PageLedger};
use crate::JobId;
use crate::placement::HotAddPlacement;
use crate::saved::form;
use crate::saved::{RestoreError, Result, ensure};

impl PageLedger {
    pub(crate) fn save(&self, boot_ram: &PageRangeSet) -> form::Ledger {
        let added = self.ram.iter().flat_map(|range| boot_ram.difference(range));
        let discarding = self.out.discarding.iter();
        form::Ledger {
            added: added.map(Range).collect(),
            pending: RangeSet::from(&self.pending),
            discarding: discarding.map(|(id, pages)| (id.get(), RangeSet::from(pages))).collect(),
            ballooned: RangeSet::from(&self.out.ballooned),
            undiscarded: RangeSet::from(&self.out.undiscarded),
            held: RangeSet::from(&self.out.held),
            providing: RangeSet::from(&self.out.providing),
            foreign: RangeSet::from(&self.foreign),
            unconfirmed: RangeSet::from(&self.unconfirmed),
        }
    }

    /// Restores the ledger if it satisfies the invariants: see [`PageLedger::check`].
    pub(crate) fn restore(
        saved: &form::Ledger,
        boot_ram: &PageRangeSet,
        placement: Option<&HotAddPlacement>,
        unit: PageCount,
    ) -> Result<Self> {
        let mut ledger = Self::new(ram(saved, boot_ram, placement)?, unit);
        ensure(saved.discarding.len() <= MAX_DISCARDS_IN_FLIGHT, "too many discards in flight")?;
        let mut discarding = BTreeMap::new();
        for (id, pages) in &saved.discarding {
            ensure(!pages.is_empty(), "a discard without pages")?;
            let before = discarding.insert(JobId(*id), ledger.units(pages)?);
            ensure(before.is_none(), "two jobs with one ID")?;
        }
        ledger.out = Out {
            discarding,
            ballooned: ledger.units(&saved.ballooned)?,
            undiscarded: ledger.pages(&saved.undiscarded)?,
            held: ledger.pages(&saved.held)?,
            providing: ledger.units(&saved.providing)?,
        };
        ledger.pending = ledger.pages(&saved.pending)?;
        ledger.unconfirmed = ledger.pages(&saved.unconfirmed)?;
        let is_boot_ram = |range| !boot_ram.is_disjoint(range);
        ensure(!ledger.unconfirmed.iter().any(is_boot_ram), "boot RAM is unconfirmed")?;
        let mut union = PageRangeSet::new();
        for set in ledger.out.sets().chain([&ledger.pending, &ledger.unconfirmed]) {
            ensure(union.insert_set(set) == set.len(), "a page is in two places")?;
        }
        let wants_units = !ledger.out.held.is_empty() || !ledger.out.providing.is_empty();
        ensure(!wants_units || !ledger.provides_itself(), "huge pages in a device without them")?;
        ledger.foreign = ledger.foreign_pages(&saved.foreign)?;
        Ok(ledger)
    }

    /// The saved pages, all of which must be RAM.
    fn pages(&self, saved: &RangeSet) -> Result<PageRangeSet> {
        saved.within(&self.ram).ok_or(RestoreError::Impossible {
            reason: "pages that the guest gave but that are not RAM",
        })
    }

    /// The saved pages, which must be whole units of RAM.
    pub(crate) fn units(&self, saved: &RangeSet) -> Result<PageRangeSet> {
        let are_whole = saved.iter().all(|range| range.is_whole(self.unit));
        ensure(are_whole, "a part of a huge page is discarded")?;
        self.pages(saved)
    }

    fn foreign_pages(&self, saved: &RangeSet) -> Result<PageRangeSet> {
        ensure(saved.range_count() <= MAX_FOREIGN_RANGES, "too many foreign ranges")?;
        // A set takes memory in proportion to its pages, and RAM does not bound foreign pages.
        let counts = saved.iter().map(PageRange::count);
        let pages = counts.fold(PageCount::ZERO, PageCount::saturating_add);
        ensure(pages <= MAX_FOREIGN_PAGES, "too many foreign pages")?;
        ensure(
            saved.iter().all(|range| self.ram.is_disjoint(range)),
            "foreign pages that are RAM",
        )?;
        Ok(saved.iter().collect())
    }

    /// The IDs of the discards in flight.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.out.discarding.keys().copied()
    }

    /// The discards in flight and their pages.
    pub(crate) fn discards(&self) -> Vec<(JobId, Vec<PageRange>)> {
        let discarding = self.out.discarding.iter();
        discarding.map(|(&id, pages)| (id, pages.iter().collect())).collect()
    }

    /// Makes the pages of the discards in flight pending again.
    pub(crate) fn take_back_discards(&mut self) {
        for pages in core::mem::take(&mut self.out.discarding).into_values() {
            self.pending.append(pages);
        }
    }

    /// The units that the host is to provide again.
    pub(crate) fn provided(&self) -> Vec<PageRange> {
        self.out.providing.iter().collect()
    }

    /// The discarded pages, except those that the host is to provide again.
    pub(crate) fn ballooned(&self) -> impl Iterator<Item = PageRange> + '_ {
        self.out.ballooned.iter()
    }

    pub(crate) const fn is_providing(&self) -> bool {
        !self.out.providing.is_empty()
    }

    pub(crate) fn has_ram_in(&self, range: PageRange) -> bool {
        !self.ram.is_disjoint(range)
    }
}

fn ram(
    saved: &form::Ledger,
    boot_ram: &PageRangeSet,
    placement: Option<&HotAddPlacement>,
) -> Result<PageRangeSet> {
    let mut ram = boot_ram.clone();
    for &Range(range) in &saved.added {
        let has_place = placement.is_some_and(|placement| placement.has_added(range));
        ensure(has_place && ram.insert(range) == range.count(), "RAM that was not added")?;
    }
    Ok(ram)
}
