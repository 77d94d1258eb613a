//! Versions of the VMBus protocol.

use core::fmt;

/// A version of the VMBus protocol; it may be any number, since the guest names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u32);

impl Version {
    /// Below all versions: the minimum version of messages that always existed.
    pub(super) const ANY: Self = Self(0);
    /// Windows 8, Server 2012: event flags for all channels, target VP in OPEN.
    pub const V2_4: Self = Self::new(2, 4);
    /// Windows 8.1, Server 2012 R2: control messages go to a VP of the guest's choice.
    pub const V3_0: Self = Self::new(3, 0);
    /// Windows 10, Server 2016.
    pub const V4_0: Self = Self::new(4, 0);
    /// Windows 10 RS3: MODIFYCHANNEL.
    pub const V4_1: Self = Self::new(4, 1);
    /// Connection ID 4 for INITIATE_CONTACT; the host chooses the ID for all later messages.
    pub const V5_0: Self = Self::new(5, 0);
    /// Windows 10 RS4: target VTL in INITIATE_CONTACT.
    pub const V5_1: Self = Self::new(5, 1);
    /// Windows 10 RS5, Server 2019.
    pub const V5_2: Self = Self::new(5, 2);
    /// Server 2022: MODIFYCHANNEL gets a response.
    pub const V5_3: Self = Self::new(5, 3);

    /// The versions this crate supports, oldest first. Version 6.0 adds features that its flags
    /// switch on, for paravisors and confidential guests; a guest that asks for it first takes 5.3
    /// when it is refused. Versions below 2.4 use a shared interrupt page.
    pub const KNOWN: [Self; 8] = [
        Self::V2_4,
        Self::V3_0,
        Self::V4_0,
        Self::V4_1,
        Self::V5_0,
        Self::V5_1,
        Self::V5_2,
        Self::V5_3,
    ];

    const fn new(major: u16, minor: u16) -> Self {
        Self((major as u32) << 16 | minor as u32)
    }

    /// The version from its wire form, with the major number in the upper half.
    #[must_use]
    pub const fn from_wire(number: u32) -> Self {
        Self(number)
    }

    /// The wire form.
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

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_as_two_numbers() {
        assert_eq!(std::format!("{} {:?}", Version::V5_3, Version::from_wire(0x2_0004)), "5.3 2.4");
    }
}
