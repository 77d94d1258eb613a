//! Guest memory as the Dynamic Memory device changes it.

use std::error::Error;

use page_range::{PageCount, PageRange, PageRangeSet};
use thiserror::Error;

use crate::error::remedy_of;

/// Why work on guest memory failed; any error converts into it.
pub type BackendError = Box<dyn Error + Send + Sync>;

/// Changes a machine's memory. All methods are called on the `memory` thread, one after another in
/// the order in which the device asks; they may take their time.
///
/// All pages are RAM of the guest, either at boot or added by [`MemoryBackend::add`]; those passed
/// to [`MemoryBackend::add`] lie within the configured window.
pub trait MemoryBackend: Send + 'static {
    /// Gives the memory behind these pages back to the host. The ranges ascend, and neither overlap
    /// nor touch. Some pages may already be with the host. A guest that touches one all the same
    /// must find a page of zeros, or end.
    ///
    /// # Errors
    /// If the guest still has one of the pages. It may then touch all of them, so pages that are
    /// already gone must come back on a touch, or be provided again before this returns.
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError>;

    /// Provides discarded memory again, if that does not happen by itself when the guest first
    /// touches it. Called only if [`discard_unit`](crate::Config::discard_unit) is more than one
    /// page. Pages that were not discarded keep their content.
    ///
    /// # Errors
    /// If the host does not have the memory. The guest is then not given the pages.
    fn provide(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        let _ = ranges;
        Ok(())
    }

    /// Of all pages discarded so far, only `out` are still with the host; the guest may use the
    /// others again. Called some seconds after pages were discarded or returned, and after a restore,
    /// for backends that must treat memory around discarded pages differently, such as one with
    /// transparent huge pages: see [`guest_ram::GuestRam::settle`]. It may come too late, or not at
    /// all if the guest resets first.
    ///
    /// [`guest_ram::GuestRam::settle`]: https://docs.rs/guest_ram
    fn settle(&mut self, out: &PageRangeSet) {
        let _ = out;
    }

    /// Backs new memory with zeros and lets the guest reach it. `offset` is the position of the
    /// pages in the memory that can be added; a page keeps its offset until the next reset. Start
    /// and size of `range` are multiples of `alignment`, the smallest unit that the guest accepts.
    ///
    /// # Errors
    /// If that is not possible. Nothing must be left behind.
    fn add(
        &mut self,
        range: PageRange,
        offset: PageCount,
        alignment: PageCount,
    ) -> Result<(), BackendError>;

    /// Takes added memory out of the guest's reach and gives it back to the host. These are whole blocks
    /// of the alignment with which they were added, not always all blocks of one addition. Parts that
    /// were never added are to be skipped.
    ///
    /// # Errors
    /// If the guest can still reach some of it, or the host did not get all of it back. Everything
    /// that could be done must have been done.
    fn remove(&mut self, range: PageRange) -> Result<(), BackendError>;
}

impl<B: MemoryBackend + ?Sized> MemoryBackend for Box<B> {
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        (**self).discard(ranges)
    }

    fn provide(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        (**self).provide(ranges)
    }

    fn settle(&mut self, out: &PageRangeSet) {
        (**self).settle(out);
    }

    fn add(
        &mut self,
        range: PageRange,
        offset: PageCount,
        alignment: PageCount,
    ) -> Result<(), BackendError> {
        (**self).add(range, offset, alignment)
    }

    fn remove(&mut self, range: PageRange) -> Result<(), BackendError> {
        (**self).remove(range)
    }
}

/// The backend while there is no machine. It refuses all work.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMachine;

impl MemoryBackend for NoMachine {
    fn discard(&mut self, _: &[PageRange]) -> Result<(), BackendError> {
        Err("no machine runs".into())
    }

    fn provide(&mut self, _: &[PageRange]) -> Result<(), BackendError> {
        Err("no machine runs".into())
    }

    fn add(&mut self, _: PageRange, _: PageCount, _: PageCount) -> Result<(), BackendError> {
        Err("no machine runs".into())
    }

    fn remove(&mut self, _: PageRange) -> Result<(), BackendError> {
        Err("no machine runs".into())
    }
}

/// Work on guest memory failed.
#[derive(Debug, Error)]
#[error("cannot {what}{}", remedy_of(source.as_ref()))]
pub struct WorkError {
    /// What the backend was asked to do.
    pub what: &'static str,
    /// The backend's error.
    #[source]
    pub source: BackendError,
}
