//! Protocol versions.

use core::fmt;

/// A Dynamic Memory protocol version: the major number in the high half, the minor one in the low
/// half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u32);

impl Version {
    /// 0.3, the highest version of Windows 7 and Server 2008 R2.
    pub const V0_3: Self = Self(0x0000_0003);
    /// 1.0, the highest version of Windows 8 and Server 2012.
    pub const V1_0: Self = Self(0x0001_0000);
    /// 2.0, the highest version of Windows 10, Server 2016 and all Linux kernels with ballooning.
    pub const V2_0: Self = Self(0x0002_0000);

    /// All known versions, newest first.
    pub const KNOWN: [Self; 3] = [Self::V2_0, Self::V1_0, Self::V0_3];

    /// The version in a message; any number is possible.
    #[must_use]
    pub const fn from_wire(word: u32) -> Self {
        Self(word)
    }

    /// The number for a message.
    #[must_use]
    pub const fn to_wire(self) -> u32 {
        self.0
    }

    /// Whether this is one of [`Version::KNOWN`].
    #[must_use]
    pub fn is_known(self) -> bool {
        Self::KNOWN.contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 >> 16, self.0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn versions_print_as_people_write_them() {
        assert_eq!(Version::KNOWN.map(|version| version.to_string()), ["2.0", "1.0", "0.3"]);
    }

    #[test]
    fn numbers_between_the_versions_are_not_known() {
        assert!(!Version::from_wire(0x0001_0003).is_known());
    }
}
