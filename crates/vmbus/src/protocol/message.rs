//! The table of control messages, with the parser and emitter generated from it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, little_endian::U32};

use super::{Version, wire};

/// The longest message: the payload of a SynIC message slot and of HvPostMessage (TLFS 11.8.3).
pub const MAX_MESSAGE_LEN: usize = 240;

/// One message as bytes, at most [`MAX_MESSAGE_LEN`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message {
    bytes: [u8; MAX_MESSAGE_LEN],
    len: usize,
}

/// More bytes than a message can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message would be longer than {MAX_MESSAGE_LEN} bytes")]
pub struct MessageFull;

/// Error when parsing a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The message is truncated.
    #[error("message {number} has {len} bytes, too few")]
    TooShort {
        /// The message's number, or 0 if even that is missing.
        number: u32,
        /// Number of bytes received.
        len: usize,
    },
    /// No known message from this side has the number.
    #[error("message number {0} is unknown")]
    UnknownNumber(u32),
    /// The message exists only in later versions.
    #[error("message {number} does not exist in version {version}")]
    NotInVersion {
        /// The message's number.
        number: u32,
        /// The version in use.
        version: Version,
    },
}

impl Message {
    fn new(number: u32) -> Self {
        Self { bytes: [0; MAX_MESSAGE_LEN], len: 0 }
            .with(&wire::Header { number: U32::new(number), padding: U32::ZERO })
    }

    /// The message with a struct appended; the table asserts that each struct fits after the
    /// header.
    fn with<T: IntoBytes + Immutable>(mut self, part: &T) -> Self {
        let added = self.append(part.as_bytes());
        debug_assert!(added.is_ok(), "the table admits only bodies that fit");
        self
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`MessageFull`] if they do not fit; nothing is appended then.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), MessageFull> {
        let end = self.len.checked_add(bytes.len()).ok_or(MessageFull)?;
        self.bytes.get_mut(self.len..end).ok_or(MessageFull)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// The message's bytes, header first.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl core::fmt::Debug for Message {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Message({:02x?})", self.as_bytes())
    }
}

/// Splits a `T` off the front of `rest`.
fn take<T>(rest: &mut &[u8]) -> Option<T>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    let (value, tail) = T::read_from_prefix(rest).ok()?;
    *rest = tail;
    Some(value)
}

/// Defines an enum of the messages that one side sends, with its parser and emitter.
macro_rules! messages {
    ($(
        $(#[$doc:meta])* $side:ident {
            $($number:literal $name:ident $(($body:ident: $wire:ident))? $since:ident;)*
        }
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the messages are documented at their wire structs")]
        pub enum $side {
            $($name $((wire::$wire))?,)*
        }

        $($(const _: () = assert!(size_of::<wire::$wire>() <= MAX_MESSAGE_LEN - 8);)?)*

        impl $side {
            /// Parses the message at the start of `bytes`. Also returns the remaining bytes: the
            /// page list of a GPADL message, and meaningless after any other.
            ///
            /// # Errors
            /// [`ParseError`] if this side sends no such message in `version`, or the message is
            /// truncated.
            pub fn parse(bytes: &[u8], version: Version) -> Result<(Self, &[u8]), ParseError> {
                let mut rest = bytes;
                let header = take::<wire::Header>(&mut rest);
                let number = header.map_or(0, |header| header.number.get());
                let too_short = ParseError::TooShort { number, len: bytes.len() };
                header.ok_or(too_short)?;
                match number {
                    $($number if version < Version::$since => {
                        Err(ParseError::NotInVersion { number, version })
                    }
                    $number => {
                        let message = Self::$name $((
                            take::<wire::$wire>(&mut rest).ok_or(too_short)?
                        ))?;
                        Ok((message, rest))
                    })*
                    _ => Err(ParseError::UnknownNumber(number)),
                }
            }

            /// The message's number.
            #[must_use]
            pub const fn number(&self) -> u32 {
                match self {
                    $(Self::$name { .. } => $number,)*
                }
            }

            /// The message as bytes.
            #[must_use]
            pub fn emit(&self) -> Message {
                match self {
                    $(Self::$name $(($body))? => {
                        let message = Message::new($number);
                        $(let message = message.with($body);)?
                        message
                    })*
                }
            }
        }
    )*};
}

