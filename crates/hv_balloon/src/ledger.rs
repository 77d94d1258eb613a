//! The page ledger: the state of every page of the guest's RAM.
//!
//! ```text
//!                given             begun               ended
//!   the guest's ───────► pending ───────► discarding ────────► ballooned
//!       ▲                   ▲ │               │ failed            │  ▲
//!       │           retried │ │               ▼                   │  │
//!       │                   └─┼───────── undiscarded              │  │ failed
//!       │ returned            │               │                   ▼  │
//!       ├─────────────────────┴───────────────┴───────────────────┤  │
//!       │                                                         ▼  │
//!       └──────────────── held ◄───────────────────────────── providing
//!                                      provided          (huge pages only)
//! ```
//!
//! A page is RAM from boot on, or from the moment the guest takes it as new memory
//! ([`PageLedger::add_ram`]). It is in one of the sets above, or in none of them if the guest has
//! it. If the host can discard only whole huge pages (the *unit*), pages that the guest gives are
//! *held* until their unit is complete, and a discarded unit is returned only after the host has
//! provided it again. A page that the guest gives but that is not RAM is *foreign*: it is kept
//! apart and returned with the next pages. When the session ends, all RAM counts as the guest's
//! again ([`PageLedger::forget`]). Added RAM that a new kernel may not know is *unconfirmed*: the guest
//! does not have it until it says so, or gives a page of it ([`confirmation`](crate::confirmation)).
//!
//! The ledger changes when an effect is confirmed, not when it is requested. It does not choose the
//! addresses of added memory: see [`placement`](crate::placement).

mod saved;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use dynmem_protocol::RangeWords;
use page_range::{PageCount, PageRange, PageRangeSet};

use crate::JobId;
use crate::action::JobIds;

/// The most discards in flight: one running and one waiting behind it. Pages that arrive meanwhile
/// are merged into the next discard.
pub const MAX_DISCARDS_IN_FLIGHT: usize = 2;

/// The most ranges in one discard. Pages cannot be returned while they are being discarded, and a
/// guest that wants them back at once should wait milliseconds, not seconds.
pub const MAX_DISCARD_RANGES: usize = 16_384;

/// The most ranges of pages outside RAM that the device remembers. All other sets are bounded by
/// RAM, but a guest could name such pages without end.
pub const MAX_FOREIGN_RANGES: usize = 4096;

/// The most pages outside RAM that the device remembers: 64 GiB. They are returned first, at most
/// [`MAX_UNBALLOON_MESSAGE`](crate::MAX_UNBALLOON_MESSAGE) in a message; without this limit, a
/// guest that names its whole address space would be sent two million messages.
pub const MAX_FOREIGN_PAGES: PageCount = PageCount::from_bytes(64 << 30);

/// The pages by state. A page of RAM is in at most one of the sets; the guest has those that are in
/// none.
#[derive(Debug, Default)]
pub(crate) struct PageLedger {
    /// All RAM of the guest, wherever it is.
    ram: PageRangeSet,
    /// The number of pages that the host can discard only together; at least one.
    unit: PageCount,
    /// Given by the guest, not yet handed to a discard.
    pending: PageRangeSet,
    /// Given by the guest, and no longer pending.
    out: Out,
    /// Given by the guest, but not its RAM.
    foreign: PageRangeSet,
    /// RAM that the guest's kernel has not shown to know; in no other set.
    unconfirmed: PageRangeSet,
}

/// Pages that are no longer pending, by what became of them.
#[derive(Debug, Default)]
struct Out {
    /// Being discarded.
    discarding: BTreeMap<JobId, PageRangeSet>,
    /// Given by the guest, discarded.
    ballooned: PageRangeSet,
    /// Given by the guest, but the discard failed.
    undiscarded: PageRangeSet,
    /// Given by the guest, but still provided by the host: other pages of the unit are in use.
    held: PageRangeSet,
    /// Discarded units that the host is to provide again.
    providing: PageRangeSet,
}

impl Out {
    /// The number of sets when the most discards are in flight.
    const SETS: usize = 4 + MAX_DISCARDS_IN_FLIGHT;

