//! Malformed messages are refused with the right error.

use dynmem_protocol::*;

fn error(packet: &[u8]) -> ParseError {
    GuestMessage::parse(packet).unwrap_err()
}

fn number(wire: u16) -> MessageType {
    MessageType::from_wire(wire)
}

#[test]
fn a_packet_without_room_for_the_header() {
    assert_eq!(error(&[9, 0, 8, 0, 0, 0, 0]), ParseError::NoHeader { len: 7 });
}

#[test]
fn a_size_below_the_header_or_beyond_the_packet() {
    assert_eq!(error(&[9, 0, 7, 0, 0, 0, 0, 0]), ParseError::BadSize { size: 7, len: 8 });
    assert_eq!(error(&[9, 0, 9, 0, 0, 0, 0, 0]), ParseError::BadSize { size: 9, len: 8 });
}

#[test]
fn types_nobody_knows() {
    assert_eq!(error(&[0, 0, 8, 0, 0, 0, 0, 0]), ParseError::UnknownType { number: number(0) });
    assert_eq!(error(&[15, 0, 8, 0, 0, 0, 0, 0]), ParseError::UnknownType { number: number(15) });
}

#[test]
fn a_message_of_the_other_side() {
    let request = BalloonRequest { pages: page_range::PageCount::new(1) }.emit(0);
    assert_eq!(error(&request), ParseError::WrongDirection { number: number(6) });
    let response = UnballoonResponse.emit(0);
    assert_eq!(
        HostMessage::parse(&response),
        Err(ParseError::WrongDirection { number: number(9) })
    );
}

#[test]
fn a_body_that_the_packet_has_but_the_header_does_not_count() {
    let mut packet = [0; 48];
    packet[..4].copy_from_slice(&[5, 0, 47, 0]);
    assert_eq!(error(&packet), ParseError::TooShort { number: number(5), size: 47, needed: 48 });
}

#[test]
fn more_ranges_than_bytes() {
    let packet = [7, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
    let needed = 16 + 8 * u64::from(u32::MAX >> 1);
    assert_eq!(error(&packet), ParseError::TooShort { number: number(7), size: 16, needed });
}

#[test]
fn a_hot_add_request_between_its_two_forms() {
    let packet = [10, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(HostMessage::parse(&packet), Err(ParseError::HotAddForm { size: 20 }));
}

#[test]
fn padding_after_a_message_is_no_error() {
    let packet = [9, 0, 8, 0, 1, 0, 0, 0, 0xaa, 0xbb];
    let message = GuestMessage::parse(&packet).unwrap();
    assert_eq!(message.body, GuestBody::UnballoonResponse(UnballoonResponse));
}

#[test]
fn reserved_bits_are_ignored() {
    let packet = [2, 0, 16, 0, 1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    let message = HostMessage::parse(&packet).unwrap();
    assert_eq!(message.body, HostBody::VersionResponse(VersionResponse { is_accepted: false }));
}

#[test]
fn errors_say_what_came_and_what_was_needed() {
    let packet = [3, 0, 8, 0, 0, 0, 0, 0];
    assert_eq!(error(&packet).to_string(), "capabilities report of 8 bytes needs 32 bytes");
}
