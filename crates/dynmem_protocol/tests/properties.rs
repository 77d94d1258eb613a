//! Properties of parsing and emitting, for any bytes and any message.

use dynmem_protocol::*;
use page_range::{Gpfn, PageCount, PageRange};
use proptest::prelude::*;

/// Bytes that often look like a message: a plausible header, then anything.
fn packet() -> impl Strategy<Value = Vec<u8>> {
    (0..17_u16, 0..80_u16, any::<u32>(), prop::collection::vec(any::<u8>(), 0..80)).prop_map(
        |(number, size, id, body)| {
            let mut packet = number.to_le_bytes().to_vec();
            packet.extend(size.to_le_bytes());
            packet.extend(id.to_le_bytes());
            packet.extend(body);
            packet
        },
    )
}

fn range() -> impl Strategy<Value = PageRange> {
    (0..1_u64 << 39, 1..=MAX_RANGE_PAGES.get()).prop_map(|(start, count)| {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    })
}

fn list() -> impl Strategy<Value = RangeList> {
    prop::collection::vec(range(), 0..20).prop_map(|ranges| {
        let mut list = RangeList::new();
        ranges.into_iter().for_each(|range| list.push(range).unwrap());
        list
    })
}

fn pages() -> impl Strategy<Value = PageCount> {
    any::<u32>().prop_map(|pages| PageCount::new(pages.into()))
}

/// Reads every range, as a user of the message would.
fn visit(ranges: RangeWords<'_>) -> usize {
    ranges.iter().filter(|word| word.range().is_ok()).count()
}

fn touch(packet: &[u8]) {
    if let Ok(message) = GuestMessage::parse(packet) {
        let info = message.body.message_type().info().unwrap();
        assert_eq!(info.direction, Direction::ToHost);
        if let GuestBody::BalloonResponse(BalloonResponse { ranges, .. })
        | GuestBody::HotRemoveResponse(HotRemoveResponse { ranges, .. }) = message.body
        {
            assert!(visit(ranges) <= packet.len() / 8);
        }
    }
    if let Ok(HostMessage { body: HostBody::UnballoonRequest(request), .. }) =
        HostMessage::parse(packet)
    {
        assert!(visit(request.ranges) <= packet.len() / 8);
    }
}

fn assert_from_guest(packet: Vec<u8>, expected: GuestBody<'_>) {
    assert_eq!(GuestMessage::parse(&packet).unwrap().body, expected);
}

fn assert_from_host(packet: Vec<u8>, expected: HostBody<'_>) {
    assert!(packet.len() <= MAX_HOST_MESSAGE);
    assert_eq!(HostMessage::parse(&packet).unwrap().body, expected);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        packet in packet(),
    ) {
        touch(&bytes);
        touch(&packet);
    }

    #[test]
    fn a_range_word_is_what_it_was_made_from(range in range()) {
        prop_assert_eq!(RangeWord::new(range).unwrap().range(), Ok(range));
    }

    #[test]
    fn ids_survive(id in any::<u32>(), ranges in list()) {
        let from_guest = BalloonResponse::emit(id, false, &ranges);
        prop_assert_eq!(GuestMessage::parse(&from_guest).unwrap().transaction_id, id);
        let from_host = UnballoonRequest::emit(id, false, &ranges);
        prop_assert_eq!(HostMessage::parse(&from_host).unwrap().transaction_id, id);
    }

    #[test]
    fn a_buffer_used_again_holds_the_new_message_only(
        mut buffer in prop::collection::vec(any::<u8>(), 0..200),
        ranges in list(),
        id: u32,
    ) {
        UnballoonRequest::emit_into(id, true, &ranges, &mut buffer);
        prop_assert_eq!(&buffer, &UnballoonRequest::emit(id, true, &ranges));
        BalloonRequest { pages: ranges.pages() }.emit_into(id, &mut buffer);
        prop_assert_eq!(&buffer, &BalloonRequest { pages: ranges.pages() }.emit(id));
    }

    #[test]
    fn messages_with_ranges_survive(ranges in list(), more_pages: bool, result: u32) {
        let words = ranges.words();
        assert_from_guest(
            BalloonResponse::emit(0, more_pages, &ranges),
            GuestBody::BalloonResponse(BalloonResponse { more_pages, ranges: words }),
        );
        assert_from_host(
            UnballoonRequest::emit(0, more_pages, &ranges),
            HostBody::UnballoonRequest(UnballoonRequest { more_pages, ranges: words }),
        );
        assert_from_guest(
            HotRemoveResponse::emit(0, result, more_pages, &ranges),
            GuestBody::HotRemoveResponse(HotRemoveResponse { result, more_pages, ranges: words }),
        );
    }

    #[test]
    fn guest_messages_survive(
        version: u32, is_last_attempt: bool, words: [u64; 4], halves: [u32; 2], pages in pages(),
    ) {
        let version = VersionRequest { version: Version::from_wire(version), is_last_attempt };
        assert_from_guest(version.emit(0), GuestBody::VersionRequest(version));
        let report = CapabilitiesReport {
            capabilities: Capabilities::from_wire(words[0]),
            minimum_pages: PageCount::new(words[1]),
            highest_page: words[2],
        };
        assert_from_guest(report.emit(0), GuestBody::CapabilitiesReport(report));
        let status = StatusReport {
            available: PageCount::new(words[0]),
            committed: PageCount::new(words[1]),
            page_file: PageCount::new(words[2]),
            zero_and_free: PageCount::new(words[3]),
            page_file_writes: halves[0],
            io_difference: halves[1],
        };
        assert_from_guest(status.emit(0), GuestBody::StatusReport(status));
        let added = HotAddResponse { pages, result: HotAddResult::from_wire(halves[0]) };
        assert_from_guest(added.emit(0), GuestBody::HotAddResponse(added));
    }

    #[test]
    fn host_messages_survive(
        flags: [bool; 3], halves: [u32; 2], pages in pages(), range: u64, region: Option<u64>,
    ) {
        let version = VersionResponse { is_accepted: flags[0] };
        assert_from_host(version.emit(0), HostBody::VersionResponse(version));
        let capabilities = CapabilitiesResponse {
            is_accepted: flags[0],
            hot_remove: flags[1],
            suppress_pressure_reports: flags[2],
        };
        assert_from_host(capabilities.emit(0), HostBody::CapabilitiesResponse(capabilities));
        let balloon = BalloonRequest { pages };
        assert_from_host(balloon.emit(0), HostBody::BalloonRequest(balloon));
        let hot_add = HotAddRequest {
            range: RangeWord::from_wire(range),
            region: region.map(RangeWord::from_wire),
        };
        assert_from_host(hot_add.emit(0), HostBody::HotAddRequest(hot_add));
        let remove =
            HotRemoveRequest { virtual_node: halves[0], pages, qos_flags: halves[1] };
        assert_from_host(remove.emit(0), HostBody::HotRemoveRequest(remove));
        let info = InfoMessage::MaximumPageCount(pages);
        assert_from_host(info.emit(0), HostBody::InfoMessage(info));
        let other = InfoMessage::Other { kind: halves[0].max(1) };
        assert_from_host(other.emit(0), HostBody::InfoMessage(other));
    }
}
