//! The messages of the integration services, as bytes.
//!
//! A message is the data of one in-band packet: the header of the channel's pipe, the header of the
//! services, and a body. The guest answers each message with one of the same type, which Linux makes by
//! changing the message that it got. Sources: Linux `include/linux/hyperv.h` (`vmbuspipe_hdr`,
//! `icmsg_hdr`) and `drivers/hv/hv_util.c`. All integers are little endian.

mod body;
mod negotiation;

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use body::{
    HeartbeatBody, ShutdownBody, TimeBody, TimeReferenceBody, shutdown_flags, time_flags,
};
pub use negotiation::{Answer, Negotiation};

/// The type of a pipe's packet that carries data. The pipe's header says it first.
const PIPE_DATA: u32 = 1;

/// The status of an answer: success (`HV_S_OK`).
pub const STATUS_OK: u32 = 0;
/// The status of an answer: failure (`HV_E_FAIL`).
pub const STATUS_FAILED: u32 = 0x8000_4005;

/// Bits of [`Message::flags`].
pub mod flags {
    /// The message is part of a transaction, as every message is.
    pub const TRANSACTION: u8 = 1;
    /// It is a request.
    pub const REQUEST: u8 = 2;
    /// It is an answer.
    pub const RESPONSE: u8 = 4;
}

/// A version of the framework or of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The major number.
    pub major: u16,
    /// The minor number.
    pub minor: u16,
}

impl Version {
    /// The version with these numbers.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }
}

impl core::fmt::Display for Version {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The versions of the framework that this host has, oldest first.
pub const FRAMEWORK_VERSIONS: &[Version] = &[Version::new(1, 0), Version::new(3, 0)];

/// The type of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageType(pub u16);

impl MessageType {
    /// Negotiation of versions, on every channel.
    pub const NEGOTIATE: Self = Self(0);
    /// Heartbeat.
    pub const HEARTBEAT: Self = Self(1);
    /// Shutdown.
    pub const SHUTDOWN: Self = Self(3);
    /// A sample of the host's time.
    pub const TIME_SYNC: Self = Self(4);
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireVersion {
    major: U16,
    minor: U16,
}

impl From<Version> for WireVersion {
    fn from(version: Version) -> Self {
        Self { major: version.major.into(), minor: version.minor.into() }
    }
}

impl From<WireVersion> for Version {
    fn from(version: WireVersion) -> Self {
        Self { major: version.major.get(), minor: version.minor.get() }
    }
}

/// Linux `struct vmbuspipe_hdr`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PipeHeader {
    kind: U32,
    /// Bytes after this header.
    size: U32,
}

/// Linux `struct icmsg_hdr`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    framework: WireVersion,
    message_type: U16,
    version: WireVersion,
    /// Bytes after this header.
    size: U16,
    status: U32,
    transaction: u8,
    flags: u8,
    reserved: [u8; 2],
}

const PIPE_HEADER: usize = size_of::<PipeHeader>();
const HEADER: usize = size_of::<Header>();
const _: () = assert!(PIPE_HEADER == 8 && HEADER == 20);

/// A message, its body still unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The version of the framework that was negotiated; irrelevant in a negotiation.
    pub framework: Version,
    /// The type.
    pub message_type: MessageType,
    /// The version of the service that was negotiated; irrelevant in a negotiation.
    pub version: Version,
    /// The status of an answer.
    pub status: u32,
    /// The number of the transaction, which the answer repeats.
    pub transaction: u8,
    /// [`flags`].
    pub flags: u8,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Finds the message in the data of a packet. Bytes after the message are padding.
    ///
    /// # Errors
    /// [`ParseError`] for data that is no message.
    pub fn parse(packet: &'a [u8]) -> Result<Self, ParseError> {
        let len = packet.len();
        let (pipe, rest) =
            PipeHeader::ref_from_prefix(packet).map_err(|_| ParseError::NoHeader { len })?;
        if pipe.kind.get() != PIPE_DATA {
            return Err(ParseError::NotData { kind: pipe.kind.get() });
        }
        let size = pipe.size.get();
        let inside = usize::try_from(size)
            .ok()
            .and_then(|size| rest.get(..size))
            .ok_or(ParseError::PipeSize { size, len })?;
        let (header, body) =
            Header::ref_from_prefix(inside).map_err(|_| ParseError::PipeSize { size, len })?;
        let size = header.size.get();
        let body =
            body.get(..usize::from(size)).ok_or(ParseError::BodySize { size, len: body.len() })?;
        Ok(Self {
            framework: header.framework.into(),
            message_type: MessageType(header.message_type.get()),
            version: header.version.into(),
            status: header.status.get(),
            transaction: header.transaction,
            flags: header.flags,
            body,
        })
    }

    /// The message as the data of a packet. A body of more than 65,507 bytes, which no service has, is
    /// cut off there.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        const MOST: usize = 0xffff - PIPE_HEADER - HEADER;
        let body = self.body.get(..MOST).unwrap_or(self.body);
        let size = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let header = Header {
            framework: self.framework.into(),
            message_type: self.message_type.0.into(),
            version: self.version.into(),
            size: size.into(),
            status: self.status.into(),
            transaction: self.transaction,
            flags: self.flags,
            reserved: [0; 2],
        };
        #[expect(clippy::cast_possible_truncation, reason = "it is 20")]
        let inside = u32::from(size).saturating_add(HEADER as u32);
        let pipe = PipeHeader { kind: PIPE_DATA.into(), size: inside.into() };
        let mut bytes =
            Vec::with_capacity(PIPE_HEADER.saturating_add(HEADER).saturating_add(body.len()));
        bytes.extend_from_slice(pipe.as_bytes());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(body);
        bytes
    }
}

