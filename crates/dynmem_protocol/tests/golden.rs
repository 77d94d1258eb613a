//! Bytes checked by hand against the layouts of Linux `hv_balloon.c` and, for 13 and 14, QEMU
//! `dynmem-proto.h`. The handshake is what Linux 6.1 sends first after a boot.

use dynmem_protocol::*;
use page_range::{Gpfn, PageCount, PageRange};

const TWO_MIB: [u8; 8] = [0, 0, 0x10, 0, 0, 0, 2, 0];
const TWO_GIB: [u8; 8] = [0, 0, 0x44, 0, 0, 0, 0, 8];

fn two_mib() -> PageRange {
    PageRange::new(Gpfn::new(0x10_0000).unwrap(), PageCount::new(512)).unwrap()
}

fn two_gib() -> PageRange {
    PageRange::new(Gpfn::new(0x44_0000).unwrap(), PageCount::new(524_288)).unwrap()
}

fn list(ranges: &[PageRange]) -> RangeList {
    let mut list = RangeList::new();
    ranges.iter().for_each(|&range| list.push(range).unwrap());
    list
}

fn from_guest(bytes: &[u8]) -> (u32, GuestBody<'_>) {
    let message = GuestMessage::parse(bytes).unwrap();
    (message.transaction_id, message.body)
}

fn from_host(bytes: &[u8]) -> (u32, HostBody<'_>) {
    let message = HostMessage::parse(bytes).unwrap();
    (message.transaction_id, message.body)
}

#[test]
fn version_request() {
    let bytes = [1, 0, 16, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0];
    let message = VersionRequest { version: Version::V2_0, is_last_attempt: false };
    assert_eq!(message.emit(1), bytes);
    assert_eq!(from_guest(&bytes), (1, GuestBody::VersionRequest(message)));
}

#[test]
fn last_version_request() {
    let bytes = [1, 0, 16, 0, 3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0];
    let message = VersionRequest { version: Version::V0_3, is_last_attempt: true };
    assert_eq!(message.emit(3), bytes);
    assert_eq!(from_guest(&bytes), (3, GuestBody::VersionRequest(message)));
}

