//! The size the operator wants, and what became of it.

use core::fmt;

use page_range::PageCount;

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// No guest runs without memory.
    #[error("a guest cannot have 0 bytes of memory; ask for at least one page")]
    Zero,
    /// The guest cannot grow beyond the RAM it was given.
    #[error(
        "{} bytes are more than the {} bytes this guest can have; ask for no more than that",
        .requested.bytes(),
        .maximum.bytes()
    )]
    AboveMaximum {
        /// Pages asked for.
        requested: PageCount,
        /// The largest target that is taken, in pages.
        maximum: PageCount,
    },
}

/// Why the device stopped short of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// The guest gives nothing more, or hardly anything.
    GuestFloor,
    /// The guest answers with pages that are not its RAM or that the host has already.
    NothingUsable,
    /// The guest said that it cannot balloon.
    NoBalloonCapability,
    /// The guest did not answer.
    Timeout,
    /// The guest gave the pages, but the host could not discard all of them.
    DiscardFailed,
}

impl StopReason {
    /// The reason as one word for logs and monitors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::GuestFloor => "guest-floor",
            Self::NothingUsable => "nothing-usable",
            Self::NoBalloonCapability => "no-balloon-capability",
            Self::Timeout => "timeout",
            Self::DiscardFailed => "discard-failed",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestFloor => "the guest gives no more",
            Self::NothingUsable => "the guest gives pages that are of no use",
            Self::NoBalloonCapability => "the guest cannot balloon",
            Self::Timeout => "the guest does not answer",
            Self::DiscardFailed => "the host could not discard the pages given",
        })
    }
}

/// A target and how far the device is with it.
///
/// Shrinking ends: a guest may refuse, and nagging it does harm. Growing does not: whenever the
/// guest has less than the target and the device has its pages, it returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) target: PageCount,
    pub(crate) pursuit: Pursuit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pursuit {
    /// Under way, or waiting for the guest to be ready.
    Open,
    /// Given up; to be announced when the last discard has ended, so that the size is final.
    Stopping(StopReason),
    /// Given up, and announced.
    Stopped(StopReason),
    /// Reached, and announced.
    Reached,
}

impl Goal {
    pub(crate) const fn new(target: PageCount) -> Self {
        Self { target, pursuit: Pursuit::Open }
    }

    pub(crate) const fn stop_reason(self) -> Option<StopReason> {
        match self.pursuit {
            Pursuit::Stopping(reason) | Pursuit::Stopped(reason) => Some(reason),
            Pursuit::Open | Pursuit::Reached => None,
        }
    }
}
