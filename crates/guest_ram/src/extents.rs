//! All of a guest's memory: discards and provisions that may span several mappings.

use page_range::{PageRange, PageRangeSet};

use crate::discard::{DiscardError, ProvideError};
use crate::extent::Extent;
use crate::mapping::Span;
use crate::plan::{Planner, merged};

/// The mappings that make up a guest's memory. They do not overlap.
#[derive(Clone, Copy)]
pub(crate) struct Extents<'a> {
    boot: &'a [Extent],
    added: Option<&'a Extent>,
}

impl<'a> Extents<'a> {
    /// Boot RAM, and the reserve for added memory.
    pub(crate) fn new(boot: &'a [Extent], added: Option<&'a Extent>) -> Self {
        Self { boot, added }
    }

    /// Gives pages back to the host. Every range is tried; the first failure is reported.
    pub(crate) fn discard(self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.discard_in(ranges, |_| true)
    }

    /// As [`Extents::discard`], for pages that the guest may touch at any time: pages of the host's
    /// pool, of which there may be no other by then, stay.
    pub(crate) fn discard_free(self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.discard_in(ranges, |extent| !extent.has_pool_pages())
    }

    /// Gives those pages back to the host that lie in extents that are `wanted`.
    fn discard_in(
        self,
        ranges: &[PageRange],
        wanted: impl Fn(&Extent) -> bool,
    ) -> Result<(), DiscardError> {
        let mut plan =
            Planner::new(ranges.len(), |place: Place<'_>, spans: &[Span]| place.0.discard(spans));
        let mut result = Ok(());
        let mut last = self.boot.first();
        for run in merged(ranges) {
            // Most ranges lie in one extent, and in the same one as the range before.
            if last.is_none_or(|extent| !extent.holds(run)) {
                last = self.all().find(|extent| extent.holds(run));
            }
            result = result.and(match last {
                Some(extent) if wanted(extent) => plan_part(&mut plan, extent, run),
                Some(_) => Ok(()),
                None if self.hold(run) => self
                    .parts(run)
                    .filter(|(extent, _)| wanted(extent))
                    .map(|(extent, part)| plan_part(&mut plan, extent, part))
                    .fold(Ok(()), Result::and),
                None => plan.flush().and(Err(DiscardError::NotRam(run))),
            });
        }
        result.and(plan.flush())
    }

    /// As [`Extents::discard`]. After a failure, pages that are gone are provided again, so that
    /// the guest can touch all pages of `ranges`, as before.
    pub(crate) fn discard_or_undo(self, ranges: &[PageRange]) -> Result<(), DiscardError> {
        self.discard(ranges).inspect_err(|_| {
            // Merged, as in the discard: two halves of a huge page make a whole one.
            for (extent, part) in merged(ranges).flat_map(|run| self.parts(run)) {
                // Part by part, since each is provided whole or not at all. Pages that the pool has
                // meanwhile given to others are allocated on the guest's next touch, if possible.
                let _ = extent.provide(part);
            }
        })
    }

    /// Allocates absent pages from the host's pool again: all of them, or none.
    pub(crate) fn provide(self, ranges: &[PageRange]) -> Result<(), ProvideError> {
        let mut parts = Vec::new();
        for run in merged(ranges) {
            if !self.hold(run) {
                return Err(ProvideError::NotRam(run));
            }
            parts.extend(self.parts(run).filter(|(extent, _)| extent.has_pool_pages()));
        }
        for (extent, part) in &parts {
            extent.check_provide(*part)?;
        }
        let mut provided = Vec::new();
        for (extent, part) in parts {
            match extent.provide(part) {
                Ok(taken) => provided.extend(taken.into_iter().map(|range| (extent, range))),
                Err(error) => {
                    for (extent, range) in provided {
                        extent.take_back(range);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Of all pages, only `out` are still with the host.
    pub(crate) fn settle(self, out: &PageRangeSet) {
        self.all().for_each(|extent| extent.settle(out));
    }

    /// The extents that hold pages of a range, and the pages each holds.
    pub(crate) fn parts(self, range: PageRange) -> impl Iterator<Item = (&'a Extent, PageRange)> {
        let held = move |extent| Some((extent, Extent::range(extent).intersection(range)?));
        self.all().filter_map(held)
    }

    /// Whether the extents hold all pages of a range.
    fn hold(self, range: PageRange) -> bool {
        let found: u64 = self.parts(range).map(|(_, part)| part.count().get()).sum();
        found == range.count().get()
    }

    pub(crate) fn all(self) -> impl Iterator<Item = &'a Extent> {
        self.boot.iter().chain(self.added)
    }
}

/// Plans to give back a part of an extent.
fn plan_part<'a>(
    plan: &mut Planner<Place<'a>, impl FnMut(Place<'a>, &[Span]) -> Result<(), DiscardError>>,
    extent: &'a Extent,
    part: PageRange,
) -> Result<(), DiscardError> {
    match extent.discardable(part) {
        Ok(span) => plan.add(Place(extent), span, extent.unit_bytes()),
        Err(error) => plan.flush().and(Err(error)),
    }
}

/// An extent by identity.
#[derive(Clone, Copy)]
struct Place<'a>(&'a Extent);

impl PartialEq for Place<'_> {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}
