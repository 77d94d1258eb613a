//! The header and checksum around saved state.

use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the checksum after the payload.
const CHECKSUM_LEN: usize = 4;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    payload_len: U64,
}
const _: () = assert!(size_of::<Header>() == 20);

/// A kind of saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// The first bytes, which no other kind of state has.
    pub magic: [u8; 8],
    /// The subject of the state, for messages: "a balloon device".
    pub name: &'static str,
    /// The newest version of the payload that this program knows, and the one it writes. Versions
    /// begin with 1.
    pub newest: u32,
}

/// Why saved state was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes begin differently.
    #[error("this is not the saved state of {expected}")]
    Other {
        /// The subject of the expected state.
        expected: &'static str,
    },
    /// The bytes end too early.
    #[error("saved state is cut off: {len} bytes of at least {wanted}")]
    Truncated {
        /// The number of bytes.
        len: usize,
        /// The number of bytes there should be, as far as is known.
        wanted: u64,
    },
    /// There are more bytes than the header says.
    #[error("saved state is followed by {surplus} bytes that do not belong to it")]
    TooLong {
        /// The number of extra bytes.
        surplus: u64,
    },
    /// The checksum does not match the bytes.
    #[error(
        "saved state was altered: its checksum is {found:#010x} and should be {computed:#010x}"
    )]
    Checksum {
        /// The checksum in the saved state.
        found: u32,
        /// The checksum computed from the bytes.
        computed: u32,
    },
    /// A newer program wrote the state.
    #[error(
        "saved state has version {found}, and this program knows 1 to {newest}; restore it with the \
         program that saved it, or a newer one"
    )]
    Version {
        /// Its version.
        found: u32,
        /// The newest known version.
        newest: u32,
    },
    /// The payload is not a state of its version.
    #[error("saved state of version {version} cannot be read, though its checksum is right")]
    Malformed {
        /// The version.
        version: u32,
    },
}

/// State that can be stored on its own, as bytes that identify themselves. As part of a larger
/// state, it is stored through its `serde` implementations, and the larger state is framed.
pub trait SavedState: Serialize + DeserializeOwned {
    /// The kind of state, and its newest version.
    ///
    /// Raise [`Format::newest`] with every version that is added to this state, or to a state
    /// within it: an older program then reports that the state is too new, and not that it is
    /// malformed.
    const FORMAT: Format;

    /// The state in its frame.
    #[must_use]
    fn to_bytes(&self) -> Vec<u8> {
        Self::FORMAT.write(self)
    }

    /// Reads the state from its frame. Whoever restores it must check that the state itself is
    /// possible.
    ///
    /// # Errors
    /// [`FormatError`] if the bytes are not a state of this kind, or are incomplete, altered or too
    /// new.
    fn from_bytes(bytes: &[u8]) -> Result<Self, FormatError> {
        Self::FORMAT.read(bytes)
    }
}

impl Format {
    /// Encodes `state` in the newest version.
    fn write<T: Serialize>(&self, state: &T) -> Vec<u8> {
        let payload = postcard::to_allocvec(state);
        debug_assert!(payload.is_ok(), "only sequences of unknown length are refused");
        self.frame(self.newest, &payload.unwrap_or_default())
    }

