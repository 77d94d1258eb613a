//! Versions, offers, and where messages go.

use guest_model::vmbus::{Event, Post};
use proptest::prelude::*;
use vmbus::{
    OfferError, PostError,
    protocol::{ConnectionId, GuestMessage, Guid, HostMessage, Message, Version, VpIndex, wire},
};

use crate::pair::{OFFER, Pair, contact, contact_with_monitors};

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(&Version::KNOWN[..])
}

/// Posts a contact to the port that versions from 5.0 on use.
fn named(pair: &mut Pair, message: Message) -> Vec<HostMessage> {
    pair.post(Post { connection_id: ConnectionId::CONTACT_V5, message }).unwrap();
    pair.answers()
}

proptest! {
    #[test]
    fn the_newest_version_of_both_is_used(host in version(), guest in version()) {
        let mut pair = Pair::new(host, guest);
        pair.client.connect();
        prop_assert_eq!(pair.run(), [Event::Connected(host.min(guest))]);
        prop_assert_eq!(pair.server.version(), Some(host.min(guest)));
        let vp = if host.min(guest) >= Version::V3_0 { 3 } else { 0 };
        prop_assert_eq!(pair.message_vp, Some(VpIndex::new(vp)));
    }

    #[test]
    fn every_version_opens_and_reopens(version in version()) {
        let (mut pair, relid, gpadl, mut rings) = Pair::opened(version);
        pair.exchange(&mut rings);
        pair.client.close(relid);
        pair.client.teardown_gpadl(relid, gpadl);
        prop_assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl)]);
        let (_, mut rings) = pair.open(relid);
        pair.exchange(&mut rings);
    }
}

#[test]
fn a_host_below_5_0_has_no_port_4() {
    let mut pair = Pair::new(Version::V4_1, Version::V5_3);
    let message = contact(0x5_0003, 0, 2, 0);
    let post = Post { connection_id: ConnectionId::CONTACT_V5, message };
    let error = pair.post(post).unwrap_err();
    assert_eq!(error, PostError::UnknownConnection(ConnectionId::CONTACT_V5));
    assert_eq!(error.hypercall_status(), 18);
    assert_eq!(pair.server.faults().unknown_connections, 1);
}

#[test]
fn version_responses_are_the_bytes_of_the_protocol() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    for (version, expected) in [
        (0x2_0004, [0x0f, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 2, 0]),
        (0x4_0000, [0x0f, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 4, 0]),
        (0x5_0003, [0x0f, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]),
        (0x6_0000, [0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (0x4_0002, [0x0f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ] {
        let answers = pair.raw(contact(version, 0, 2, 0));
        let [HostMessage::VersionResponse(_)] = answers[..] else { panic!("{answers:?}") };
        assert_eq!(answers[0].emit().as_bytes(), expected, "{version:#x}");
    }
}

#[test]
fn a_refusal_goes_to_the_vp_of_its_contact() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    assert_eq!(pair.raw(contact(0x6_0000, 2, 2, 0)).len(), 1);
    assert_eq!(pair.message_vp, Some(VpIndex::new(2)));
    assert_eq!(pair.server.version(), None);
}

#[test]
fn a_vp_a_sint_or_a_vtl_that_is_not_there_is_refused() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    for refused in [
        contact(0x4_0000, 4, 0, 0),
        contact(0x4_0000, u32::MAX, 0, 0),
        contact(0x5_0003, 0, 3, 0),
        contact(0x5_0003, 0, 2, 1),
    ] {
        let answers = named(&mut pair, refused);
        let [HostMessage::VersionResponse(response)] = answers[..] else { panic!("{answers:?}") };
        assert_eq!((response.supported, pair.server.version()), (0, None));
        assert_eq!(pair.message_vp, Some(VpIndex::new(0)));
    }
    assert_eq!(pair.server.faults().contacts_refused, 4);
}

/// Older versions have other data in their places.
#[test]
fn a_sint_counts_from_5_0_on_and_a_vtl_from_5_1_on() {
    for (version, sint, vtl, accepted) in [
        (Version::V4_1, 3, 1, true),
        (Version::V5_0, 3, 0, false),
        (Version::V5_0, 2, 1, true),
        (Version::V5_1, 2, 1, false),
    ] {
        let mut pair = Pair::new(Version::V5_3, Version::V5_3);
        assert_eq!(named(&mut pair, contact(version.to_wire(), 0, sint, vtl)).len(), 1);
        let expected = accepted.then_some(version);
        assert_eq!(pair.server.version(), expected, "{version} sint {sint} vtl {vtl}");
    }
}

#[test]
fn the_old_port_names_no_sint_and_no_vtl() {
    for (sint, vtl) in [(0, 0), (0xff, 0xff), (2, 1)] {
        let mut pair = Pair::new(Version::V5_3, Version::V5_3);
        assert_eq!(pair.raw(contact(0x6_0000, 0, sint, vtl)).len(), 1);
        assert_eq!(pair.server.version(), None, "6.0 is refused for its version alone");
        assert_eq!(pair.raw(contact(0x5_0003, 0, sint, vtl)).len(), 1);
        assert_eq!(pair.server.version(), Some(Version::V5_3));
    }
}

#[test]
fn a_contact_for_another_sint_or_vtl_leaves_the_connection_alone() {
    let (mut pair, _, _, mut rings) = Pair::opened(Version::V5_3);
    for other in [contact(0x5_0003, 0, 3, 0), contact(0x5_0003, 0, 2, 1)] {
        assert_eq!(named(&mut pair, other), []);
    }
    assert_eq!(pair.server.version(), Some(Version::V5_3));
    assert_eq!(pair.server.faults().contacts_refused, 2);
    pair.exchange(&mut rings);
}

#[test]
fn one_monitor_page_alone_is_refused() {
    for (pages, accepted) in [([0x1000, 0], false), ([0, 0x1000], false), ([0, 0], true)] {
        let mut pair = Pair::new(Version::V5_3, Version::V5_3);
        assert_eq!(pair.raw(contact_with_monitors(0x4_0000, 0, 0, 0, pages)).len(), 1);
        assert_eq!(pair.server.version().is_some(), accepted, "{pages:?}");
    }
}

#[test]
fn a_version_below_3_0_names_no_vp() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    assert_eq!(pair.raw(contact(0x2_0004, u32::MAX, 0, 0)).len(), 1);
    assert_eq!(pair.server.version(), Some(Version::V2_4));
}

