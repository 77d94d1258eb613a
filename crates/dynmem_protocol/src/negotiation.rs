//! The handshake: version and capabilities (messages 1 to 4).

use alloc::vec::Vec;

use page_range::PageCount;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::header::{Frame, emit, emitted};
use crate::{MessageType, ParseError, RangeWords, Version};

/// Bit 0 of the responses: accepted.
const IS_ACCEPTED: u64 = 1;

/// Linux `struct dm_version_request`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct VersionRequestBody {
    version: U32,
    /// Bit 0: last attempt; the rest is reserved.
    flags: U32,
}
const _: () = assert!(size_of::<VersionRequestBody>() == 16 - 8);

/// Message 1: the guest requests a version, its highest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRequest {
    /// The requested version.
    pub version: Version,
    /// The guest gives up if this one is refused.
    pub is_last_attempt: bool,
}

impl VersionRequest {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<VersionRequestBody>()?;
        Ok(Self {
            version: Version::from_wire(body.version.get()),
            is_last_attempt: body.flags.get() & 1 != 0,
        })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let body = VersionRequestBody {
            version: U32::new(self.version.to_wire()),
            flags: U32::new(self.is_last_attempt.into()),
        };
        emit(out, MessageType::VERSION_REQUEST, transaction_id, &body, RangeWords::default())
    }
}

/// Linux `struct dm_version_response` and `struct dm_cap_resp_msg`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ResponseBody {
    flags: U64,
}
const _: () = assert!(size_of::<ResponseBody>() == 16 - 8);

/// Message 2: the host accepts the version or refuses it. It must echo the request's transaction
/// id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionResponse {
    /// Whether both sides use the version from now on.
    pub is_accepted: bool,
}

impl VersionResponse {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<ResponseBody>()?;
        Ok(Self { is_accepted: body.flags.get() & IS_ACCEPTED != 0 })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let body = ResponseBody { flags: U64::new(self.is_accepted.into()) };
        emit(out, MessageType::VERSION_RESPONSE, transaction_id, &body, RangeWords::default())
    }
}

/// A guest's capabilities: the first word of its capabilities report. Linux `union dm_caps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// The guest gives up pages when asked.
    pub const BALLOON: Self = Self(1);
    /// The guest accepts new memory.
    pub const HOT_ADD: Self = Self(1 << 1);
    /// The guest removes memory when asked (QEMU `dynmem-proto.h`; no known guest sets it).
    pub const HOT_REMOVE: Self = Self(1 << 6);

    const ALIGNMENT_SHIFT: u32 = 2;
    const ALIGNMENT_MASK: u64 = 0xf;

    /// The capabilities in a word from the wire.
    #[must_use]
    pub const fn from_wire(word: u64) -> Self {
        Self(word)
    }

    /// The word for the wire.
    #[must_use]
    pub const fn to_wire(self) -> u64 {
        self.0
    }

    /// These capabilities and those of `other`.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Start and size of hot-added memory must be multiples of this; from 1 MiB to 32 GiB.
    #[must_use]
    pub const fn hot_add_alignment(self) -> PageCount {
        let log2_mib = (self.0 >> Self::ALIGNMENT_SHIFT) & Self::ALIGNMENT_MASK;
        PageCount::from_bytes(1 << 20 << log2_mib)
    }

    /// These capabilities with an alignment of 2^`log2_mib` MiB; only the low four bits count.
    #[must_use]
    pub const fn with_hot_add_alignment(self, log2_mib: u8) -> Self {
        let cleared = self.0 & !(Self::ALIGNMENT_MASK << Self::ALIGNMENT_SHIFT);
        Self(cleared | ((log2_mib as u64 & Self::ALIGNMENT_MASK) << Self::ALIGNMENT_SHIFT))
    }
}

/// Linux `struct dm_capabilities`, after the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct CapabilitiesReportBody {
    capabilities: U64,
    minimum_pages: U64,
    highest_page: U64,
}
const _: () = assert!(size_of::<CapabilitiesReportBody>() == 32 - 8);

/// Message 3: the guest's capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilitiesReport {
    /// The capabilities.
    pub capabilities: Capabilities,
    /// The smallest size the guest would accept. Linux sends 0; hosts ignore it.
    pub minimum_pages: PageCount,
    /// The highest page number the guest can handle. Linux sends all ones; hosts ignore it.
    pub highest_page: u64,
}

impl CapabilitiesReport {
    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<CapabilitiesReportBody>()?;
        Ok(Self {
            capabilities: Capabilities::from_wire(body.capabilities.get()),
            minimum_pages: PageCount::new(body.minimum_pages.get()),
            highest_page: body.highest_page.get(),
        })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let body = CapabilitiesReportBody {
            capabilities: U64::new(self.capabilities.to_wire()),
            minimum_pages: U64::new(self.minimum_pages.get()),
            highest_page: U64::new(self.highest_page),
        };
        emit(out, MessageType::CAPABILITIES_REPORT, transaction_id, &body, RangeWords::default())
    }
}

/// Message 4: the host accepts the capabilities. It must echo the report's transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilitiesResponse {
    /// Whether the host continues with this guest.
    pub is_accepted: bool,
    /// Bit 1, which QEMU sets; reserved according to Linux.
    pub hot_remove: bool,
    /// Bit 2 asks the guest not to send status reports; Linux sends them all the same.
    pub suppress_pressure_reports: bool,
}

impl CapabilitiesResponse {
    const HOT_REMOVE: u64 = 1 << 1;
    const SUPPRESS_PRESSURE_REPORTS: u64 = 1 << 2;

    pub(crate) fn parse(frame: &Frame<'_>) -> Result<Self, ParseError> {
        let (body, _) = frame.body::<ResponseBody>()?;
        let flags = body.flags.get();
        Ok(Self {
            is_accepted: flags & IS_ACCEPTED != 0,
            hot_remove: flags & Self::HOT_REMOVE != 0,
            suppress_pressure_reports: flags & Self::SUPPRESS_PRESSURE_REPORTS != 0,
        })
    }

    /// The message as bytes.
    #[must_use]
    pub fn emit(self, transaction_id: u32) -> Vec<u8> {
        emitted(|out| self.emit_into(transaction_id, out))
    }

    /// Writes the message to `out`, replacing its content.
    #[inline]
    pub fn emit_into(self, transaction_id: u32, out: &mut Vec<u8>) {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let flags = flag(self.is_accepted, IS_ACCEPTED)
            | flag(self.hot_remove, Self::HOT_REMOVE)
            | flag(self.suppress_pressure_reports, Self::SUPPRESS_PRESSURE_REPORTS);
        let body = ResponseBody { flags: U64::new(flags) };
        emit(out, MessageType::CAPABILITIES_RESPONSE, transaction_id, &body, RangeWords::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_a_power_of_two_in_mib() {
        let linux = Capabilities::from_wire(0x1f);
        assert_eq!(linux.hot_add_alignment(), PageCount::from_bytes(128 << 20));
        let largest = linux.with_hot_add_alignment(15);
        assert_eq!(largest.hot_add_alignment(), PageCount::from_bytes(32 << 30));
        assert_eq!(largest.with_hot_add_alignment(7), linux);
    }

    #[test]
    fn capabilities_are_single_bits() {
        let linux = Capabilities::from_wire(0x1f);
        assert!(linux.contains(Capabilities::BALLOON.union(Capabilities::HOT_ADD)));
        assert!(!linux.contains(Capabilities::HOT_REMOVE));
    }
}
