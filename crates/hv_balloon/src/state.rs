//! The names of the device's states.

use core::fmt;

/// The state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateName {
    /// The guest has not opened the channel: its driver is not loaded.
    Closed,
    /// The channel is gone, but discards, removals or a preparation are still in flight.
    Closing,
    /// Waiting for the guest to request a protocol version.
    AwaitVersion,
    /// Waiting for the guest to report its capabilities.
    AwaitCaps,
    /// Leaving the guest alone after its boot: see [`Settle`](crate::Settle).
    Settling,
    /// No transaction is under way.
    Idle,
    /// The guest gave fewer pages than requested; the next request follows soon.
    Pausing,
    /// Waiting for pages from the guest.
    Ballooning,
    /// Returning pages to the guest.
    Unballooning,
    /// The host is preparing memory for the guest.
    Preparing,
    /// Waiting for the guest's answer to an offer of new memory.
    HotAdding,
}

impl StateName {
    /// All states.
    pub const ALL: [Self; 11] = [
        Self::Closed,
        Self::Closing,
        Self::AwaitVersion,
        Self::AwaitCaps,
        Self::Settling,
        Self::Idle,
        Self::Pausing,
        Self::Ballooning,
        Self::Unballooning,
        Self::Preparing,
        Self::HotAdding,
    ];

    /// The state as one word for logs and monitors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Closing => "closing",
            Self::AwaitVersion => "await-version",
            Self::AwaitCaps => "await-capabilities",
            Self::Settling => "settling",
            Self::Idle => "idle",
            Self::Pausing => "pausing",
            Self::Ballooning => "ballooning",
            Self::Unballooning => "unballooning",
            Self::Preparing => "preparing",
            Self::HotAdding => "hot-adding",
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
