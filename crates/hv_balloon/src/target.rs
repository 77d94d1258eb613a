//! The target size that the operator sets, and its outcome.

use core::fmt;

use page_range::PageCount;

/// Why a target is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The target is zero.
    #[error("a guest cannot have 0 bytes of memory; ask for at least one page")]
    Zero,
    /// The target exceeds the most memory that the guest can have.
    #[error(
        "{} bytes are more than the {} bytes this guest can have; ask for no more than that",
        .requested.bytes(),
        .maximum.bytes()
    )]
    AboveMaximum {
        /// Pages asked for.
        requested: PageCount,
        /// The largest acceptable target, in pages.
        maximum: PageCount,
    },
    /// The target counts on memory that was added before the guest's kernel started and that this
    /// kernel does not know. It cannot be offered again.
    #[error(
        "the guest's kernel does not know {} bytes that were added before it started; ask for no more \
         than {} bytes, or reset the machine",
        .unconfirmed.bytes(),
        .maximum.bytes()
    )]
    Unconfirmed {
        /// The largest acceptable target, in pages.
        maximum: PageCount,
        /// Pages added that the kernel does not know.
        unconfirmed: PageCount,
    },
    /// The guest's driver cannot give pages.
    #[error(
        "this guest's driver cannot give memory away; ask for at least the {} bytes it has",
        .present.bytes()
    )]
    CannotBalloon {
        /// Pages the guest has.
        present: PageCount,
    },
    /// The guest's driver cannot take new memory.
    #[error(
        "this guest's driver cannot take new memory while it runs; ask for no more than {} bytes",
        .maximum.bytes()
    )]
    CannotHotAdd {
        /// The largest acceptable target, in pages.
        maximum: PageCount,
    },
}

/// Why the device stopped short of its target, or does not get on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StopReason {
    /// The guest gives no more pages, or only a few at a time.
    GuestFloor,
    /// The guest gave only pages that are not its RAM or that the host already has.
    NothingUsable,
    /// The guest said that it cannot balloon.
    NoBalloonCapability,
    /// The guest has not answered in time, or does not read its ring. The device goes on by itself
    /// once it does.
    Timeout,
    /// The guest gave the pages, but the host could not discard all of them.
    DiscardFailed,
    /// The guest gave the pages, but not as whole huge pages, and the host can discard nothing
    /// else.
    HeldByHugePages,
    /// The guest said that it cannot take new memory.
    NoHotAddCapability,
    /// The guest added nothing and says that it never will. It may still accept another offer.
    HotAddRefused,
    /// The guest could not add memory at the time.
    HotAddFailed,
    /// The guest added only part of the memory it was offered.
    HotAddPartial,
    /// The guest was offered memory and has not answered in time. The device goes on by itself once
    /// it does.
    HotAddTimeout,
    /// The guest added memory and reports that nothing in it has put the memory to use. The device
    /// goes on by itself once something has.
    NotOnlined,
    /// No memory can be added: none is left, or what is left does not fit the guest's alignment or
    /// the hot-add window.
    NoAddressSpace,
    /// No memory can be added: what there is was added before the guest's kernel started, and this
    /// kernel has not confirmed it.
    Unconfirmed,
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
            Self::Unconfirmed => "unconfirmed",
            Self::HostMemory => "host-memory",
            Self::Reset => "reset",
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GuestFloor => "the guest gives no more pages",
            Self::NothingUsable => {
                "the guest gave only pages that are not its RAM or that the host already has"
            }
            Self::NoBalloonCapability => "the guest cannot balloon",
            Self::Timeout => "the guest has not answered in time; the target is pursued once it does",
            Self::DiscardFailed => {
                "the host could not discard all pages that the guest gave; see its log, then set \
                 the target again to retry"
            }
            Self::HeldByHugePages => {
                "the guest gave single pages, but the host can take back only whole huge pages"
            }
            Self::NoHotAddCapability => "the guest cannot take new memory while it runs",
            Self::HotAddRefused => "the guest refuses new memory; see its kernel log",
            Self::HotAddFailed => "the guest could not add memory; try again later",
            Self::HotAddPartial => "the guest added only part of the memory it was offered",
            Self::HotAddTimeout => {
                "the guest has not answered the offer of new memory in time; the target is pursued \
                 once it does"
            }
            Self::NotOnlined => {
                "the guest added memory but has not brought it online; enable auto_online_blocks in \
                 the guest: the target is pursued once the memory is in use"
            }
            Self::NoAddressSpace => "the memory left to add does not fit the guest's alignment",
            Self::Unconfirmed => {
                "the guest's kernel has not confirmed memory that was added before it started, and no \
                 other is left to add; reset the machine to add it again"
            }
            Self::HostMemory => {
                "the host could not provide the memory; see its log, make room (huge pages come \
                 from /sys/kernel/mm/hugepages), then set the target again"
            }
            Self::Reset => "the machine was reset",
        })
    }
}

