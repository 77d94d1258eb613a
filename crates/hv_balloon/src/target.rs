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
    /// The guest's driver gives no pages.
    #[error(
        "this guest's driver cannot give memory away; ask for at least the {} bytes it has",
        .present.bytes()
    )]
    CannotBalloon {
        /// Pages the guest has.
        present: PageCount,
    },
    /// The guest's driver takes no new memory.
    #[error(
        "this guest's driver cannot take new memory while it runs; ask for no more than {} bytes",
        .maximum.bytes()
    )]
    CannotHotAdd {
        /// The largest target that is taken, in pages.
        maximum: PageCount,
    },
}

/// Why the device stopped short of its target, or does not get on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// The guest gives nothing more, or hardly anything.
    GuestFloor,
    /// The guest answers with pages that are not its RAM or that the host has already.
    NothingUsable,
    /// The guest said that it cannot balloon.
    NoBalloonCapability,
    /// The guest has not answered in time, or does not read its ring. The device goes on by itself
    /// once it does.
    Timeout,
    /// The guest gave the pages, but the host could not discard all of them.
    DiscardFailed,
    /// The guest gave the pages, but not in whole huge pages, which is how the host must discard.
    HeldByHugePages,
    /// The guest said that it cannot take new memory.
    NoHotAddCapability,
    /// The guest added nothing and says that it never will. Asked again it may still.
    HotAddRefused,
    /// The guest could not add memory now.
    HotAddFailed,
    /// The guest added a part of what it was offered.
    HotAddPartial,
    /// The guest was offered memory and has not answered in time. The device goes on by itself once
    /// it does.
    HotAddTimeout,
    /// The guest added memory and reports that nothing in it has put the memory to use. The device
    /// goes on by itself once something has.
    NotOnlined,
    /// What is left to add is less than the guest's alignment, or has no place in its address space.
    NoAddressSpace,
    /// The host could not provide the memory.
    HostMemory,
    /// The machine was reset before the target was reached.
    Reset,
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
            Self::HeldByHugePages => "held-by-huge-pages",
            Self::NoHotAddCapability => "no-hot-add-capability",
            Self::HotAddRefused => "hot-add-refused",
            Self::HotAddFailed => "hot-add-failed",
            Self::HotAddPartial => "hot-add-partial",
            Self::HotAddTimeout => "hot-add-timeout",
            Self::NotOnlined => "not-onlined",
            Self::NoAddressSpace => "no-address-space",
            Self::HostMemory => "host-memory",
            Self::Reset => "reset",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestFloor => "the guest gives no more",
            Self::NothingUsable => "the guest gives pages that are of no use",
            Self::NoBalloonCapability => "the guest cannot balloon",
            Self::Timeout => "the guest has not answered yet; the target is pursued once it does",
            Self::DiscardFailed => {
                "the host could not discard all the pages given: its log says why; set the target \
                 again to have it tried once more"
            }
            Self::HeldByHugePages => {
                "the guest gave single pages, and the host can only take back whole huge pages"
            }
            Self::NoHotAddCapability => "the guest cannot take new memory while it runs",
            Self::HotAddRefused => "the guest refuses new memory; its kernel log says why",
            Self::HotAddFailed => "the guest could not add memory now; try again later",
            Self::HotAddPartial => "the guest added only a part of the memory it was offered",
            Self::HotAddTimeout => {
                "the guest has not answered yet to the memory it was offered; the target is pursued \
                 once it does"
            }
            Self::NotOnlined => {
                "the guest added memory but does not use it: have it online new memory \
                 (auto_online_blocks); the target is pursued once it does"
            }
            Self::NoAddressSpace => "what is left to add does not fit the guest's alignment",
            Self::HostMemory => {
                "the host could not provide the memory: its log says why (huge pages come from \
                 /sys/kernel/mm/hugepages); make room, then set the target again"
            }
            Self::Reset => "the machine was reset",
        })
    }
}

/// Why something that was asked for did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The target was not taken.
    Target(TargetError),
    /// The device stopped on its way to the target.
    Stopped(StopReason),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(error) => error.fmt(f),
            Self::Stopped(reason) => reason.fmt(f),
        }
    }
}

/// A target and how far the device is with it.
///
/// Shrinking ends: a guest may refuse, and nagging it does harm; and so does adding memory. Giving
/// back does not: whenever the guest has less than the target and the device has its pages, it
/// returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) target: PageCount,
    pub(crate) pursuit: Pursuit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pursuit {
    /// Under way, or waiting for the guest to be ready.
    Open,
    /// Under way and announced as overdue: it goes on as soon as the guest does its part. A guest
    /// that is slow or stands still is no guest that refuses.
    Overdue(StopReason),
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

    /// Whether the device is still to do something for it.
    pub(crate) const fn is_open(self) -> bool {
        matches!(self.pursuit, Pursuit::Open | Pursuit::Overdue(_))
    }

    /// Whether the device has given up.
    pub(crate) const fn is_given_up(self) -> bool {
        matches!(self.pursuit, Pursuit::Stopping(_) | Pursuit::Stopped(_))
    }

    pub(crate) const fn stop_reason(self) -> Option<StopReason> {
        match self.pursuit {
            Pursuit::Overdue(reason) | Pursuit::Stopping(reason) | Pursuit::Stopped(reason) => {
                Some(reason)
            }
            Pursuit::Open | Pursuit::Reached => None,
        }
    }
}
