//! Memory that is added while the guest runs.
//!
//! All of it comes from one mapping, the *reserve*, made together with the machine; memory that
//! nothing has touched costs nothing. The guest gets it in pieces, each of which is a region of its
//! own and therefore a memory slot of the VM. Pieces are cut from the reserve on a grid, which
//! limits their number.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use thiserror::Error;

use crate::discard::ProvideError;
use crate::extent::Extent;
use crate::mapping::Mapping;
use crate::{HugePages, RamRegion};

/// Memory could not be added. Nothing has changed.
#[derive(Debug, Error)]
pub enum AddError {
    /// The range is not entirely within the memory that can be added.
    #[error("pages {range} at offset {offset} exceed the {capacity} pages that can be added")]
    Capacity {
        /// The range to add.
        range: PageRange,
        /// Its offset in the memory that can be added.
        offset: PageCount,
        /// How much memory can be added.
        capacity: PageCount,
    },
    /// The memory that can be added would begin below address 0 or end above the highest address.
    #[error("there is no address space for added memory with pages {range} at offset {offset}")]
    AddressSpace {
        /// The range to add.
        range: PageRange,
        /// Its offset in the memory that can be added.
        offset: PageCount,
    },
    /// Boot RAM is in the way.
    #[error("added memory would lie over boot RAM at pages {0}")]
    Occupied(PageRange),
    /// Range and offset contradict those of memory added before.
    #[error(
        "pages {range} at offset {offset} do not fit the memory added before, which begins \
         at page {base}"
    )]
    Elsewhere {
        /// The range to add.
        range: PageRange,
        /// Its offset in the memory that can be added.
        offset: PageCount,
        /// Where that memory begins in the guest.
        base: Gpfn,
    },
    /// The alignment changed so often that there would be too many pieces.
    #[error("adding pages {range} would take more than {limit} pieces of memory")]
    TooManyPieces {
        /// The range to add.
        range: PageRange,
        /// The most pieces there may be.
        limit: u32,
    },
    /// The pool has too few huge pages, or the range does not consist of whole ones.
    #[error(transparent)]
    Provide(#[from] ProvideError),
}

/// The reserve, and the parts of it that the guest has.
#[derive(Debug)]
pub(crate) struct HotAdd {
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) huge_pages: HugePages,
    pub(crate) capacity: PageCount,
    pub(crate) max_pieces: u32,
    /// The reserve at its place in the guest, which the first addition determines.
    extent: OnceLock<Extent>,
    added: Mutex<Added>,
}

/// The memory that the guest has.
#[derive(Debug, Default)]
pub(crate) struct Added {
    /// The ranges requested.
    wanted: PageRangeSet,
    /// The pieces that hold these ranges, and possibly more.
    pieces: Vec<Arc<RamRegion>>,
}

impl HotAdd {
    pub(crate) fn new(
        mapping: Mapping,
        huge_pages: HugePages,
        capacity: PageCount,
        max_pieces: u32,
    ) -> Self {
        let mapping = Arc::new(mapping);
        let (extent, added) = (OnceLock::new(), Mutex::default());
        Self { mapping, huge_pages, capacity, max_pieces, extent, added }
    }

    /// The reserve at its place in the guest; `None` before the first addition.
    pub(crate) fn extent(&self) -> Option<&Extent> {
        self.extent.get()
    }

    /// The memory that the guest has. A caller that changes it holds this lock until the change is
    /// visible.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Added> {
        self.added.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reserve, placed so that `range` begins `offset` pages above its start. `None` if it is
    /// already there.
    pub(crate) fn place(
        &self,
        range: PageRange,
        offset: PageCount,
        boot: &PageRangeSet,
    ) -> Result<Option<Extent>, AddError> {
        let capacity = self.capacity;
        if offset.checked_add(range.count()).is_none_or(|end| end > capacity) {
            return Err(AddError::Capacity { range, offset, capacity });
        }
        let window = (range.start().get())
            .checked_sub(offset.get())
            .and_then(Gpfn::new)
            .and_then(|base| PageRange::new(base, capacity).ok())
            .ok_or(AddError::AddressSpace { range, offset })?;
        if let Some(placed) = self.extent() {
            let base = placed.range().start();
            let fits = base == window.start();
            return if fits { Ok(None) } else { Err(AddError::Elsewhere { range, offset, base }) };
        }
        if let Some(occupied) = boot.intersection(window).next() {
            return Err(AddError::Occupied(occupied));
        }
        let unit = self.huge_pages.page_size();
        if window.start().align_down(unit) != window.start() {
            return Err(ProvideError::Unaligned { range, unit }.into());
        }
        Ok(Some(Extent::new_absent(window, Arc::clone(&self.mapping), self.huge_pages)))
    }