messages! {
    /// A message from the host.
    HostMessage {
        1 Offer(body: Offer) ANY;
        2 Rescind(body: Channel) ANY;
        4 AllOffersDelivered ANY;
        6 OpenResult(body: OpenResult) ANY;
        10 GpadlCreated(body: GpadlCreated) ANY;
        12 GpadlTorndown(body: GpadlTorndown) ANY;
        15 VersionResponse(body: VersionResponse) ANY;
        17 UnloadResponse ANY;
        20 CloseReservedResponse(body: CloseReservedResponse) V4_0;
        23 TlConnectResult(body: TlConnectResult) V4_1;
        24 ModifyChannelResponse(body: ModifyChannelResponse) V5_3;
    }

    /// A message from the guest.
    GuestMessage {
        3 RequestOffers ANY;
        5 Open(body: Open) ANY;
        7 Close(body: Channel) ANY;
        8 GpadlHeader(body: GpadlHeader) ANY;
        9 GpadlBody(body: GpadlBody) ANY;
        11 GpadlTeardown(body: GpadlTeardown) ANY;
        13 RelidReleased(body: Channel) ANY;
        14 InitiateContact(body: InitiateContact) ANY;
        16 Unload ANY;
        18 OpenReserved(body: OpenReserved) V4_0;
        19 CloseReserved(body: CloseReserved) V4_0;
        21 TlConnectRequest(body: TlConnectRequest) V4_0;
        22 ModifyChannel(body: ModifyChannel) V4_1;
    }
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    fn contact(version: u32, first: u8) -> Vec<u8> {
        let mut bytes = vec![14, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(version.to_le_bytes());
        bytes.extend([7, 0, 0, 0, first, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn a_contact_is_parsed_and_emitted_alike() {
        let bytes = contact(0x5_0003, 2);
        let (message, tail) = GuestMessage::parse(&bytes, Version::V2_4).unwrap();
        let GuestMessage::InitiateContact(contact) = message else { panic!("{message:?}") };
        assert_eq!(Version::from_wire(contact.version.get()), Version::V5_3);
        assert_eq!((contact.target_vp.get(), contact.target_sint), (7, 2));
        assert_eq!((tail, message.emit().as_bytes()), (&[][..], &bytes[..]));
    }

    #[test]
    fn a_version_response_has_the_sixteen_bytes_linux_insists_on() {
        let response = HostMessage::VersionResponse(wire::VersionResponse {
            supported: 1,
            connection_state: 0,
            reserved: 0.into(),
            connection_id: 1.into(),
        });
        assert_eq!(response.emit().as_bytes(), [0x0f, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn messages_are_known_only_from_their_own_side() {
        let offers = HostMessage::AllOffersDelivered.emit();
        assert_eq!(HostMessage::AllOffersDelivered.number(), 4);
        assert_eq!(
            GuestMessage::parse(offers.as_bytes(), Version::V5_3),
            Err(ParseError::UnknownNumber(4))
        );
    }

    #[test]
    fn messages_of_later_versions_are_refused() {
        let modify = wire::ModifyChannel { relid: 1.into(), target_vp: 0.into() };
        let bytes = GuestMessage::ModifyChannel(modify).emit();
        assert!(GuestMessage::parse(bytes.as_bytes(), Version::V4_1).is_ok());
        assert_eq!(
            GuestMessage::parse(bytes.as_bytes(), Version::V4_0),
            Err(ParseError::NotInVersion { number: 22, version: Version::V4_0 })
        );
    }

    #[test]
    fn a_message_cut_off_anywhere_is_too_short() {
        let bytes = contact(0x4_0000, 0);
        for len in 0..bytes.len() {
            let number = if len < 8 { 0 } else { 14 };
            assert_eq!(
                GuestMessage::parse(&bytes[..len], Version::V4_0),
                Err(ParseError::TooShort { number, len })
            );
        }
    }

    #[test]
    fn the_page_list_of_a_gpadl_is_returned_as_the_tail() {
        let body = wire::GpadlBody { message_number: 0.into(), gpadl: 9.into() };
        let mut bytes = GuestMessage::GpadlBody(body).emit();
        bytes.append(&[1, 2, 3]).unwrap();
        let (_, tail) = GuestMessage::parse(bytes.as_bytes(), Version::V2_4).unwrap();
        assert_eq!(tail, [1, 2, 3]);
        assert_eq!(bytes.append(&[0; 222]), Err(MessageFull));
        assert_eq!(bytes.append(&[0; 221]), Ok(()));
        assert_eq!(bytes.as_bytes().len(), MAX_MESSAGE_LEN);
    }
}
