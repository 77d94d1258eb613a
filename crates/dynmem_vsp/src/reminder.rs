//! Reminders of packets that the guest left unread in the handshake.
//!
//! The channel works, and the device answers, before the guest has heard that its channel is open. A
//! guest that ignores interrupts until then misses the signal for the first answer, and later ones
//! come only if the ring was empty. It would wait for ever, so it is signalled again.

use core::time::Duration;

/// When the guest is first reminded; each further reminder takes twice as long.
const FIRST: Duration = Duration::from_secs(1);

/// A guest that has ignored so many reminders, in two minutes, does not read.
const MOST: u32 = 7;

/// When the guest is to be reminded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reminder {
    at: Duration,
    sent: u32,
}

impl Reminder {
    /// The first reminder of a channel that opens `now`.
    pub(crate) const fn new(now: Duration) -> Self {
        Self { at: now.saturating_add(FIRST), sent: 0 }
    }

    pub(crate) const fn at(self) -> Duration {
        self.at
    }

    /// The reminder after this one, which is sent `now`; `None` if there were enough.
    pub(crate) fn next(self, now: Duration) -> Option<Self> {
        let sent = self.sent.saturating_add(1);
        let at = now.saturating_add(FIRST.saturating_mul(1 << sent.min(MOST)));
        (sent < MOST).then_some(Self { at, sent })
    }
}
