//! One mapping at its place in the guest: discarding its pages and providing them again.

use std::io;
use std::slice;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use page_range::{PageCount, PageRange, PageRangeSet};

use crate::discard::{DiscardError, ProvideError};
use crate::mapping::{Mapping, Span};
use crate::small_pages::{self, SmallPages};
use crate::{HugePages, PoolError, RamRegion};

/// A mapping and the guest pages that it backs, some or all of which the guest has.
#[derive(Debug)]
pub(crate) struct Extent {
    range: PageRange,
    mapping: Arc<Mapping>,
    huge_pages: HugePages,
    is_read_only: bool,
    /// Pages that are back in the host's pool. Empty for other memory, which the kernel allocates
    /// on first touch.
    absent: RwLock<PageRangeSet>,
    /// For memory with transparent huge pages.
    small_pages: Option<SmallPages>,
}

impl Extent {
    /// `mapping` backs exactly `range`.
    pub(crate) fn new(range: PageRange, mapping: Arc<Mapping>, huge_pages: HugePages) -> Self {
        let small_pages = mapping
            .wants_huge_pages()
            .then(|| SmallPages::new(&mapping, &small_pages::OF_PROCESS))
            .flatten();
        let absent = RwLock::default();
        Self { range, mapping, huge_pages, is_read_only: false, absent, small_pages }
    }

    /// Marks the content as not to be changed.
    pub(crate) fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// As [`Extent::new`], for a mapping for which the pool has reserved nothing.
    pub(crate) fn new_absent(range: PageRange, mapping: Arc<Mapping>, huge: HugePages) -> Self {
        let absent = RwLock::new([range].into_iter().collect());
        Self { absent, ..Self::new(range, mapping, huge) }
    }

    pub(crate) fn range(&self) -> PageRange {
        self.range
    }

    /// Whether the extent holds all pages of a range.
    pub(crate) fn holds(&self, range: PageRange) -> bool {
        self.range.start() <= range.start() && range.end() <= self.range.end()
    }

    /// The unit of discards, in pages; guest and mapping are aligned to it.
    pub(crate) fn unit(&self) -> PageCount {
        self.huge_pages.page_size()
    }

    /// The unit of discards, in bytes.
    pub(crate) fn unit_bytes(&self) -> usize {
        usize::try_from(self.unit().bytes()).unwrap_or(usize::MAX)
    }

    /// Whether the pages come from the host's pool. Discarded pages must then be provided before
    /// they are touched again.
    pub(crate) fn has_pool_pages(&self) -> bool {
        self.huge_pages.from_pool()
    }

