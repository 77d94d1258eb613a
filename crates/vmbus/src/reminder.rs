//! Reminders of packets that the guest left unread.
//!
//! A channel works, and a device may write to it, before the guest has heard that its channel is open. A
//! guest that ignores interrupts until then misses the signal for the first packet, and later signals
//! come only if the ring was empty. It would wait for ever, so it is signalled again.

use core::time::Duration;

/// When the guest is first reminded; each further reminder takes twice as long.
const FIRST: Duration = Duration::from_secs(1);

/// A guest that has ignored so many reminders, in two minutes, does not read.
const MOST: u32 = 7;

/// When a device calls [`Channel::remind`](crate::Channel::remind) next: first after a second, then with
/// growing pauses, for two minutes in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reminder {
    at: Duration,
    sent: u32,
}

impl Reminder {
    /// The first reminder of a packet that is written `now`.
    #[must_use]
    pub const fn new(now: Duration) -> Self {
        Self { at: now.saturating_add(FIRST), sent: 0 }
    }

    /// When it is due.
    #[must_use]
    pub const fn at(self) -> Duration {
        self.at
    }

    /// The reminder after this one, which is sent `now`; `None` if there were enough.
    #[must_use]
    pub fn next(self, now: Duration) -> Option<Self> {
        let sent = self.sent.saturating_add(1);
        let at = now.saturating_add(FIRST.saturating_mul(1 << sent.min(MOST)));
        (sent < MOST).then_some(Self { at, sent })
    }
}
