//! GUIDs in their mixed-endian form.

use core::{fmt, str::FromStr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A GUID in wire form: the first three fields are little-endian, the rest is in text order.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct Guid([u8; 16]);

/// The text is not a GUID. It must look like `525074dc-8985-46e2-8057-a307dc18a502`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID: write it like 525074dc-8985-46e2-8057-a307dc18a502")]
pub struct ParseGuidError;

impl Guid {
    /// The GUID with the hexadecimal digits `digits`, in text order:
    /// `525074dc-8985-46e2-8057-a307dc18a502` is `0x525074dc_8985_46e2_8057_a307dc18a502`.
    #[must_use]
    pub const fn from_digits(digits: u128) -> Self {
        Self(swap_fields(digits.to_be_bytes()))
    }

    /// The digits in text order.
    #[must_use]
    pub const fn digits(self) -> u128 {
        u128::from_be_bytes(swap_fields(self.0))
    }

    /// The 16 bytes on the wire.
    #[must_use]
    pub const fn to_wire(self) -> [u8; 16] {
        self.0
    }

    /// Whether all bytes are zero.
    #[must_use]
    pub fn is_nil(self) -> bool {
        self.digits() == 0
    }
}

/// Reverses the bytes of the first three fields (4, 2 and 2 bytes). It is its own inverse.
const fn swap_fields([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]: [u8; 16]) -> [u8; 16] {
    [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.digits();
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            digits >> 96,
            digits >> 80 & 0xffff,
            digits >> 64 & 0xffff,
            digits >> 48 & 0xffff,
            digits & 0xffff_ffff_ffff
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Guid {
    type Err = ParseGuidError;

    fn from_str(text: &str) -> Result<Self, ParseGuidError> {
        let mut digits = 0;
        let mut fields = text.split('-');
        for len in [8_u32, 4, 4, 4, 12] {
            let field = fields.next().ok_or(ParseGuidError)?;
            let all_hex = field.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !all_hex || u32::try_from(field.len()) != Ok(len) {
                return Err(ParseGuidError);
            }
            let value = u128::from_str_radix(field, 16).map_err(|_| ParseGuidError)?;
            digits = digits << len.saturating_mul(4) | value;
        }
        if fields.next().is_some() { Err(ParseGuidError) } else { Ok(Self::from_digits(digits)) }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    const TEXT: &str = "525074dc-8985-46e2-8057-a307dc18a502";

    #[test]
    fn wire_bytes_are_mixed_endian() {
        let guid: Guid = TEXT.parse().unwrap();
        assert_eq!(guid, Guid::from_digits(0x525074dc_8985_46e2_8057_a307dc18a502));
        assert_eq!(
            guid.to_wire(),
            [
                0xdc, 0x74, 0x50, 0x52, 0x85, 0x89, 0xe2, 0x46, 0x80, 0x57, 0xa3, 0x07, 0xdc, 0x18,
                0xa5, 0x02
            ]
        );
        assert_eq!(guid.to_string(), TEXT);
        assert!(!guid.is_nil() && Guid::from_digits(0).is_nil());
    }

    #[test]
    fn text_that_is_no_guid_is_refused() {
        let long = std::format!("{TEXT}-0");
        let sign = TEXT.replace("8985", "+985");
        for text in ["", "525074dc", &TEXT[1..], &long, &sign] {
            assert_eq!(text.parse::<Guid>(), Err(ParseGuidError), "{text}");
        }
    }
}
