//! The table of message types.

use core::fmt;

use crate::Version;

/// The number that identifies a kind of message: the header's first field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageType(u16);

impl MessageType {
    /// The guest requests a protocol version.
    pub const VERSION_REQUEST: Self = Self(1);
    /// The host accepts or refuses it.
    pub const VERSION_RESPONSE: Self = Self(2);
    /// The guest's capabilities.
    pub const CAPABILITIES_REPORT: Self = Self(3);
    /// The host accepts them.
    pub const CAPABILITIES_RESPONSE: Self = Self(4);
    /// The guest's memory pressure; never answered.
    pub const STATUS_REPORT: Self = Self(5);
    /// The host asks for pages.
    pub const BALLOON_REQUEST: Self = Self(6);
    /// Pages for the host; one or more messages for a request.
    pub const BALLOON_RESPONSE: Self = Self(7);
    /// The host returns pages; one or more messages for a request.
    pub const UNBALLOON_REQUEST: Self = Self(8);
    /// The guest has taken them; one message for a request.
    pub const UNBALLOON_RESPONSE: Self = Self(9);
    /// The host adds memory.
    pub const HOT_ADD_REQUEST: Self = Self(10);
    /// How much of it the guest took.
    pub const HOT_ADD_RESPONSE: Self = Self(11);
    /// A fact for the guest; never answered.
    pub const INFO_MESSAGE: Self = Self(12);
    /// The host asks for memory to be removed; no known guest supports this.
    pub const HOT_REMOVE_REQUEST: Self = Self(13);
    /// The memory that was removed.
    pub const HOT_REMOVE_RESPONSE: Self = Self(14);

    /// The type in a header; any number is possible.
    #[must_use]
    pub const fn from_wire(number: u16) -> Self {
        Self(number)
    }

    /// The number for a header.
    #[must_use]
    pub const fn to_wire(self) -> u16 {
        self.0
    }

    /// The protocol's definition of this type, or `None` if it has none.
    #[must_use]
    pub fn info(self) -> Option<&'static MessageInfo> {
        MESSAGES.iter().find(|info| info.number == self)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.info() {
            Some(info) => f.write_str(info.name),
            None => write!(f, "message type {}", self.0),
        }
    }
}

/// The direction in which a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the guest (VSC) to the host (VSP).
    ToHost,
    /// From the host to the guest.
    ToGuest,
}

/// One row of [`MESSAGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageInfo {
    /// The number in the header.
    pub number: MessageType,
    /// The name, for people.
    pub name: &'static str,
    /// Its direction.
    pub direction: Direction,
    /// The first protocol version that includes it.
    pub since: Version,
}

/// Every message of the protocol. Number 0, "error", is defined as well, but neither side sends it.
///
/// Source: Linux `hv_balloon.c`, `enum dm_message_type` for 1 to 12; QEMU `dynmem-proto.h` for 13
/// and 14.
pub const MESSAGES: [MessageInfo; 14] = {
    use Direction::{ToGuest, ToHost};
    use MessageType as T;
    [
        row(T::VERSION_REQUEST, "version request", ToHost, Version::V0_3),
        row(T::VERSION_RESPONSE, "version response", ToGuest, Version::V0_3),
        row(T::CAPABILITIES_REPORT, "capabilities report", ToHost, Version::V0_3),
        row(T::CAPABILITIES_RESPONSE, "capabilities response", ToGuest, Version::V0_3),
        row(T::STATUS_REPORT, "status report", ToHost, Version::V0_3),
        row(T::BALLOON_REQUEST, "balloon request", ToGuest, Version::V0_3),
        row(T::BALLOON_RESPONSE, "balloon response", ToHost, Version::V0_3),
        row(T::UNBALLOON_REQUEST, "unballoon request", ToGuest, Version::V0_3),
        row(T::UNBALLOON_RESPONSE, "unballoon response", ToHost, Version::V0_3),
        row(T::HOT_ADD_REQUEST, "hot-add request", ToGuest, Version::V0_3),
        row(T::HOT_ADD_RESPONSE, "hot-add response", ToHost, Version::V0_3),
        row(T::INFO_MESSAGE, "info message", ToGuest, Version::V1_0),
        row(T::HOT_REMOVE_REQUEST, "hot-remove request", ToGuest, Version::V2_0),
        row(T::HOT_REMOVE_RESPONSE, "hot-remove response", ToHost, Version::V2_0),
    ]
};

const fn row(
    number: MessageType,
    name: &'static str,
    direction: Direction,
    since: Version,
) -> MessageInfo {
    MessageInfo { number, name, direction, since }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn the_table_has_each_number_from_1_to_14_once_in_order() {
        let numbers: Vec<u16> = MESSAGES.iter().map(|info| info.number.to_wire()).collect();
        assert_eq!(numbers, (1..=14).collect::<Vec<u16>>());
    }

    #[test]
    fn types_print_their_name_and_unknown_ones_their_number() {
        assert_eq!(MessageType::STATUS_REPORT.to_string(), "status report");
        assert_eq!(MessageType::from_wire(15).to_string(), "message type 15");
    }
}
