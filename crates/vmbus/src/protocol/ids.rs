//! Identifiers on the bus. They are distinct types, because a relid, a connection ID and an event
//! flag are all small integers with different meanings.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u32);

        impl $name {
            /// The identifier with this number.
            #[must_use]
            pub const fn new(number: u32) -> Self {
                Self(number)
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> u32 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

id! {
    /// A channel's number in one connection, [`Relid::MIN`] to [`Relid::MAX`]; also the event flag
    /// by which the host signals the channel. The host chooses it (Linux `child_relid`).
    Relid
}

id! {
    /// A GPADL's number in one connection, chosen by the guest.
    GpadlId
}

id! {
    /// The connection ID in HvPostMessage and HvSignalEvent (TLFS 11.8.3, 11.9); 24 bits.
    ConnectionId
}

id! {
    /// A virtual processor's index (TLFS 7.8.1), not its APIC ID.
    VpIndex
}

id! {
    /// The guest's number for one OPEN, repeated in OPEN_RESULT.
    OpenId
}

impl Relid {
    /// The lowest relid: bit 0 of an event flag area is reserved.
    pub const MIN: Self = Self(1);
    /// The highest relid: a SINT has 2048 event flags (TLFS 11.9).
    pub const MAX: Self = Self(2047);
}

impl ConnectionId {
    /// The port for all control messages in versions below 5.0.
    pub const MESSAGE: Self = Self(1);
    /// The port for INITIATE_CONTACT in version 5.0 and above.
    pub const CONTACT_V5: Self = Self(4);
}

impl VpIndex {
    /// In OPEN: the guest wants no interrupts for the channel.
    pub const NONE: Self = Self(u32::MAX);
}