/// Why a packet holds no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// It is shorter than the header of a pipe.
    #[error("a packet of {len} bytes has no header")]
    NoHeader {
        /// Bytes of the packet.
        len: usize,
    },
    /// It carries no data.
    #[error("a packet of type {kind} is no data of a pipe")]
    NotData {
        /// Its type.
        kind: u32,
    },
    /// The size in the pipe's header does not fit the packet, or is too small for a message.
    #[error("a message of {size} bytes in a packet of {len}")]
    PipeSize {
        /// As the pipe's header says, without that header.
        size: u32,
        /// Bytes of the packet.
        len: usize,
    },
    /// The size in the message's header does not fit the message, or the message's type.
    #[error("a body of {size} bytes where there are {len}")]
    BodySize {
        /// As the header says.
        size: u16,
        /// Bytes that there are, or must be.
        len: usize,
    },
}

/// The fixed part of a body; what follows is ignored.
fn fixed<T>(body: &[u8]) -> Result<(&T, &[u8]), ParseError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    T::ref_from_prefix(body).map_err(|_| ParseError::BodySize {
        size: u16::try_from(body.len()).unwrap_or(u16::MAX),
        len: size_of::<T>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Message<'_> = Message {
        framework: Version::new(3, 0),
        message_type: MessageType::HEARTBEAT,
        version: Version::new(3, 1),
        status: STATUS_FAILED,
        transaction: 7,
        flags: flags::TRANSACTION | flags::RESPONSE,
        body: &[1, 2, 3, 4],
    };

    #[test]
    fn the_layout_is_that_of_the_header() {
        let bytes = MESSAGE.emit();
        let expected = [
            1, 0, 0, 0, 24, 0, 0, 0, // pipe: data, 24 bytes
            3, 0, 0, 0, 1, 0, 3, 0, 1, 0, 4, 0, // framework, type, version, size
            5, 0x40, 0, 0x80, 7, 5, 0, 0, // status, transaction, flags
            1, 2, 3, 4,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Message::parse(&bytes), Ok(MESSAGE));
    }

    #[test]
    fn padding_is_ignored_and_a_message_that_is_cut_off_is_refused() {
        let mut bytes = MESSAGE.emit();
        bytes.extend([0xaa; 4]);
        assert_eq!(Message::parse(&bytes), Ok(MESSAGE));
        for len in 0..32 {
            assert!(Message::parse(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn sizes_beyond_the_packet_are_refused() {
        let with = |at: usize, byte: u8| {
            let mut bytes = MESSAGE.emit();
            bytes[at] = byte;
            Message::parse(&bytes).map(|message| message.body.len())
        };
        assert_eq!(with(4, 25), Err(ParseError::PipeSize { size: 25, len: 32 }));
        assert_eq!(with(4, 19), Err(ParseError::PipeSize { size: 19, len: 32 }));
        assert_eq!(with(7, 0x80), Err(ParseError::PipeSize { size: 0x8000_0018, len: 32 }));
        assert_eq!(with(18, 5), Err(ParseError::BodySize { size: 5, len: 4 }));
        assert_eq!(with(18, 3), Ok(3));
        assert_eq!(with(0, 2), Err(ParseError::NotData { kind: 2 }));
    }
}
