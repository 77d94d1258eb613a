//! The ways in which a connection ends, leaving nothing behind for the next one.

use guest_model::vmbus::{Event, Post};
use vmbus::{
    PostError,
    protocol::{ConnectionId, GuestMessage, HostMessage, Version, VpIndex, wire},
};

use crate::pair::{Pair, contact};

fn teardown_of_nothing() -> Post {
    let teardown = wire::GpadlTeardown { relid: 1.into(), gpadl: 1.into() };
    let message = GuestMessage::GpadlTeardown(teardown).emit();
    Post { connection_id: ConnectionId::MESSAGE, message }
}

#[test]
fn unload_is_answered_when_the_devices_are_quiet() {
    let (mut pair, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.unload();
    assert_eq!(pair.run(), []);
    assert_eq!((pair.rings.is_none(), pair.server.version()), (true, None));
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::Unloaded]);
    assert_eq!(pair.message_vp, Some(VpIndex::new(3)));
}

#[test]
fn a_guest_comes_back_after_unload() {
    let (mut pair, relid, ..) = Pair::opened(Version::V5_3);
    pair.client.unload();
    assert_eq!(pair.run(), [Event::Unloaded]);
    assert_eq!(pair.connect(), relid, "the device keeps its relid");
    let (_, mut rings) = pair.open(relid);
    pair.exchange(&mut rings);
}

#[test]
fn a_contact_ends_the_connection_before_it() {
    let (mut pair, relid, ..) = Pair::opened(Version::V4_0);
    pair.slow_device = true;
    pair.client.connect();
    assert_eq!(pair.run(), []);
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::Connected(Version::V4_0)]);
    pair.slow_device = false;
    pair.client.request_offers();
    assert!(matches!(pair.run()[..], [Event::Offered(_), Event::OffersDelivered]));
    let (_, mut rings) = pair.open(relid);
    pair.exchange(&mut rings);
}

#[test]
fn the_last_contact_before_the_answer_counts() {
    let (mut pair, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.connect();
    pair.run();
    assert_eq!(pair.raw(contact(Version::V3_0.to_wire(), 1, 0, 0)), []);
    pair.finish_closing();
    assert!(matches!(pair.answers()[..], [HostMessage::VersionResponse(_)]));
    assert_eq!(pair.server.version(), Some(Version::V3_0));
    assert_eq!(pair.message_vp, Some(VpIndex::new(1)));
}

#[test]
fn unload_while_a_contact_waits_is_answered_alone() {
    let (mut pair, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.connect();
    pair.run();
    pair.client.unload();
    pair.run();
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::Unloaded]);
}

/// A crashing kernel waits for the answer to UNLOAD no longer than it likes, and the next one connects.
#[test]
fn a_contact_from_the_next_kernel_takes_the_place_of_an_unload_that_waits() {
    let (mut pair, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.unload();
    assert_eq!(pair.run(), []);
    pair.client.connect();
    assert_eq!(pair.run(), []);
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::Connected(Version::V5_3)]);
}

#[test]
fn unload_while_a_refusal_waits_is_answered_alone() {
    let (mut pair, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    assert_eq!(pair.raw(contact(0x6_0000, 0, 2, 0)), []);
    pair.client.unload();
    assert_eq!(pair.run(), []);
    pair.finish_closing();
    assert_eq!(pair.answers(), [HostMessage::UnloadResponse]);
}

#[test]
fn unload_drops_older_messages() {
    let (mut pair, ..) = Pair::opened(Version::V5_3);
    pair.guest_reads = false;
    for _ in 0..5 {
        pair.post(teardown_of_nothing()).unwrap();
        pair.act();
    }
    pair.client.unload();
    pair.run();
    assert_eq!(pair.answers(), [HostMessage::UnloadResponse]);
}

#[test]
fn a_guest_that_takes_no_messages_is_told_to_wait_but_may_leave() {
    let (mut pair, _) = Pair::connected(Version::V5_3);
    for _ in 0..vmbus::MAX_QUEUED_MESSAGES {
        assert!(pair.server.can_accept());
        pair.post(teardown_of_nothing()).unwrap();
    }
    assert!(!pair.server.can_accept());
    let error = pair.post(teardown_of_nothing()).unwrap_err();
    assert_eq!((error, error.hypercall_status()), (PostError::QueueFull, 19));
    assert_eq!(pair.raw(GuestMessage::Unload.emit()), [HostMessage::UnloadResponse]);
}

#[test]
fn channels_close_even_when_no_message_is_taken() {
    let (mut pair, relid, ..) = Pair::opened(Version::V5_3);
    pair.post(teardown_of_nothing()).unwrap();
    pair.client.close(relid);
    let post = pair.client.poll_post().unwrap();
    pair.post(post).unwrap();
    let action = pair.server.poll_channel_action();
    assert_eq!(action, Some(vmbus::Action::Close { channel: pair.channel }));
    assert_eq!(pair.server.poll_channel_action(), None);
}

#[test]
fn pages_of_the_last_connection_are_unknown_to_the_next() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.connect();
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(relid, false)]);
}

#[test]
fn a_rescinded_channel_is_gone_after_a_contact() {
    let (mut pair, relid, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.server.rescind(pair.channel);
    pair.run();
    pair.client.connect();
    pair.run();
    pair.finish_closing();
    pair.run();
    pair.client.request_offers();
    assert_eq!(pair.run(), [Event::OffersDelivered]);
    assert!(pair.server.offer(crate::pair::OFFER).is_ok());
    let events = pair.run();
    let [Event::Offered(offer)] = events[..] else { panic!("{events:?}") };
    assert_eq!(offer.relid.get(), relid.get());
}

#[test]
fn reset_closes_channels_and_answers_nobody() {
    let (mut pair, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.server.reset();
    assert_eq!(pair.run(), []);
    assert_eq!(pair.closing, [pair.channel]);
    pair.client.connect();
    assert_eq!(pair.run(), [], "the next guest waits for the device too");
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::Connected(Version::V5_3)]);
}

#[test]
fn reset_of_an_idle_bus_changes_nothing() {
    let mut pair = Pair::new(Version::V5_3, Version::V5_3);
    pair.server.reset();
    pair.connect();
}
