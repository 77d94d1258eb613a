//! The placement of added memory in the guest's address space.
//!
//! ```text
//!   window         base              used              reach          end of capacity
//!     │  skipped    │  the guest's or  │  offered, or     │  not picked   │
//!     │  to align   │  lost to align   │  given up again  │  yet          │
//!     ├─────────────┼──────────────────┼──────────────────┼───────────────┤
//! ```
//!
//! [`HotAddPlacement::plan`] picks the pages to add next. From then on they may be accessible to
//! the guest: they are prepared, then offered. If the guest takes them, they are RAM
//! ([`HotAddPlacement::advance`]) and the [`ledger`](crate::ledger) tracks them. If not, they are
//! removed and can be picked again. Pages keep their addresses when the channel closes, and lose
//! them at a reset ([`HotAddPlacement::reset`]).

mod saved;

use page_range::{Gpfn, PageCount, PageRange};

use crate::HotAdd;
use crate::action::Prepare;

/// The most that one request offers, unless the alignment is larger: 2 GiB are known to work with
/// Windows (QEMU `hv-balloon.c`).
pub const MAX_HOT_ADD_REQUEST: PageCount = PageCount::from_bytes(2 << 30);

/// The most that a request offers until the guest has used added memory in this session, unless the
/// alignment is larger. Linux waits up to 5 s for each block of 128 MiB that nobody brings online,
/// so a guest that never brings memory online costs one wait and not sixteen.
pub const FIRST_HOT_ADD_REQUEST: PageCount = PageCount::from_bytes(128 << 20);

/// The hot-add memory. It is used from its start up.
#[derive(Clone, Debug)]
pub(crate) struct HotAddPlacement {
    config: HotAdd,
    /// Address of the first page, once any was picked.
    base: Option<Gpfn>,
    /// Pages from `base` on that the guest has, or that were lost to a change of alignment.
    used: PageCount,
    /// Pages from `base` on that the guest may have had access to.
    reach: PageCount,
}

/// A request for new memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    /// Pages that the guest lacks.
    pub(crate) missing: PageCount,
    /// The guest's alignment.
    pub(crate) of_guest: PageCount,
    /// Whether to offer too little rather than too much.
    pub(crate) is_exact: bool,
    /// Whether the guest has not used added memory in this session yet.
    pub(crate) is_first: bool,
}

/// The memory that can be added next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    base: Gpfn,
    start: Gpfn,
    pages: PageCount,
}

impl HotAddPlacement {
    pub(crate) const fn new(config: HotAdd) -> Self {
        Self { config, base: None, used: PageCount::ZERO, reach: PageCount::ZERO }
    }

    /// Forgets all added memory, and returns the pages that the guest may have access to.
    pub(crate) fn reset(&mut self) -> Option<PageRange> {
        let end = self.base.and_then(|base| base.checked_add(self.reach));
        let known = self.base.zip(end).and_then(|(base, end)| PageRange::between(base, end));
        *self = Self::new(self.config);
        known
    }

    /// The first page of the added memory, once any was added.
    pub(crate) fn base(&self) -> Option<Gpfn> {
        self.base.filter(|_| !self.used.is_zero())
    }

    pub(crate) const fn capacity(&self) -> PageCount {
        self.config.capacity
    }

    /// The alignment of memory added to a guest whose own alignment is `of_guest`.
    pub(crate) fn alignment(&self, of_guest: PageCount) -> PageCount {
        of_guest.max(self.config.least_alignment)
    }

    /// Pages not used yet, whatever the alignment.
    pub(crate) const fn left(&self) -> PageCount {
        self.config.capacity.saturating_sub(self.used)
    }

    /// Pages that can be added to a guest with this alignment.
    pub(crate) fn addable(&self, of_guest: PageCount) -> PageCount {
        self.room(self.alignment(of_guest)).map_or(PageCount::ZERO, |room| room.pages)
    }

    /// Picks the memory to offer, in whole blocks. The last block may exceed what is missing, and
    /// the balloon then takes the excess back; an exact request never exceeds it. `None` if no
    /// block fits.
    pub(crate) fn plan(&mut self, request: Request) -> Option<(PageRange, Prepare)> {
        let Request { missing, of_guest, is_exact, is_first } = request;
        let alignment = self.alignment(of_guest);
        let room = self.room(alignment)?;
        let wanted = match missing.align_up(alignment) {
            Some(wanted) if !is_exact => wanted,
            _ => missing.align_down(alignment),
        };
        let most = if is_first { FIRST_HOT_ADD_REQUEST } else { MAX_HOT_ADD_REQUEST };
        let most = most.align_down(alignment).max(alignment);
        let range = PageRange::new(room.start, wanted.min(most).min(room.pages)).ok()?;
        let offset = room.start.distance_from(room.base);
        self.base = Some(room.base);
        self.reach = self.reach.max(range.end().distance_from(room.base));
        Some((range, Prepare::Add { range, offset, alignment }))
    }

