//! The bodies of the services' messages.

use alloc::vec::Vec;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ParseError, fixed};

/// Bits of [`ShutdownBody::flags`] (Linux `shutdown_onchannelcallback`). Without a bit for what is to
/// be done, the guest shuts down.
pub mod shutdown_flags {
    /// Without asking programs that object. Linux never asks.
    pub const FORCE: u32 = 1;
    /// Restart.
    pub const RESTART: u32 = 2;
    /// Hibernate.
    pub const HIBERNATE: u32 = 4;
}

/// A request to shut down. Linux `struct shutdown_msg_data`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ShutdownBody {
    /// A reason for the guest's log, as Windows' `ExitWindowsEx` takes it.
    pub reason: U32,
    /// How long the guest warns its users, in seconds.
    pub timeout_seconds: U32,
    /// [`shutdown_flags`].
    pub flags: U32,
    /// A text for the guest's users, in UTF-16. Linux refuses a message without this field.
    pub text: [u8; 2048],
}

/// A heartbeat. Linux `struct heartbeat_msg_data`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct HeartbeatBody {
    /// A number, to which the guest adds one.
    pub sequence: U64,
    /// What newer guests say of their programs; ignored.
    pub reserved: [u8; 32],
}

/// Bits of [`TimeBody::flags`] and [`TimeReferenceBody::flags`].
pub mod time_flags {
    /// The guest sets its clock.
    pub const SYNC: u8 = 1;
    /// A sample, which the guest may use to slow its clock down or to speed it up.
    pub const SAMPLE: u8 = 2;
}

/// A sample of the host's time, in versions before 4.0. Linux `struct ictimesync_data`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TimeBody {
    /// The host's time, in units of 100 ns since 1601 UTC.
    pub host: U64,
    /// The guest's time, in an answer.
    pub guest: U64,
    /// The round trip's time.
    pub round_trip: U64,
    /// [`time_flags`].
    pub flags: u8,
}

/// A sample of the host's time from version 4.0 on. Linux `struct ictimesync_ref_data`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct TimeReferenceBody {
    /// The host's time, in units of 100 ns since 1601 UTC.
    pub host: U64,
    /// The guest's reference counter at that moment (`HV_X64_MSR_TIME_REF_COUNT`), in units of 100 ns.
    pub reference: U64,
    /// [`time_flags`].
    pub flags: u8,
    /// Leap second indicator, as in NTP.
    pub leap: u8,
    /// Stratum, as in NTP.
    pub stratum: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Adds reading and writing.
macro_rules! bodies {
    ($($name:ident: $size:literal,)*) => {$(
        const _: () = assert!(size_of::<$name>() == $size);

        impl $name {
            /// Reads it from the start of a message's body.
            ///
            /// # Errors
            /// [`ParseError::BodySize`] if the body is too short.
            pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
                fixed::<Self>(body).map(|(this, _)| *this)
            }

            /// The body of a message.
            #[must_use]
            pub fn emit(&self) -> Vec<u8> {
                self.as_bytes().to_vec()
            }
        }
    )*};
}

bodies! {
    ShutdownBody: 2060,
    HeartbeatBody: 40,
    TimeBody: 25,
    TimeReferenceBody: 22,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_linux_has_them() {
        let time = TimeReferenceBody {
            host: 0x0102_0304_0506_0708.into(),
            reference: 2.into(),
            flags: time_flags::SYNC,
            leap: 0,
            stratum: 3,
            reserved: [0; 3],
        };
        let bytes = time.emit();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!((bytes[8], bytes[16], bytes[18]), (2, 1, 3));
        assert_eq!(TimeReferenceBody::parse(&bytes), Ok(time));
        let older = TimeBody { host: 1.into(), guest: 2.into(), round_trip: 3.into(), flags: 2 };
        assert_eq!(older.emit()[24], 2);
        let shutdown = ShutdownBody {
            reason: 1.into(),
            timeout_seconds: 2.into(),
            flags: 5.into(),
            text: [0; 2048],
        };
        let bytes = shutdown.emit();
        assert_eq!((bytes[0], bytes[4], bytes[8]), (1, 2, 5));
        assert!(ShutdownBody::parse(&bytes[..2059]).is_err());
    }
}