#[test]
fn version_response() {
    let bytes = [2, 0, 16, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let message = VersionResponse { is_accepted: true };
    assert_eq!(message.emit(1), bytes);
    assert_eq!(from_host(&bytes), (1, HostBody::VersionResponse(message)));
}

#[test]
fn capabilities_report() {
    let mut bytes = vec![3, 0, 32, 0, 2, 0, 0, 0, 0x1f, 0, 0, 0, 0, 0, 0, 0];
    bytes.extend([0; 8]);
    bytes.extend([0xff; 8]);
    let message = CapabilitiesReport {
        capabilities: Capabilities::BALLOON.union(Capabilities::HOT_ADD).with_hot_add_alignment(7),
        minimum_pages: PageCount::ZERO,
        highest_page: u64::MAX,
    };
    assert_eq!(message.emit(2), bytes);
    assert_eq!(from_guest(&bytes), (2, GuestBody::CapabilitiesReport(message)));
}

#[test]
fn capabilities_response() {
    let bytes = [4, 0, 16, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
    let message = CapabilitiesResponse {
        is_accepted: true,
        hot_remove: true,
        suppress_pressure_reports: true,
    };
    assert_eq!(message.emit(2), bytes);
    assert_eq!(from_host(&bytes), (2, HostBody::CapabilitiesResponse(message)));
}

#[test]
fn status_report() {
    let mut bytes = vec![5, 0, 48, 0, 9, 0, 0, 0];
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([5, 0, 0, 0, 6, 0, 0, 0]);
    let message = StatusReport {
        available: PageCount::new(1),
        committed: PageCount::new(2),
        page_file: PageCount::new(3),
        zero_and_free: PageCount::new(4),
        page_file_writes: 5,
        io_difference: 6,
    };
    assert_eq!(message.emit(9), bytes);
    assert_eq!(from_guest(&bytes), (9, GuestBody::StatusReport(message)));
}

#[test]
fn balloon_request() {
    let bytes = [6, 0, 16, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0];
    let message = BalloonRequest { pages: PageCount::new(262_144) };
    assert_eq!(message.emit(0), bytes);
    assert_eq!(from_host(&bytes), (0, HostBody::BalloonRequest(message)));
}

#[test]
fn balloon_response() {
    let mut bytes = vec![7, 0, 32, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0];
    bytes.extend(TWO_MIB);
    bytes.extend(TWO_GIB);
    let ranges = list(&[two_mib(), two_gib()]);
    assert_eq!(BalloonResponse::emit(4, true, &ranges), bytes);
    let expected = BalloonResponse { more_pages: true, ranges: ranges.words() };
    assert_eq!(from_guest(&bytes), (4, GuestBody::BalloonResponse(expected)));
}

#[test]
fn full_balloon_response() {
    let ranges = list(&[two_mib(); MAX_RANGES]);
    let mut bytes = BalloonResponse::emit(4, true, &ranges);
    assert_eq!(bytes.len(), 4080);
    assert_eq!(bytes[12..16], [0xf9, 3, 0, 0]);
    let expected = BalloonResponse { more_pages: true, ranges: ranges.words() };
    assert_eq!(from_guest(&bytes), (4, GuestBody::BalloonResponse(expected)));
    // A guest sends up to a page, without the packet's header.
    bytes.extend(TWO_MIB);
    bytes.extend(TWO_MIB);
    bytes[2..4].copy_from_slice(&4096_u16.to_le_bytes());
    bytes[12] = 0xfd;
    let GuestBody::BalloonResponse(response) = from_guest(&bytes).1 else { panic!("{bytes:?}") };
    assert_eq!(response.ranges.iter().count(), 510);
}

#[test]
fn unballoon_request() {
    let mut bytes = vec![8, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    bytes.extend(TWO_MIB);
    let ranges = list(&[two_mib()]);
    assert_eq!(UnballoonRequest::emit(0, false, &ranges), bytes);
    let expected = UnballoonRequest { more_pages: false, ranges: ranges.words() };
    assert_eq!(from_host(&bytes), (0, HostBody::UnballoonRequest(expected)));
}

#[test]
fn full_unballoon_request_is_as_long_as_a_host_message_may_be() {
    let ranges = list(&[two_mib(); MAX_RANGES]);
    let bytes = UnballoonRequest::emit(7, true, &ranges);
    assert_eq!(bytes.len(), MAX_HOST_MESSAGE);
    assert_eq!(bytes[8..16], [1, 0, 0, 0, 0xfc, 1, 0, 0]);
    let expected = UnballoonRequest { more_pages: true, ranges: ranges.words() };
    assert_eq!(from_host(&bytes), (7, HostBody::UnballoonRequest(expected)));
}

#[test]
fn unballoon_response() {
    let bytes = [9, 0, 8, 0, 11, 0, 0, 0];
    assert_eq!(UnballoonResponse.emit(11), bytes);
    assert_eq!(from_guest(&bytes), (11, GuestBody::UnballoonResponse(UnballoonResponse)));
}

#[test]
fn hot_add_request() {
    let mut bytes = vec![10, 0, 16, 0, 0, 0, 0, 0];
    bytes.extend(TWO_GIB);
    let message = HotAddRequest { range: RangeWord::new(two_gib()).unwrap(), region: None };
    assert_eq!(message.emit(0), bytes);
    assert_eq!(from_host(&bytes), (0, HostBody::HotAddRequest(message)));
}

#[test]
fn hot_add_request_with_region() {
    let mut bytes = vec![10, 0, 24, 0, 0, 0, 0, 0];
    bytes.extend(TWO_MIB);
    bytes.extend(TWO_GIB);
    let message = HotAddRequest {
        range: RangeWord::new(two_mib()).unwrap(),
        region: Some(RangeWord::new(two_gib()).unwrap()),
    };
    assert_eq!(message.emit(0), bytes);
    assert_eq!(from_host(&bytes), (0, HostBody::HotAddRequest(message)));
}

#[test]
fn hot_add_response() {
    let bytes = [11, 0, 16, 0, 8, 0, 0, 0, 0, 0, 8, 0, 1, 0, 0, 0];
    let message = HotAddResponse { pages: PageCount::new(524_288), result: HotAddResult::SUCCESS };
    assert_eq!(message.emit(8), bytes);
    assert_eq!(from_guest(&bytes), (8, GuestBody::HotAddResponse(message)));
}

#[test]
fn info_message() {
    let mut bytes = vec![12, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0];
    bytes.extend([0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0]);
    let message = InfoMessage::MaximumPageCount(PageCount::new(0x10_0000));
    assert_eq!(message.emit(0), bytes);
    assert_eq!(from_host(&bytes), (0, HostBody::InfoMessage(message)));
}

#[test]
fn hot_remove_request() {
    let bytes = [13, 0, 24, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0];
    let message = HotRemoveRequest { virtual_node: 1, pages: PageCount::new(512), qos_flags: 3 };
    assert_eq!(message.emit(0), bytes);
    assert_eq!(from_host(&bytes), (0, HostBody::HotRemoveRequest(message)));
}

#[test]
fn hot_remove_response() {
    let mut bytes = vec![14, 0, 32, 0, 5, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0];
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(TWO_MIB);
    let ranges = list(&[two_mib()]);
    assert_eq!(HotRemoveResponse::emit(5, 2, true, &ranges), bytes);
    let expected = HotRemoveResponse { result: 2, more_pages: true, ranges: ranges.words() };
    assert_eq!(from_guest(&bytes), (5, GuestBody::HotRemoveResponse(expected)));
}