    /// Frames any payload, as of any version: for tests. [`SavedState::to_bytes`] frames what it
    /// writes.
    #[must_use]
    pub fn frame(&self, version: u32, payload: &[u8]) -> Vec<u8> {
        let payload_len = U64::new(u64::try_from(payload.len()).unwrap_or(u64::MAX));
        let header = Header { magic: self.magic, version: U32::new(version), payload_len };
        let mut bytes = [header.as_bytes(), payload].concat();
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// Reads the state from its frame. Only its form is checked.
    fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, FormatError> {
        let len = bytes.len();
        let least = size_of::<Header>().saturating_add(CHECKSUM_LEN);
        // Bytes too few to identify count as truncated.
        let begin = bytes.get(..self.magic.len()).unwrap_or(bytes);
        if !self.magic.starts_with(begin) {
            return Err(FormatError::Other { expected: self.name });
        }
        let wanted =
            |payload: u64| payload.saturating_add(u64::try_from(least).unwrap_or(u64::MAX));
        let truncated = |payload| FormatError::Truncated { len, wanted: wanted(payload) };
        let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| truncated(0))?;
        let payload_len = header.payload_len.get();
        let cut_off = truncated(payload_len);
        let payload_len_here = usize::try_from(payload_len).map_err(|_| cut_off)?;
        let (payload, rest) = rest.split_at_checked(payload_len_here).ok_or(cut_off)?;
        let (checksum, surplus) = U32::read_from_prefix(rest).map_err(|_| cut_off)?;
        if !surplus.is_empty() {
            let surplus = u64::try_from(surplus.len()).unwrap_or(u64::MAX);
            return Err(FormatError::TooLong { surplus });
        }
        let checked = len.saturating_sub(CHECKSUM_LEN);
        let computed = crc32fast::hash(bytes.get(..checked).unwrap_or_default());
        let found = checksum.get();
        if found != computed {
            return Err(FormatError::Checksum { found, computed });
        }
        let version = header.version.get();
        if !(1..=self.newest).contains(&version) {
            return Err(FormatError::Version { found: version, newest: self.newest });
        }
        match postcard::take_from_bytes(payload) {
            Ok((state, [])) => Ok(state),
            _ => Err(FormatError::Malformed { version }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::{String, ToString};
    use std::vec;

    use proptest::prelude::*;

    use super::*;

    const FORMAT: Format = Format { magic: *b"a test\0\0", name: "a test", newest: 2 };

    fn read(bytes: &[u8]) -> Result<(u32, String), FormatError> {
        FORMAT.read(bytes)
    }

    fn written() -> Vec<u8> {
        FORMAT.write(&(7_u32, "state"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(read(&written()), Ok((7, "state".into())));
    }

    #[test]
    fn the_frame_is_that_of_the_documentation() {
        let bytes = Format { newest: 1, ..FORMAT }.write(&5_u8);
        let expected = b"a test\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\x05";
        let (frame, checksum) = bytes.split_at(21);
        assert_eq!(frame, expected);
        assert_eq!(checksum, crc32fast::hash(expected).to_le_bytes());
    }

    #[test]
    fn state_cut_off_anywhere_is_refused() {
        let bytes = written();
        for len in 0..bytes.len() {
            let error = read(&bytes[..len]).unwrap_err();
            assert!(matches!(error, FormatError::Truncated { .. }), "{len}: {error}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for bit in 0..written().len() * 8 {
            let mut bytes = written();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn versions_that_there_are_not_are_named() {
        for version in [0, 3, u32::MAX] {
            let error = read(&FORMAT.frame(version, &[])).unwrap_err();
            assert_eq!(error, FormatError::Version { found: version, newest: 2 });
            assert!(error.to_string().contains("restore it with the program"), "{error}");
        }
    }

    #[test]
    fn other_state_and_surplus_bytes_are_refused() {
        let other = Format { magic: *b"another\0", ..FORMAT }.write(&());
        assert_eq!(read(&other), Err(FormatError::Other { expected: "a test" }));
        let longer = [&written()[..], &[0]].concat();
        assert_eq!(read(&longer), Err(FormatError::TooLong { surplus: 1 }));
    }

    #[test]
    fn a_payload_that_is_something_else_is_refused() {
        for payload in [vec![], vec![7], vec![7, 1, 0xff], vec![7, 1, b'a', 0]] {
            let error = read(&FORMAT.frame(1, &payload)).unwrap_err();
            assert_eq!(error, FormatError::Malformed { version: 1 });
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..100), ours: bool) {
            let magic = if ours { &FORMAT.magic[..] } else { &[] };
            prop_assert!(read(&[magic, &bytes].concat()).is_err());
        }

        #[test]
        fn any_payload_is_read_or_refused(payload in prop::collection::vec(any::<u8>(), 0..100)) {
            let bytes = FORMAT.frame(1, &payload);
            let _ = FORMAT.read::<(u32, Vec<(u64, Option<u8>)>)>(&bytes);
        }
    }
}
