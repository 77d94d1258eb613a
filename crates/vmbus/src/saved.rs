//! Errors when restoring saved state.

use crate::AccessError;

/// Error when restoring a server or rings. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The rings are not in guest memory. Restore guest memory first.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A server of this machine, or rings of this layout, cannot be in this state.
    #[error("saved state does not fit this machine, or no machine: {reason}")]
    Impossible {
        /// The property that is impossible.
        reason: &'static str,
    },
}

pub(crate) type Result<T> = core::result::Result<T, RestoreError>;

pub(crate) const fn ensure(holds: bool, reason: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(RestoreError::Impossible { reason }) }
}
