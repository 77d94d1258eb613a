//! Dynamic Memory messages: parsing yields the encoded values, and emitting yields the same bytes
//! again.

use dynmem_protocol::*;
use page_range::Gpfn;

/// Parses `packet`.
pub(crate) fn run(packet: &[u8]) {
    if let Ok(message) = GuestMessage::parse(packet) {
        let info = message.body.message_type().info().unwrap();
        assert_eq!(info.direction, Direction::ToHost);
        from_guest(message, packet);
        assert!(HostMessage::parse(packet).is_err(), "a message of both directions");
    }
    if let Ok(message) = HostMessage::parse(packet) {
        from_host(message, packet);
    }
}

/// The list of these words, if each of them is a range; otherwise they cannot be emitted.
fn list(words: RangeWords<'_>, packet: &[u8]) -> Option<RangeList> {
    assert!(words.len() <= packet.len() / 8, "more ranges than bytes");
    assert_eq!(words.iter().count(), words.len());
    let mut list = RangeList::new();
    let mut is_whole = true;
    for word in words.iter() {
        match word.range() {
            Ok(range) => {
                assert!(!range.count().is_zero() && range.end() <= Gpfn::MAX);
                assert_eq!(RangeWord::new(range), Ok(word));
                is_whole &= list.push(range).is_ok();
            }
            Err(_) => is_whole = false,
        }
    }
    is_whole.then_some(list)
}

fn from_guest(message: GuestMessage<'_>, packet: &[u8]) {
    let id = message.transaction_id;
    let again = match message.body {
        GuestBody::VersionRequest(body) => body.emit(id),
        GuestBody::CapabilitiesReport(body) => body.emit(id),
        GuestBody::StatusReport(body) => body.emit(id),
        GuestBody::UnballoonResponse(body) => body.emit(id),
        GuestBody::HotAddResponse(body) => body.emit(id),
        GuestBody::BalloonResponse(body) => match list(body.ranges, packet) {
            Some(list) => BalloonResponse::emit(id, body.more_pages, &list),
            None => return,
        },
        GuestBody::HotRemoveResponse(body) => match list(body.ranges, packet) {
            Some(list) => HotRemoveResponse::emit(id, body.result, body.more_pages, &list),
            None => return,
        },
    };
    assert_eq!(GuestMessage::parse(&again), Ok(message));
}

fn from_host(message: HostMessage<'_>, packet: &[u8]) {
    let id = message.transaction_id;
    let again = match message.body {
        HostBody::VersionResponse(body) => body.emit(id),
        HostBody::CapabilitiesResponse(body) => body.emit(id),
        HostBody::BalloonRequest(body) => body.emit(id),
        HostBody::HotAddRequest(body) => body.emit(id),
        HostBody::InfoMessage(body) => body.emit(id),
        HostBody::HotRemoveRequest(body) => body.emit(id),
        HostBody::UnballoonRequest(body) => match list(body.ranges, packet) {
            Some(list) => UnballoonRequest::emit(id, body.more_pages, &list),
            None => return,
        },
    };
    assert!(again.len() <= MAX_HOST_MESSAGE);
    assert_eq!(HostMessage::parse(&again), Ok(message));
}