    /// The sets that are not empty.
    fn sets(&self) -> impl Iterator<Item = &PageRangeSet> {
        [&self.ballooned, &self.undiscarded, &self.held, &self.providing]
            .into_iter()
            .chain(self.discarding.values())
            .filter(|set| !set.is_empty())
    }
}

/// Collects the foreign pages of one message.
struct Foreign<'a> {
    pages: &'a mut PageRangeSet,
    /// The number of ranges that still fit; counted once per message, since counting is slow.
    room: Option<usize>,
}

impl Foreign<'_> {
    /// Remembers pages as long as there is room.
    fn accept(&mut self, parts: impl Iterator<Item = PageRange>, accepted: &mut Accepted) {
        for part in parts {
            let counted = || MAX_FOREIGN_RANGES.saturating_sub(self.pages.range_count());
            let room = self.room.unwrap_or_else(counted);
            self.room = Some(room.saturating_sub(1));
            if room == 0 || part.count() > MAX_FOREIGN_PAGES.saturating_sub(self.pages.len()) {
                accepted.forgotten = accepted.forgotten.saturating_add(part.count());
                continue;
            }
            let added = self.pages.insert(part);
            accepted.foreign = accepted.foreign.saturating_add(added);
            accepted.duplicate(part.count().saturating_sub(added));
        }
    }
}

/// The pages of one message, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Pages of RAM that the guest had until now.
    pub(crate) fresh: PageCount,
    /// Pages named twice or given before.
    pub(crate) duplicate: PageCount,
    /// Pages that are not RAM.
    pub(crate) foreign: PageCount,
    /// Pages that are not RAM and are not remembered.
    pub(crate) forgotten: PageCount,
    /// Ranges that name no pages.
    pub(crate) bad_ranges: u64,
}

impl Accepted {
    fn duplicate(&mut self, pages: PageCount) {
        self.duplicate = self.duplicate.saturating_add(pages);
    }

    /// Whether the message named any page.
    pub(crate) const fn is_empty(self) -> bool {
        self.fresh.is_zero()
            && self.duplicate.is_zero()
            && self.foreign.is_zero()
            && self.forgotten.is_zero()
    }
}

impl PageLedger {
    pub(crate) fn new(ram: PageRangeSet, unit: PageCount) -> Self {
        Self { ram, unit: unit.max(PageCount::new(1)), ..Self::default() }
    }

    /// Pages of RAM, wherever they are.
    pub(crate) const fn assigned(&self) -> PageCount {
        self.ram.len()
    }

    /// Pages of RAM that the guest's kernel knows.
    pub(crate) const fn known(&self) -> PageCount {
        self.assigned().saturating_sub(self.unconfirmed.len())
    }

    /// Known pages that the host provides, or has to provide as soon as the guest touches them.
    pub(crate) const fn actual(&self) -> PageCount {
        self.known()
            .saturating_sub(self.out.ballooned.len())
            .saturating_sub(self.out.providing.len())
    }

    /// Pages the guest can use, as far as the host knows.
    pub(crate) fn present(&self) -> PageCount {
        let given = self.out.sets().chain([&self.pending]);
        given.fold(self.known(), |present, pages| present.saturating_sub(pages.len()))
    }

    /// Pages given whose discard has not ended.
    pub(crate) fn in_flight(&self) -> PageCount {
        self.pending().saturating_add(self.discarding())
    }

    /// Pages that wait for a discard.
    pub(crate) const fn pending(&self) -> PageCount {
        self.pending.len()
    }

    /// Pages that are being discarded.
    pub(crate) fn discarding(&self) -> PageCount {
        let sets = self.out.discarding.values();
        sets.fold(PageCount::ZERO, |sum, pages| sum.saturating_add(pages.len()))
    }

    /// Pages of RAM that can be returned now.
    pub(crate) fn returnable(&self) -> PageCount {
        let provided = [&self.pending, &self.out.undiscarded, &self.out.held]
            .into_iter()
            .fold(PageCount::ZERO, |sum, pages| sum.saturating_add(pages.len()));
        if self.provides_itself() {
            provided.saturating_add(self.out.ballooned.len())
        } else {
            provided
        }
    }