    /// Marks the pages up to the end of `range` as used.
    pub(crate) fn advance(&mut self, range: PageRange) {
        if let Some(base) = self.base {
            self.used = self.used.max(range.end().distance_from(base));
        }
    }

    fn room(&self, alignment: PageCount) -> Option<Room> {
        // Once chosen, the base stays: pages keep their addresses until a reset.
        let base = match self.base {
            Some(base) => base,
            None => self.config.window.start().align_up(alignment)?,
        };
        let start = base.checked_add(self.used)?.align_up(alignment)?;
        let end = base.checked_add(self.config.capacity)?.min(self.config.window.end());
        let pages = end.distance_from(start).align_down(alignment);
        Some(Room { base, start, pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 256;

    fn placement(start_mib: u64, end_mib: u64, capacity_mib: u64) -> HotAddPlacement {
        let at = |mib: u64| Gpfn::new(mib.saturating_mul(MIB)).unwrap();
        HotAddPlacement::new(HotAdd {
            window: PageRange::between(at(start_mib), at(end_mib)).unwrap(),
            capacity: PageCount::new(capacity_mib.saturating_mul(MIB)),
            least_alignment: PageCount::new(512),
        })
    }

    fn mib(count: u64) -> PageCount {
        PageCount::new(count.saturating_mul(MIB))
    }

    fn request(missing: u64, alignment: u64) -> Request {
        let (missing, of_guest) = (mib(missing), mib(alignment));
        Request { missing, of_guest, is_exact: false, is_first: false }
    }

    fn plan(
        placement: &mut HotAddPlacement,
        missing: u64,
        alignment: u64,
    ) -> Option<(u64, u64, u64)> {
        shown(placement.plan(request(missing, alignment))?)
    }

    /// The start and size of the offer, and its offset, in MiB.
    fn shown((range, prepare): (PageRange, Prepare)) -> Option<(u64, u64, u64)> {
        let Prepare::Add { offset, .. } = prepare else { return None };
        Some((range.start().get() / MIB, range.count().get() / MIB, offset.get() / MIB))
    }

    #[test]
    fn the_place_follows_from_the_guests_alignment() {
        let new = || placement(4097, 1 << 20, 8192);
        assert_eq!(plan(&mut new(), 1, 2), Some((4098, 2, 0)));
        assert_eq!(plan(&mut new(), 100, 128), Some((4224, 128, 0)));
        assert_eq!(plan(&mut new(), 1, 32768), None);
        assert_eq!(new().addable(mib(32768)), PageCount::ZERO);
        assert_eq!(new().addable(mib(4096)), mib(8192));
    }

    #[test]
    fn requests_are_one_block_first_and_large_later() {
        let new = || placement(4096, 1 << 20, 1 << 18);
        let first = Request { is_first: true, ..request(5000, 2) };
        assert_eq!(new().plan(first).and_then(shown), Some((4096, 128, 0)));
        assert_eq!(plan(&mut new(), 5000, 2), Some((4096, 2048, 0)));
        assert_eq!(plan(&mut new(), 5000, 4096), Some((4096, 4096, 0)));
        assert_eq!(plan(&mut new(), 5000, 32768), Some((32768, 32768, 0)));
    }

    #[test]
    fn what_was_added_stays_where_it_is_and_the_rest_follows() {
        let mut placement = placement(4096, 1 << 20, 1024);
        let (range, _) = placement.plan(request(2, 2)).unwrap();
        placement.advance(range);
        assert_eq!(plan(&mut placement, 2, 2), Some((4098, 2, 2)));
        // A kernel started by kexec may need a larger alignment; the gap is lost until a reset.
        assert_eq!(plan(&mut placement, 2, 128), Some((4224, 128, 128)));
        assert_eq!(placement.addable(mib(128)), mib(896));
        assert_eq!(placement.left(), mib(1022));
    }

    #[test]
    fn nothing_is_offered_beyond_the_window_or_the_capacity() {
        let mut small = placement(4096, 1 << 20, 300);
        assert_eq!(plan(&mut small, 1000, 128), Some((4096, 256, 0)));
        let narrow = || placement(4096, 4200, 1 << 18);
        assert_eq!(plan(&mut narrow(), 1000, 64), Some((4096, 64, 0)));
        assert_eq!(plan(&mut narrow(), 1000, 128), None);
    }

    #[test]
    fn exact_requests_stay_below() {
        let exact = |missing| Request { is_exact: true, is_first: true, ..request(missing, 128) };
        let mut placement = placement(4096, 1 << 20, 1024);
        assert_eq!(placement.plan(exact(100)), None);
        assert_eq!(placement.base, None);
        let (range, _) = placement.plan(exact(300)).unwrap();
        assert_eq!(range.count(), mib(128));
    }

    #[test]
    fn a_reset_names_all_that_the_guest_may_reach_and_no_more() {
        let mut placement = placement(4096, 1 << 20, 1024);
        assert_eq!(placement.reset(), None);
        let (range, _) = placement.plan(request(2, 2)).unwrap();
        placement.advance(range);
        assert_eq!(placement.reset(), Some(range));
        assert_eq!(placement.left(), mib(1024));
    }
}
