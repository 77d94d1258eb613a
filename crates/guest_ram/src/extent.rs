//! One mapping at its place in the guest: what is given back to the host and taken again.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use page_range::{PageCount, PageRange, PageRangeSet};

use crate::discard::{DiscardError, ProvideError};
use crate::mapping::Mapping;
use crate::{HugePages, PoolError, RamRegion};

/// A mapping and the guest pages that it backs, all or some of which are the guest's.
#[derive(Debug)]
pub(crate) struct Extent {
    range: PageRange,
    mapping: Arc<Mapping>,
    huge_pages: HugePages,
    /// Pages that are with the host's pool. Empty for other backings: their pages come back by
    /// themselves when they are touched.
    absent: Mutex<PageRangeSet>,
}

impl Extent {
    /// `mapping` begins with the first page of `range` and is as long.
    pub(crate) fn new(range: PageRange, mapping: Arc<Mapping>, huge_pages: HugePages) -> Self {
        Self { range, mapping, huge_pages, absent: Mutex::default() }
    }

    /// The same for a mapping for which the pool has reserved nothing.
    pub(crate) fn new_absent(range: PageRange, mapping: Arc<Mapping>, huge: HugePages) -> Self {
        let absent = Mutex::new([range].into_iter().collect());
        Self { range, mapping, huge_pages: huge, absent }
    }

    pub(crate) fn range(&self) -> PageRange {
        self.range
    }

    /// A part of the extent as a region; `None` outside.
    pub(crate) fn region(&self, part: PageRange) -> Option<RamRegion> {
        let (offset, _) = self.bytes(part)?;
        RamRegion::new(part, Arc::clone(&self.mapping), offset)
    }

    /// Gives pages back to the host.
    pub(crate) fn discard(&self, part: PageRange) -> Result<(), DiscardError> {
        let (offset, count) = self.bytes(part).ok_or(DiscardError::NotRam(part))?;
        let unit = self.huge_pages.page_size();
        if !is_whole(part, unit) {
            return Err(DiscardError::Unaligned { range: part, unit });
        }
        // Held until it is done, so that the set says what the memfd has.
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        self.mapping
            .discard(offset, count)
            .map_err(|source| DiscardError::System { range: part, source })?;
        if self.huge_pages.from_pool() {
            absent.insert(part);
        }
        Ok(())
    }

    /// Whether [`Extent::provide`] takes this range.
    pub(crate) fn check_provide(&self, part: PageRange) -> Result<(), ProvideError> {
        let unit = self.huge_pages.page_size();
        if is_whole(part, unit) {
            Ok(())
        } else {
            Err(ProvideError::Unaligned { range: part, unit })
        }
    }

    /// Takes what is absent of a range from the pool: all of it or nothing. Returns what it took.
    pub(crate) fn provide(&self, part: PageRange) -> Result<Vec<PageRange>, ProvideError> {
        if !self.huge_pages.from_pool() {
            return Ok(Vec::new());
        }
        self.check_provide(part)?;
        let mut absent = self.absent.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<PageRange> = absent.intersection(part).collect();
        for (index, range) in missing.iter().enumerate() {
            if let Err(error) = self.allocate(*range) {
                // Also the one that failed: it may have got a part.
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

    fn allocate(&self, part: PageRange) -> io::Result<()> {
        let (offset, count) = self.bytes(part).ok_or(io::ErrorKind::InvalidInput)?;
        self.mapping.allocate(offset, count)
    }

    fn put_back(&self, part: PageRange) {
        if let Some((offset, count)) = self.bytes(part) {
            // What cannot be put back now goes with the extent at the latest.
            let _ = self.mapping.discard(offset, count);
        }
    }

    fn explain(&self, range: PageRange, bytes: u64, error: io::Error) -> ProvideError {
        match PoolError::explain(self.huge_pages, bytes, error) {
            Ok(source) => ProvideError::Pool { range, source },
            Err(source) => ProvideError::System { range, source },
        }
    }

    /// Offset in the mapping and length of a part; `None` where it is not all inside.
    fn bytes(&self, part: PageRange) -> Option<(usize, usize)> {
        if self.range.intersection(part) != Some(part) {
            return None;
        }
        let offset = part.start().distance_from(self.range.start());
        Some((usize::try_from(offset.bytes()).ok()?, usize::try_from(part.count().bytes()).ok()?))
    }
}

fn is_whole(range: PageRange, unit: PageCount) -> bool {
    range.units_within(unit) == Some(range)
}