    /// Whether discarded pages come back by themselves when the guest uses them. Huge pages do not:
    /// they come from a pool that may be empty.
    pub(crate) fn provides_itself(&self) -> bool {
        self.unit == PageCount::new(1)
    }

    /// Whether the guest has all RAM, and no page is foreign.
    pub(crate) fn is_untouched(&self) -> bool {
        self.present() == self.known() && self.foreign.is_empty()
    }

    pub(crate) const fn held(&self) -> PageCount {
        self.out.held.len()
    }

    pub(crate) const fn unit(&self) -> PageCount {
        self.unit
    }

    pub(crate) const fn undiscarded(&self) -> PageCount {
        self.out.undiscarded.len()
    }

    pub(crate) const fn foreign(&self) -> PageCount {
        self.foreign.len()
    }

    pub(crate) const fn unconfirmed(&self) -> PageCount {
        self.unconfirmed.len()
    }

    /// Counts all RAM as unconfirmed except `boot` RAM and what the guest gave: it knows that.
    pub(crate) fn count_out(&mut self, boot: &PageRangeSet) {
        self.unconfirmed = self.ram.clone();
        self.unconfirmed.remove_set(boot);
        for set in self.out.sets().chain([&self.pending]) {
            self.unconfirmed.remove_set(set);
        }
    }

    /// The guest's kernel knows all RAM, as far as is known.
    pub(crate) fn confirm(&mut self) {
        self.unconfirmed.clear();
    }

    /// Accepts pages that the guest gives. Only the format of the words has been checked so far.
    pub(crate) fn accept(&mut self, words: RangeWords<'_>) -> Accepted {
        let mut accepted = Accepted::default();
        // Ranges of RAM of which the guest may have only a part. A guest may name all its RAM in
        // every word, so these are examined together at the end, not word by word.
        let mut doubtful = PageRangeSet::new();
        // The sets are the same for all words, so look them up once.
        let empty = PageRangeSet::new();
        let mut out = [&empty; Out::SETS];
        let used = out.iter_mut().zip(self.out.sets()).map(|(slot, set)| *slot = set).count();
        let out = out.get(..used).unwrap_or_default();
        let mut foreign = Foreign { pages: &mut self.foreign, room: None };
        for word in words.iter() {
            let Ok(range) = word.range() else {
                accepted.bad_ranges = accepted.bad_ranges.saturating_add(1);
                continue;
            };
            if self.ram.contains_range(range) && out.iter().all(|set| set.is_disjoint(range)) {
                let fresh = self.pending.insert(range);
                accepted.fresh = accepted.fresh.saturating_add(fresh);
                accepted.duplicate(range.count().saturating_sub(fresh));
                continue;
            }
            for part in self.ram.intersection(range) {
                accepted.duplicate(part.count().saturating_sub(doubtful.insert(part)));
            }
            foreign.accept(self.ram.difference(range), &mut accepted);
        }
        if !doubtful.is_empty() {
            self.accept_doubtful(doubtful, &mut accepted);
        }
        // A guest knows what it gives.
        if !self.unconfirmed.is_empty() {
            self.unconfirmed.remove_set(&self.pending);
        }
        accepted
    }

    /// Accepts those of the pages that are not out yet.
    fn accept_doubtful(&mut self, mut pages: PageRangeSet, accepted: &mut Accepted) {
        for set in self.out.sets().chain([&self.pending]) {
            accepted.duplicate(pages.remove_set(set));
        }
        accepted.fresh = accepted.fresh.saturating_add(self.pending.insert_set(&pages));
    }