    /// The pages that are back in the host's pool. None goes there while the guard exists. `None` for
    /// memory that does not come from the pool.
    pub(crate) fn hold_absent(&self) -> Option<RwLockReadGuard<'_, PageRangeSet>> {
        self.has_pool_pages().then(|| self.absent.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A part of the extent as a region; `None` outside.
    pub(crate) fn region(&self, part: PageRange) -> Option<RamRegion> {
        RamRegion::new(part, Arc::clone(&self.mapping), self.span(part)?.offset)
    }

    /// The span to pass to [`Extent::discard`] for a part of the extent.
    pub(crate) fn discardable(&self, part: PageRange) -> Result<Span, DiscardError> {
        let unit = self.unit();
        if self.is_read_only {
            Err(DiscardError::ReadOnly(part))
        } else if !self.has_pool_pages() || is_whole(part, unit) {
            self.span(part).ok_or(DiscardError::NotRam(part))
        } else {
            Err(DiscardError::Unaligned { range: part, unit })
        }
    }

    /// Gives spans back to the host. Tries every one and reports the first failure.
    pub(crate) fn discard(&self, spans: &[Span]) -> Result<(), DiscardError> {
        if let Some(small_pages) = &self.small_pages {
            small_pages.before_discard(&self.mapping, spans);
        }
        if !self.has_pool_pages() {
            return self.discard_now(spans);
        }
        // Held throughout, so that the set matches the pool.
        let mut absent = self.absent.write().unwrap_or_else(PoisonError::into_inner);
        let mut result = Ok(());
        for span in spans {
            let gone = self.discard_now(slice::from_ref(span));
            if gone.is_ok() {
                absent.extend(self.pages(*span));
            }
            result = result.and(gone);
        }
        result
    }

    fn discard_now(&self, spans: &[Span]) -> Result<(), DiscardError> {
        self.mapping.discard(spans).map_err(|(index, source)| {
            let range = spans.get(index).and_then(|span| self.pages(*span));
            DiscardError::System { range: range.unwrap_or(self.range), source }
        })
    }

    /// Of all pages, only `out` are still with the host.
    pub(crate) fn settle(&self, out: &PageRangeSet) {
        if let Some(small_pages) = &self.small_pages {
            let out = out.intersection(self.range).filter_map(|range| self.span(range));
            small_pages.settle(&self.mapping, out);
        }
    }

    /// Whether [`Extent::provide`] accepts this range.
    pub(crate) fn check_provide(&self, part: PageRange) -> Result<(), ProvideError> {
        let unit = self.unit();
        if is_whole(part, unit) {
            Ok(())
        } else {
            Err(ProvideError::Unaligned { range: part, unit })
        }
    }

    /// Allocates the absent pages of a range from the pool: all of them, or none. Returns them.
    pub(crate) fn provide(&self, part: PageRange) -> Result<Vec<PageRange>, ProvideError> {
        if !self.has_pool_pages() {
            return Ok(Vec::new());
        }
        self.check_provide(part)?;
        let mut absent = self.absent.write().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<PageRange> = absent.intersection(part).collect();
        for (index, range) in missing.iter().enumerate() {
            if let Err(error) = self.allocate(*range) {
                // Including the range that failed: the pool may have provided part of it.
                for taken in missing.iter().take(index + 1) {
                    self.put_back(*taken);
                }
                let bytes = missing.iter().map(|range| range.count().bytes()).sum();
                return Err(self.explain(part, bytes, error));
            }
        }
        for range in &missing {
            absent.remove(*range);
        }
        Ok(missing)
    }

    /// Undoes [`Extent::provide`] for a range that it returned.
    pub(crate) fn take_back(&self, part: PageRange) {
        if let Some(span) = self.span(part) {
            // It was absent a moment ago, so a failure loses only pool pages, no content.
            let _ = self.discard(slice::from_ref(&span));
        }
    }

    fn allocate(&self, part: PageRange) -> io::Result<()> {
        self.mapping.allocate(self.span(part).ok_or(io::ErrorKind::InvalidInput)?)
    }

    fn put_back(&self, part: PageRange) {
        if let Some(span) = self.span(part) {
            // Pages that cannot be given back now are freed when the extent is unmapped.
            let _ = self.mapping.discard(slice::from_ref(&span));
        }
    }

    fn explain(&self, range: PageRange, bytes: u64, error: io::Error) -> ProvideError {
        match PoolError::explain(self.huge_pages, bytes, error) {
            Ok(source) => ProvideError::Pool { range, source },
            Err(source) => ProvideError::System { range, source },
        }
    }

    /// The span of a part in the mapping; `None` if the extent does not hold all of it.
    fn span(&self, part: PageRange) -> Option<Span> {
        if !self.holds(part) {
            return None;
        }
        let offset =
            usize::try_from(part.start().distance_from(self.range.start()).bytes()).ok()?;
        Some(Span { offset, len: usize::try_from(part.count().bytes()).ok()? })
    }

    /// The pages at a span of the mapping.
    fn pages(&self, span: Span) -> Option<PageRange> {
        let offset = PageCount::from_bytes(span.offset as u64);
        let start = self.range.start().checked_add(offset)?;
        PageRange::new(start, PageCount::from_bytes(span.len as u64)).ok()
    }
}

fn is_whole(range: PageRange, unit: PageCount) -> bool {
    range.units_within(unit) == Some(range)
}