#[test]
fn an_offer_has_what_linux_needs() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    pair.client.connect();
    pair.run();
    pair.client.request_offers();
    let events = pair.run();
    let [Event::Offered(offer), Event::OffersDelivered] = events[..] else { panic!("{events:?}") };
    assert_eq!((offer.interface, offer.instance), (OFFER.interface, OFFER.instance));
    assert_eq!((offer.relid.get(), offer.connection_id.get()), (1, 0x1001));
    assert_eq!((offer.interrupt_flags.get(), offer.monitor_allocated), (1, 0));
    assert_eq!(offer.monitor_id, 0xff, "there is no monitor");
}

#[test]
fn all_offers_delivered_comes_also_without_devices() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    pair.server.rescind(pair.channel);
    pair.client.connect();
    pair.run();
    pair.client.request_offers();
    assert_eq!(pair.run(), [Event::OffersDelivered]);
}

#[test]
fn a_device_added_later_is_offered_at_once() {
    let (mut pair, _) = Pair::connected(Version::V5_3);
    let other = vmbus::Offer { instance: Guid::from_digits(2), ..OFFER };
    pair.server.offer(other).unwrap();
    let events = pair.run();
    let [Event::Offered(offer)] = events[..] else { panic!("{events:?}") };
    assert_eq!((offer.instance, offer.relid.get()), (other.instance, 2));
}

#[test]
fn a_device_is_offered_once() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    let error = pair.server.offer(OFFER).unwrap_err();
    assert!(matches!(error, OfferError::Duplicate { .. }));
}

#[test]
fn channels_are_limited() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    let more = (2..=vmbus::MAX_CHANNELS as u128)
        .map(|n| vmbus::Offer { instance: Guid::from_digits(n), ..OFFER });
    for offer in more {
        pair.server.offer(offer).unwrap();
    }
    let one_more = vmbus::Offer { instance: Guid::from_digits(0), ..OFFER };
    assert_eq!(pair.server.offer(one_more), Err(OfferError::TooMany));
    assert_eq!(pair.connect().get(), 128);
}

#[test]
fn nothing_but_a_contact_is_heard_before_one() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    assert_eq!(pair.raw(GuestMessage::RequestOffers.emit()), []);
    assert_eq!(pair.raw(GuestMessage::Unload.emit()), []);
    assert_eq!(pair.server.faults().out_of_state, 2);
}

#[test]
fn unknown_and_cut_off_messages_are_counted() {
    let (mut pair, _) = Pair::connected(Version::V4_0);
    let mut bytes = [0; 240];
    for number in [0, 1, 4, 22, 25, 29, 255] {
        bytes[0] = number;
        assert_eq!(pair.server.handle_message(ConnectionId::MESSAGE, &bytes), Ok(()));
    }
    assert_eq!(pair.server.faults().unknown_messages, 7);
    bytes[0] = 5;
    for len in [0, 7, 8, 147] {
        let error = pair.server.handle_message(ConnectionId::MESSAGE, &bytes[..len]).unwrap_err();
        assert_eq!(error.hypercall_status(), 3);
    }
    let error = pair.server.handle_message(ConnectionId::MESSAGE, &[0; 241]).unwrap_err();
    assert_eq!((error, error.hypercall_status()), (PostError::TooLong(241), 5));
    assert_eq!(pair.server.faults().malformed_messages, 5);
    assert_eq!(pair.answers(), []);
}

#[test]
fn sockets_are_refused_where_the_version_has_an_answer() {
    let request = GuestMessage::TlConnectRequest(wire::TlConnectRequest {
        endpoint: Guid::from_digits(7),
        service: Guid::from_digits(8),
    });
    for (version, expected) in
        [(Version::V4_0, &[][..]), (Version::V4_1, &[Event::SocketRefused][..])]
    {
        let (mut pair, _) = Pair::connected(version);
        pair.client.post(request.emit());
        assert_eq!(pair.run(), expected);
    }
}