    /// Starts a discard of pending pages. Returns `None` if no pending page can be discarded, or if
    /// the most discards are in flight.
    pub(crate) fn start_discard(&mut self, ids: &mut JobIds) -> Option<(JobId, Vec<PageRange>)> {
        if self.pending.is_empty() || self.out.discarding.len() >= MAX_DISCARDS_IN_FLIGHT {
            return None;
        }
        // A discard usually has the ranges of one message; reserving for them is cheaper than
        // growing.
        let mut ranges = Vec::with_capacity(dynmem_protocol::MAX_RANGES);
        let pages = if self.provides_itself() {
            self.take_pending(&mut ranges)
        } else {
            let pages = self.take_whole_units();
            ranges.extend(pages.iter());
            pages
        };
        if pages.is_empty() {
            return None;
        }
        let id = ids.next();
        self.out.discarding.insert(id, pages);
        Some((id, ranges))
    }

    /// Takes as many pending pages as a discard may have: the lowest, since pages are returned from
    /// the end.
    fn take_pending(&mut self, ranges: &mut Vec<PageRange>) -> PageRangeSet {
        ranges.extend(self.pending.iter().take(MAX_DISCARD_RANGES + 1));
        if ranges.len() <= MAX_DISCARD_RANGES {
            return core::mem::take(&mut self.pending);
        }
        ranges.truncate(MAX_DISCARD_RANGES);
        let pages = ranges.iter().copied().collect();
        self.pending.remove_set(&pages);
        pages
    }

    /// Takes the whole units among the held and the pending pages. The remaining pending pages
    /// become held.
    fn take_whole_units(&mut self) -> PageRangeSet {
        let pending = core::mem::take(&mut self.pending);
        self.out.held.insert_set(&pending);
        // A guest can give every other page, so look at each unit once, not once for each page.
        let touched: PageRangeSet =
            pending.iter().map(|range| range.units_around(self.unit)).collect();
        let whole: PageRangeSet = touched
            .iter()
            .flat_map(|units| self.out.held.intersection(units))
            .filter_map(|part| part.units_within(self.unit))
            .collect();
        self.out.held.remove_set(&whole);
        whole
    }

    /// Records the end of a discard and returns its number of pages; `None` if the discard is not
    /// one of this session.
    pub(crate) fn finish_discard(&mut self, id: JobId, ok: bool) -> Option<PageCount> {
        let pages = self.out.discarding.remove(&id)?;
        let set = if ok { &mut self.out.ballooned } else { &mut self.out.undiscarded };
        let count = pages.len();
        set.append(pages);
        Some(count)
    }

    /// Takes discarded units for `owed` pages, for the host to provide them again. `None` if there
    /// are none.
    pub(crate) fn begin_provide(&mut self, owed: PageCount) -> Option<Vec<PageRange>> {
        let units = owed.align_up(self.unit).unwrap_or(owed);
        self.out.ballooned.take_last_ranges(units, usize::MAX, |range| {
            self.out.providing.insert(range);
        });
        (!self.out.providing.is_empty()).then(|| self.out.providing.iter().collect())
    }

    /// Records that the host has provided the units, or could not.
    pub(crate) fn finish_provide(&mut self, ok: bool) {
        let units = core::mem::take(&mut self.out.providing);
        let set = if ok { &mut self.out.held } else { &mut self.out.ballooned };
        set.insert_set(&units);
    }

    /// Forgets the foreign pages in `range` before it is offered: they were not pages of the new
    /// memory.
    pub(crate) fn forget_foreign(&mut self, range: PageRange) {
        self.foreign.remove(range);
    }

    /// Adds pages that the guest has taken. Those that it gave before its answer arrived become
    /// pending.
    pub(crate) fn add_ram(&mut self, range: PageRange) {
        self.ram.insert(range);
        let given: Vec<PageRange> = self.foreign.intersection(range).collect();
        for part in given {
            self.foreign.remove(part);
            self.pending.insert(part);
        }
    }

    /// Makes the pages of failed discards pending again, and the held pages.
    pub(crate) fn retry_discards(&mut self) {
        let failed = core::mem::take(&mut self.out.undiscarded);
        self.pending.insert_set(&failed);
        self.retry_held();
    }

    /// Makes held pages pending again, so that whole units among them are discarded: those that
    /// were provided but not returned.
    pub(crate) fn retry_held(&mut self) {
        let held = core::mem::take(&mut self.out.held);
        self.pending.insert_set(&held);
    }

