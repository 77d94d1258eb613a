//! The names of the device's states.

use core::fmt;

/// Where the device is in its life with a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StateName {
    /// The guest has no channel open: its driver is not loaded, or not yet.
    Closed,
    /// The channel is gone; discards, removals or a preparation are in flight.
    Closing,
    /// The guest is to name a protocol version.
    AwaitVersion,
    /// The guest is to name its capabilities.
    AwaitCaps,
    /// The guest is left alone after its boot.
    Settling,
    /// Nothing under way.
    Idle,
    /// The guest gave less than asked for; it is asked again soon.
    Pausing,
    /// The guest is asked for pages.
    Ballooning,
    /// The guest is given pages.
    Unballooning,
    /// The host gets memory ready for the guest.
    Preparing,
    /// The guest is offered new memory.
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
