//! Why saved state is not restored.

use saved_state::FormatError;

use crate::AccessError;

/// Why a server or rings are not restored. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bytes are no saved state of this kind, or not all of one, or one of a newer program.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The rings are not in guest memory. It must be restored before them.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// No server of this machine, or no rings of this layout, can be in this state.
    #[error("saved state does not fit this machine, or no machine: {reason}")]
    Impossible {
        /// What cannot be.
        reason: &'static str,
    },
}

pub(crate) type Result<T> = core::result::Result<T, RestoreError>;

pub(crate) const fn ensure(holds: bool, reason: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(RestoreError::Impossible { reason }) }
}