/// Why a target was refused or not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The target was refused.
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

/// A target and the device's progress towards it.
///
/// The device gives up shrinking the guest if the guest refuses, since repeated requests do harm,
/// and gives up adding memory likewise. It never gives up returning pages: whenever the guest is
/// below its target and the device has its pages, the device returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Goal {
    pub(crate) target: PageCount,
    pub(crate) pursuit: Pursuit,
    /// What was announced of a slow guest, once for each target: a guest could make the log grow.
    pub(crate) told: Told,
}

/// Announcements that were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// An answer is overdue.
    pub(crate) overdue: bool,
    /// Memory that the guest added is not in use.
    pub(crate) unused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pursuit {
    /// Under way, or waiting for the guest to be ready.
    Open,
    /// Under way and announced as overdue: it goes on as soon as the guest does its part. A guest
    /// that is slow or stands still is no guest that refuses.
    Overdue(StopReason),
    /// Given up; announced only when the last discard has ended, so that the size is final.
    Stopping(StopReason),
    /// Given up, and announced.
    Stopped(StopReason),
    /// Reached, and announced.
    Reached,
}

impl Goal {
    pub(crate) const fn new(target: PageCount) -> Self {
        let told = Told { overdue: false, unused: false };
        Self { target, pursuit: Pursuit::Open, told }
    }

    /// Whether the device still pursues the target.
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

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::string::{String, ToString};

    use super::*;

    const REASONS: [StopReason; 16] = [
        StopReason::GuestFloor,
        StopReason::NothingUsable,
        StopReason::NoBalloonCapability,
        StopReason::Timeout,
        StopReason::DiscardFailed,
        StopReason::HeldByHugePages,
        StopReason::NoHotAddCapability,
        StopReason::HotAddRefused,
        StopReason::HotAddFailed,
        StopReason::HotAddPartial,
        StopReason::HotAddTimeout,
        StopReason::NotOnlined,
        StopReason::NoAddressSpace,
        StopReason::Unconfirmed,
        StopReason::HostMemory,
        StopReason::Reset,
    ];

    /// Monitors compare the word, operators read the text.
    #[test]
    fn each_reason_has_a_word_and_a_text_of_its_own() {
        let words: BTreeSet<&str> = REASONS.iter().map(|reason| reason.as_str()).collect();
        let texts: BTreeSet<String> = REASONS.iter().map(ToString::to_string).collect();
        assert_eq!((words.len(), texts.len()), (REASONS.len(), REASONS.len()));
        let is_word = |word: &&str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        };
        assert!(words.iter().all(is_word), "{words:?}");
        assert!(texts.iter().all(|text| text.contains(' ')), "{texts:?}");
        assert_eq!(StopReason::HotAddTimeout.as_str(), "hot-add-timeout");
    }

    #[test]
    fn a_refusal_reads_like_its_cause() {
        assert_eq!(Refusal::Target(TargetError::Zero).to_string(), TargetError::Zero.to_string());
        let reset = Refusal::Stopped(StopReason::Reset).to_string();
        assert_eq!(reset, StopReason::Reset.to_string());
    }
}