    /// Takes a range of at most `room` pages to return: foreign pages first, then at most `owed`
    /// pages of RAM. Also returns how many of the pages are RAM.
    pub(crate) fn take_returnable(
        &mut self,
        owed: PageCount,
        room: PageCount,
    ) -> Option<(PageRange, PageCount)> {
        if let Some(range) = self.foreign.take_last(room) {
            return Some((range, PageCount::ZERO));
        }
        // Returning pages that were not discarded costs the host nothing.
        let max = owed.min(room);
        for set in [&mut self.pending, &mut self.out.undiscarded, &mut self.out.held] {
            if let Some(range) = set.take_last(max) {
                return Some((range, range.count()));
            }
        }
        if !self.provides_itself() {
            return None;
        }
        let range = self.out.ballooned.take_last(max)?;
        Some((range, range.count()))
    }

    /// Forgets the balloon, as the guest has: all RAM counts as the guest's again. Returns the
    /// running discards with their numbers of pages, and the pages that the host must provide again
    /// before the guest touches them.
    pub(crate) fn forget(&mut self) -> (BTreeMap<JobId, PageCount>, PageRangeSet) {
        let discards = self.out.discarding.iter().map(|(&id, pages)| (id, pages.len())).collect();
        let mut absent = PageRangeSet::new();
        if !self.provides_itself() {
            let sets = [&self.out.ballooned, &self.out.providing].into_iter();
            for set in sets.chain(self.out.discarding.values()) {
                absent.insert_set(set);
            }
        }
        let unconfirmed = core::mem::take(&mut self.unconfirmed);
        *self = Self { unconfirmed, ..Self::new(core::mem::take(&mut self.ram), self.unit) };
        (discards, absent)
    }

    /// Starts over with this RAM.
    pub(crate) fn restart(&mut self, ram: PageRangeSet) {
        *self = Self::new(ram, self.unit);
    }
}

#[cfg(any(test, debug_assertions))]
impl PageLedger {
    /// Sets with more ranges than this are not compared page by page, since debug builds run real
    /// guests.
    const THOROUGH: usize = 512;

    /// Asserts the invariants, which hold whatever the guest sends.
    pub(crate) fn check(&self, is_inhibited: bool) {
        assert!(self.out.discarding.len() <= MAX_DISCARDS_IN_FLIGHT, "too many discards in flight");
        assert!(
            self.pending.is_empty()
                || is_inhibited
                || self.out.discarding.len() == MAX_DISCARDS_IN_FLIGHT,
            "pages wait although a discard could start"
        );
        assert!(!self.foreign.has_more_ranges_than(MAX_FOREIGN_RANGES), "too many foreign ranges");
        assert!(self.foreign.len() <= MAX_FOREIGN_PAGES, "too many foreign pages");
        let sets: Vec<&PageRangeSet> =
            [&self.pending, &self.out.ballooned, &self.out.undiscarded, &self.out.held]
                .into_iter()
                .chain([&self.out.providing, &self.unconfirmed])
                .chain(self.out.discarding.values())
                .collect();
        let given = sets.iter().fold(PageCount::ZERO, |sum, set| sum.saturating_add(set.len()));
        assert!(given <= self.assigned(), "more pages out than there are");
        if sets.iter().any(|set| set.has_more_ranges_than(Self::THOROUGH)) {
            return;
        }
        let mut union = PageRangeSet::new();
        for range in sets.into_iter().flat_map(PageRangeSet::iter) {
            assert!(self.ram.contains_range(range), "{range} is out but not RAM");
            assert_eq!(union.insert(range), range.count(), "{range} is in two sets");
        }
        for range in
            [&self.out.ballooned, &self.out.providing].into_iter().flat_map(PageRangeSet::iter)
        {
            assert!(range.is_whole(self.unit), "a part of a unit is discarded");
        }
        for range in self.foreign.iter() {
            assert_eq!(self.ram.intersection(range).next(), None, "{range} is foreign and RAM");
        }
    }
}
