//! The negotiation of versions, with which every channel begins.

use alloc::vec::Vec;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ParseError, Version, WireVersion, fixed};

/// The most versions of each kind in a negotiation (Linux `IC_VERSION_NEGOTIATION_MAX_VER_COUNT`).
pub(super) const MOST_VERSIONS: u16 = 100;

/// Linux `struct icmsg_negotiate`; the versions follow, those of the framework first.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Counts {
    framework: U16,
    service: U16,
    reserved: U32,
}

/// The host's offer: the versions that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiation {
    /// Of the framework.
    pub framework: Vec<Version>,
    /// Of the service.
    pub service: Vec<Version>,
}

/// The guest's answer: the versions that it chose, or none.
pub type Answer = Option<(Version, Version)>;

impl Negotiation {
    /// The body of a message that says so. The counts saturate at 65,535; no caller has as many.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let count =
            |versions: &[Version]| U16::new(u16::try_from(versions.len()).unwrap_or(u16::MAX));
        let counts = Counts {
            framework: count(&self.framework),
            service: count(&self.service),
            reserved: U32::ZERO,
        };
        let mut bytes = counts.as_bytes().to_vec();
        for version in self.framework.iter().chain(&self.service) {
            bytes.extend_from_slice(WireVersion::from(*version).as_bytes());
        }
        bytes
    }

    /// Reads such a body.
    ///
    /// # Errors
    /// [`ParseError`] if it is too short for its counts, or these exceed 100 (Linux `IC_VERSION_NEGOTIATION_MAX_VER_COUNT`).
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let (counts, mut rest) = fixed::<Counts>(body)?;
        let short = |len: usize| ParseError::BodySize {
            size: u16::try_from(body.len()).unwrap_or(u16::MAX),
            len,
        };
        let mut list = |count: u16| {
            if count > MOST_VERSIONS {
                return Err(short(usize::from(count)));
            }
            let mut versions = Vec::new();
            for _ in 0..count {
                let (version, more) =
                    WireVersion::ref_from_prefix(rest).map_err(|_| short(usize::from(count)))?;
                versions.push((*version).into());
                rest = more;
            }
            Ok(versions)
        };
        Ok(Self { framework: list(counts.framework.get())?, service: list(counts.service.get())? })
    }

    /// Reads the guest's answer: one version of each kind, or none at all.
    ///
    /// # Errors
    /// As [`Negotiation::parse`].
    pub fn parse_answer(body: &[u8]) -> Result<Answer, ParseError> {
        let Self { framework, service } = Self::parse(body)?;
        Ok(match (framework.as_slice(), service.as_slice()) {
            ([framework], [service]) => Some((*framework, *service)),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    #[test]
    fn versions_are_read_back_in_their_order() {
        let offer = Negotiation {
            framework: vec![Version::new(1, 0), Version::new(3, 0)],
            service: vec![Version::new(3, 2)],
        };
        let bytes = offer.emit();
        assert_eq!(bytes, [2, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 3, 0, 2, 0]);
        assert_eq!(Negotiation::parse(&bytes), Ok(offer));
        for len in 0..bytes.len() {
            assert!(Negotiation::parse(&bytes[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn an_answer_has_one_version_of_each_or_none() {
        let answer = |framework: &[Version], service: &[Version]| {
            let both = Negotiation { framework: framework.into(), service: service.into() };
            Negotiation::parse_answer(&both.emit())
        };
        let (three, four) = (Version::new(3, 0), Version::new(4, 0));
        assert_eq!(answer(&[three], &[four]), Ok(Some((three, four))));
        assert_eq!(answer(&[], &[]), Ok(None));
        assert_eq!(answer(&[three, three], &[four]), Ok(None));
    }

    #[test]
    fn a_count_beyond_the_limit_is_refused() {
        let mut bytes = vec![0; 8 + 4 * 200];
        bytes[0] = 101;
        assert!(Negotiation::parse(&bytes).is_err());
        bytes[0] = 100;
        assert!(Negotiation::parse(&bytes).is_ok());
    }
}