    /// Keeps the place that [`HotAdd::place`] proposed. The caller has held the lock since then.
    pub(crate) fn settle(&self, extent: Option<Extent>) {
        if let Some(extent) = extent {
            let _ = self.extent.set(extent);
        }
    }

    /// The pieces that `range` needs and the guest does not have yet.
    pub(crate) fn missing_pieces(
        &self,
        extent: &Extent,
        added: &Added,
        range: PageRange,
        alignment: PageCount,
    ) -> Result<Vec<Arc<RamRegion>>, AddError> {
        let mapped: PageRangeSet = added.pieces.iter().map(|piece| piece.range()).collect();
        let missing: Vec<Arc<RamRegion>> = grid(self.capacity, self.max_pieces, alignment)
            .around(extent.range(), range)
            .flat_map(|piece| mapped.difference(piece).collect::<Vec<_>>())
            .filter_map(|piece| extent.region(piece).map(Arc::new))
            .collect();
        let count = added.pieces.len().saturating_add(missing.len());
        if u32::try_from(count).is_ok_and(|count| count <= self.max_pieces) {
            Ok(missing)
        } else {
            Err(AddError::TooManyPieces { range, limit: self.max_pieces })
        }
    }
}

impl Added {
    pub(crate) fn pieces(&self) -> &[Arc<RamRegion>] {
        &self.pieces
    }

    pub(crate) fn insert(&mut self, range: PageRange, pieces: &[Arc<RamRegion>]) {
        self.wanted.insert(range);
        self.pieces.extend_from_slice(pieces);
    }

    /// Removes `range` and returns the pieces that are no longer needed.
    pub(crate) fn remove(&mut self, range: PageRange) -> Vec<Arc<RamRegion>> {
        self.wanted.remove(range);
        let wanted = &self.wanted;
        let goes = |piece: &mut Arc<RamRegion>| {
            let pages = piece.range();
            pages.intersection(range).is_some() && wanted.intersection(pages).next().is_none()
        };
        self.pieces.extract_if(.., goes).collect()
    }
}

/// The division of the reserve into pieces.
#[derive(Clone, Copy, Debug)]
struct Grid {
    /// Pages in a piece, at least one.
    piece: PageCount,
}

/// Pieces of one alignment block each, or of as many blocks as it takes to cover the reserve with
/// `max_pieces` pieces.
fn grid(capacity: PageCount, max_pieces: u32, alignment: PageCount) -> Grid {
    let alignment = alignment.max(PageCount::new(1));
    let least = PageCount::new(capacity.get().div_ceil(u64::from(max_pieces).max(1)));
    Grid { piece: least.max(alignment).align_up(alignment).unwrap_or(capacity) }
}

impl Grid {
    /// The pieces that hold pages of `range`. The first piece begins where `window` does; the last
    /// one in the window may be shorter than the others.
    fn around(self, window: PageRange, range: PageRange) -> impl Iterator<Item = PageRange> {
        let offset = |gpfn: Gpfn| gpfn.distance_from(window.start()).get();
        let piece = self.piece.get().max(1);
        let (first, end) = (offset(range.start()) / piece, offset(range.end()).div_ceil(piece));
        (first..end).filter_map(move |index| {
            let start = PageCount::new(index.checked_mul(piece)?);
            let start = window.start().checked_add(start)?;
            PageRange::new(start, self.piece)
                .ok()
                .or(PageRange::between(start, Gpfn::MAX))?
                .intersection(window)
        })
    }
}
