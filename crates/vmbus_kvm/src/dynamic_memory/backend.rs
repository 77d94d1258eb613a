//! Guest memory as the Dynamic Memory device works on it.

use std::error::Error;

use page_range::{PageCount, PageRange};
use thiserror::Error;

use crate::error::remedy_of;

/// Why work on guest memory failed; any error converts into it.
pub type BackendError = Box<dyn Error + Send + Sync>;

/// Works on a machine's memory. All methods are called on the `memory` thread, one after another and
/// in the order in which the device asks; they may take their time.
///
/// All pages named are RAM of the guest, at boot or added by [`MemoryBackend::add`]; in
/// [`MemoryBackend::add`] they lie within the configured window.
pub trait MemoryBackend: Send + 'static {
    /// Gives the memory behind these pages back to the host. The ranges ascend, and neither overlap nor
    /// touch. They may be pages that are with the host already. If the guest touches one all the same,
    /// it must find a page of zeroes, or end.
    ///
    /// # Errors
    /// If a page is still with the guest. The guest may then touch all of them: those that are gone
    /// already must come back by themselves, or be provided again before this returns.
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError>;

    /// Provides discarded memory again, where that does not happen by itself when the guest first
    /// touches it. Asked for only where [`discard_unit`](crate::Config::discard_unit) is more than a
    /// page. Pages that were not discarded keep their content.
    ///
    /// # Errors
    /// If the host has not got the memory. The guest is not given the pages then.
    fn provide(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        let _ = ranges;
        Ok(())
    }

    /// Backs new memory and lets the guest reach it, filled with zeroes. `offset` says where in the
    /// memory that can be added the pages begin; a page has the same offset until the next reset. Start
    /// and size of `range` are multiples of `alignment`, the guest's smallest unit.
    ///
    /// # Errors
    /// If that is not possible. It must leave nothing behind.
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
    /// If the guest still reaches some of it, or the host has not got it back. It must still have done
    /// all it can.
    fn remove(&mut self, range: PageRange) -> Result<(), BackendError>;
}

impl<B: MemoryBackend + ?Sized> MemoryBackend for Box<B> {
    fn discard(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        (**self).discard(ranges)
    }

    fn provide(&mut self, ranges: &[PageRange]) -> Result<(), BackendError> {
        (**self).provide(ranges)
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

/// The backend while there is no machine: it refuses everything.
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
    /// What was asked of the backend.
    pub what: &'static str,
    /// What it says.
    #[source]
    pub source: BackendError,
}
