//! Parsing of packets into messages, for each direction.

use crate::header::Frame;
use crate::{
    BalloonRequest, BalloonResponse, CapabilitiesReport, CapabilitiesResponse, HotAddRequest,
    HotAddResponse, HotRemoveRequest, HotRemoveResponse, InfoMessage, MessageType, ParseError,
    StatusReport, UnballoonRequest, UnballoonResponse, VersionRequest, VersionResponse,
};

/// A message from the guest to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMessage<'a> {
    /// The guest's number for the message. Linux numbers all messages it sends and never echoes the
    /// host's number.
    pub transaction_id: u32,
    /// The content.
    pub body: GuestBody<'a>,
}

/// The content of a guest's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented by the type it holds")]
pub enum GuestBody<'a> {
    VersionRequest(VersionRequest),
    CapabilitiesReport(CapabilitiesReport),
    StatusReport(StatusReport),
    BalloonResponse(BalloonResponse<'a>),
    UnballoonResponse(UnballoonResponse),
    HotAddResponse(HotAddResponse),
    HotRemoveResponse(HotRemoveResponse<'a>),
}

impl<'a> GuestMessage<'a> {
    /// Parses a packet from the guest. `packet` must be a copy that the guest cannot change any
    /// more.
    ///
    /// # Errors
    /// [`ParseError`]; the packet must then not be used in any other way.
    pub fn parse(packet: &'a [u8]) -> Result<Self, ParseError> {
        use GuestBody as B;
        use MessageType as T;
        let frame = Frame::parse(packet)?;
        let body = match frame.number {
            T::VERSION_REQUEST => B::VersionRequest(VersionRequest::parse(&frame)?),
            T::CAPABILITIES_REPORT => B::CapabilitiesReport(CapabilitiesReport::parse(&frame)?),
            T::STATUS_REPORT => B::StatusReport(StatusReport::parse(&frame)?),
            T::BALLOON_RESPONSE => B::BalloonResponse(BalloonResponse::parse(&frame)?),
            T::UNBALLOON_RESPONSE => B::UnballoonResponse(UnballoonResponse),
            T::HOT_ADD_RESPONSE => B::HotAddResponse(HotAddResponse::parse(&frame)?),
            T::HOT_REMOVE_RESPONSE => B::HotRemoveResponse(HotRemoveResponse::parse(&frame)?),
            number => return Err(not_from_there(number)),
        };
        Ok(Self { transaction_id: frame.transaction_id, body })
    }
}

impl GuestBody<'_> {
    /// The message's type.
    #[must_use]
    pub const fn message_type(&self) -> MessageType {
        match self {
            Self::VersionRequest(_) => MessageType::VERSION_REQUEST,
            Self::CapabilitiesReport(_) => MessageType::CAPABILITIES_REPORT,
            Self::StatusReport(_) => MessageType::STATUS_REPORT,
            Self::BalloonResponse(_) => MessageType::BALLOON_RESPONSE,
            Self::UnballoonResponse(_) => MessageType::UNBALLOON_RESPONSE,
            Self::HotAddResponse(_) => MessageType::HOT_ADD_RESPONSE,
            Self::HotRemoveResponse(_) => MessageType::HOT_REMOVE_RESPONSE,
        }
    }
}

/// A message from the host to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMessage<'a> {
    /// The host's number for the message; all messages of one unballoon request share it.
    pub transaction_id: u32,
    /// The content.
    pub body: HostBody<'a>,
}

/// The content of a host's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is documented by the type it holds")]
pub enum HostBody<'a> {
    VersionResponse(VersionResponse),
    CapabilitiesResponse(CapabilitiesResponse),
    BalloonRequest(BalloonRequest),
    UnballoonRequest(UnballoonRequest<'a>),
    HotAddRequest(HotAddRequest),
    InfoMessage(InfoMessage),
    HotRemoveRequest(HotRemoveRequest),
}

impl<'a> HostMessage<'a> {
    /// Parses a packet from the host.
    ///
    /// # Errors
    /// [`ParseError`].
    pub fn parse(packet: &'a [u8]) -> Result<Self, ParseError> {
        use HostBody as B;
        use MessageType as T;
        let frame = Frame::parse(packet)?;
        let body = match frame.number {
            T::VERSION_RESPONSE => B::VersionResponse(VersionResponse::parse(&frame)?),
            T::CAPABILITIES_RESPONSE => {
                B::CapabilitiesResponse(CapabilitiesResponse::parse(&frame)?)
            }
            T::BALLOON_REQUEST => B::BalloonRequest(BalloonRequest::parse(&frame)?),
            T::UNBALLOON_REQUEST => B::UnballoonRequest(UnballoonRequest::parse(&frame)?),
            T::HOT_ADD_REQUEST => B::HotAddRequest(HotAddRequest::parse(&frame)?),
            T::INFO_MESSAGE => B::InfoMessage(InfoMessage::parse(&frame)?),
            T::HOT_REMOVE_REQUEST => B::HotRemoveRequest(HotRemoveRequest::parse(&frame)?),
            number => return Err(not_from_there(number)),
        };
        Ok(Self { transaction_id: frame.transaction_id, body })
    }
}

/// The error for a type that this direction does not have.
fn not_from_there(number: MessageType) -> ParseError {
    match number.info() {
        Some(_) => ParseError::WrongDirection { number },
        None => ParseError::UnknownType { number },
    }
}
