//! Opening, using, moving, closing and withdrawing channels.

use guest_model::vmbus::{Event, GuestRings};
use vmbus::{
    Offer,
    protocol::{ConnectionId, GpadlId, GuestMessage, HostMessage, Relid, Version, VpIndex, wire},
};

use crate::pair::{OFFER, Pair, pages};

#[test]
fn the_target_vp_of_open_is_used() {
    let (pair, ..) = Pair::opened(Version::V5_3);
    assert_eq!(pair.target_vp, Some(VpIndex::new(1)));
}

#[test]
fn a_guest_may_want_no_signals() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let gpadl = pair.client.create_gpadl(relid, &pages(10, 10));
    pair.client.open(relid, gpadl, 5, VpIndex::NONE);
    assert_eq!(pair.run(), [Event::GpadlCreated(gpadl, true), Event::Opened(relid, true)]);
    assert_eq!(pair.target_vp, None);
}

#[test]
fn opens_that_cannot_be_are_answered() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let gpadl = pair.client.create_gpadl(relid, &pages(10, 10));
    pair.run();
    let unknown = GpadlId::new(gpadl.get() + 1);
    for (gpadl, offset, vp) in
        [(unknown, 5, 0), (gpadl, 0, 0), (gpadl, 1, 0), (gpadl, 9, 0), (gpadl, 5, 4)]
    {
        pair.client.open(relid, gpadl, offset, VpIndex::new(vp));
        assert_eq!(pair.run(), [Event::Opened(relid, false)]);
    }
    let nobody = Relid::new(99);
    pair.client.open(nobody, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(nobody, false)]);
    assert_eq!(pair.server.faults().opens_refused, 6);
    assert_eq!(pair.server.faults().unknown_channels, 1);
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(relid, true)]);
}

#[test]
fn a_driver_that_cannot_open_fails_the_open() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let pages = pages(10, 10);
    let gpadl = pair.client.create_gpadl(relid, &pages);
    pair.run();
    let garbage = vec![0xff; 4096];
    vmbus::GuestMemory::write(&*pair.mem, pages[0].gpa(), &garbage).unwrap();
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(relid, false)]);
    pair.client.teardown_gpadl(relid, gpadl);
    assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl)]);
    let (_, mut rings) = pair.open(relid);
    pair.exchange(&mut rings);
}

#[test]
fn an_open_channel_cannot_be_opened() {
    let (mut pair, relid, gpadl, mut rings) = Pair::opened(Version::V5_3);
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(relid, false)]);
    pair.exchange(&mut rings);
}

#[test]
fn packets_wrap_and_fill_the_ring() {
    let (mut pair, _, _, mut guest) = Pair::opened(Version::V5_3);
    let host = pair.rings.as_mut().unwrap();
    for round in 0..100 {
        let payload = vec![u8::try_from(round).unwrap(); 4096];
        assert_eq!(guest.send(&payload, round), Ok(true));
        assert_eq!(guest.send(&payload, round), Ok(false));
        assert_eq!(guest.send(&payload, round), Ok(false));
        assert!(guest.send(&payload, round).is_err());
        assert!(guest.send_or_wait(&[0; 9000], round).is_err());
        assert_eq!(host.receive().unwrap().unwrap().payload, payload);
        assert!(host.end_receive(), "the guest is waiting for room");
        assert_eq!(guest.send_or_wait(&[0; 9000], round), Ok(false), "there is room");
        let lengths = [(); 3].map(|()| host.receive().unwrap().unwrap().payload.len());
        assert_eq!(lengths, [4096, 4096, 9000]);
        assert_eq!(host.receive(), Ok(None));
        assert!(!host.end_receive());
    }
}

#[test]
fn a_full_ring_asks_the_guest_to_signal() {
    let (mut pair, _, _, mut guest) = Pair::opened(Version::V5_3);
    let host = pair.rings.as_mut().unwrap();
    for _ in 0..3 {
        host.send(&[7; 4096], 0).unwrap();
    }
    assert_eq!(host.send(&[8; 9000], 0), Ok(vmbus::ring::Sent::Full));
    let signals: Vec<_> = (0..3).map(|_| guest.receive().unwrap().signal).collect();
    assert_eq!(signals, [false, true, false]);
    assert_eq!(host.send(&[8; 9000], 0), Ok(vmbus::ring::Sent::Written { signal: true }));
    assert_eq!(guest.receive().unwrap().payload, [8; 9000]);
}

#[test]
fn closing_stops_the_device_before_the_pages_go_back() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.close(relid);
    pair.client.teardown_gpadl(relid, gpadl);
    assert_eq!(pair.run(), []);
    assert!(pair.rings.is_none());
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl)]);
}

#[test]
fn tearing_the_ring_down_closes_first() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.teardown_gpadl(relid, gpadl);
    assert_eq!(pair.run(), []);
    assert_eq!(pair.closing, [pair.channel]);
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl)]);
}

#[test]
fn rings_of_a_channel_that_is_given_up_are_torn_down_when_it_has_closed() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.server.rescind(pair.channel);
    pair.client.release(relid);
    pair.client.teardown_gpadl(relid, gpadl);
    assert_eq!(pair.run(), [Event::Rescinded(relid)]);
    assert_eq!(pair.closing, [pair.channel]);
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl)]);
}

#[test]
fn a_channel_opened_while_it_closes_opens_afterwards() {
    let (mut pair, relid, _, _) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.close(relid);
    let other = pair.client.create_gpadl(relid, &pages(30, 8));
    assert_eq!(pair.run(), [Event::GpadlCreated(other, true)]);
    let mut rings = GuestRings::new(pair.mem.clone(), &pages(30, 8), 4);
    pair.client.open(relid, other, 4, VpIndex::new(0));
    assert_eq!(pair.run(), []);
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::Opened(relid, true)]);
    pair.exchange(&mut rings);
}

#[test]
fn a_reopen_of_rings_that_were_torn_down_fails() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.close(relid);
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    pair.client.teardown_gpadl(relid, gpadl);
    assert_eq!(pair.run(), []);
    pair.finish_closing();
    assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl), Event::Opened(relid, false)]);
}

#[test]
fn an_open_that_is_taken_back_before_the_driver_has_opened_fails() {
    for take_back in [close, teardown] {
        let (mut pair, relid) = Pair::connected(Version::V5_3);
        let gpadl = pair.client.create_gpadl(relid, &pages(10, 10));
        pair.run();
        for message in [open(relid, gpadl), take_back(relid, gpadl)] {
            pair.server.handle_message(ConnectionId::MESSAGE, message.emit().as_bytes()).unwrap();
        }
        let actions: Vec<_> = std::iter::from_fn(|| pair.server.poll_channel_action()).collect();
        assert!(matches!(actions[..], [vmbus::Action::Open { .. }, vmbus::Action::Close { .. }]));
        let answers = pair.answers();
        let [HostMessage::OpenResult(result)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((result.open_id.get(), result.status.get()), (7, wire::STATUS_FAILURE));
        pair.server.open_finished(pair.channel, true);
        assert_eq!(pair.answers(), [], "one result for each open");
        pair.server.close_finished(pair.channel);
        pair.answers();
        let (_, mut rings) = pair.open(relid);
        pair.exchange(&mut rings);
    }
}

#[test]
fn a_reopen_that_is_taken_back_fails() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.client.close(relid);
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), []);
    pair.client.close(relid);
    assert_eq!(pair.run(), [Event::Opened(relid, false)]);
    pair.finish_closing();
    assert_eq!(pair.run(), []);
}

fn open(relid: Relid, gpadl: GpadlId) -> GuestMessage {
    GuestMessage::Open(wire::Open {
        relid: relid.get().into(),
        open_id: 7.into(),
        ring_gpadl: gpadl.get().into(),
        target_vp: 0.into(),
        downstream_offset: 5.into(),
        user_data: [0; 120],
    })
}

fn close(relid: Relid, _: GpadlId) -> GuestMessage {
    GuestMessage::Close(wire::Channel { relid: relid.get().into() })
}

fn teardown(relid: Relid, gpadl: GpadlId) -> GuestMessage {
    let (relid, gpadl) = (relid.get().into(), gpadl.get().into());
    GuestMessage::GpadlTeardown(wire::GpadlTeardown { relid, gpadl })
}

#[test]
fn modify_channel_is_answered_from_5_3_on() {
    for (version, answered) in
        [(Version::V4_1, false), (Version::V5_2, false), (Version::V5_3, true)]
    {
        let (mut pair, relid, ..) = Pair::opened(version);
        pair.client.modify(relid, VpIndex::new(2));
        assert_eq!(pair.run().contains(&Event::Modified(relid, true)), answered);
        assert_eq!(pair.target_vp, Some(VpIndex::new(2)));
        for vp in [VpIndex::new(4), VpIndex::NONE] {
            pair.client.modify(relid, vp);
            assert_eq!(pair.run().contains(&Event::Modified(relid, false)), answered);
        }
        assert_eq!(pair.target_vp, Some(VpIndex::new(2)));
        assert_eq!(pair.server.faults().changes_refused, 2);
    }
}

#[test]
fn a_closed_channel_has_no_vp_to_modify() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    pair.client.modify(relid, VpIndex::new(2));
    assert_eq!(pair.run(), [Event::Modified(relid, false)]);
}

#[test]
fn a_channel_opened_without_interrupts_has_no_vp_to_modify() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let gpadl = pair.client.create_gpadl(relid, &pages(10, 10));
    pair.client.open(relid, gpadl, 5, VpIndex::NONE);
    pair.run();
    pair.client.modify(relid, VpIndex::new(2));
    assert_eq!(pair.run(), [Event::Modified(relid, false)]);
    assert_eq!((pair.target_vp, pair.server.faults().changes_refused), (None, 1));
}

#[test]
fn targets_that_the_driver_does_not_take_do_not_pile_up() {
    let (mut pair, relid, ..) = Pair::opened(Version::V4_1);
    let modify = |vp: u32| wire::ModifyChannel { relid: relid.get().into(), target_vp: vp.into() };
    for vp in [0, 1, 2, 3] {
        let bytes = GuestMessage::ModifyChannel(modify(vp)).emit();
        pair.server.handle_message(ConnectionId::MESSAGE, bytes.as_bytes()).unwrap();
    }
    let channel = pair.channel;
    let expected = vmbus::Action::SetTargetVp { channel, target_vp: VpIndex::new(3) };
    assert_eq!(pair.server.poll_action(), Some(expected));
    assert_eq!(pair.server.poll_action(), None);
}

#[test]
fn a_rescinded_channel_winds_up_and_frees_its_relid() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.server.rescind(pair.channel);
    assert_eq!(pair.run(), [Event::Rescinded(relid)]);
    assert!(pair.rings.is_none());
    let other = pair.server.offer(Offer { instance: OFFER.interface, ..OFFER }).unwrap();
    let events = pair.run();
    let [Event::Offered(offer)] = events[..] else { panic!("{events:?}") };
    assert_ne!(offer.relid.get(), relid.get(), "the guest still has the relid");
    pair.client.close(relid);
    pair.client.teardown_gpadl(relid, gpadl);
    pair.client.release(relid);
    assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl)]);
    assert_eq!(pair.server.faults(), &vmbus::Faults::default());
    pair.server.rescind(other);
    pair.server.offer(OFFER).unwrap();
    let events = pair.run();
    let [Event::Rescinded(_), Event::Offered(offer)] = events[..] else { panic!("{events:?}") };
    assert_eq!(offer.relid.get(), relid.get(), "it is free again");
}

#[test]
fn a_device_that_comes_back_is_offered_when_the_old_one_is_released() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    pair.server.rescind(pair.channel);
    pair.server.offer(OFFER).unwrap();
    assert_eq!(pair.run(), [Event::Rescinded(relid)]);
    pair.client.release(relid);
    let events = pair.run();
    let [Event::Offered(offer)] = events[..] else { panic!("{events:?}") };
    assert_eq!(offer.instance, OFFER.instance);
}

#[test]
fn an_open_of_a_rescinded_channel_is_not_answered() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let gpadl = pair.client.create_gpadl(relid, &pages(10, 10));
    pair.run();
    pair.server.rescind(pair.channel);
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Rescinded(relid)]);
    pair.client.teardown_gpadl(relid, gpadl);
    assert_eq!(pair.run(), [Event::GpadlTorndown(gpadl)]);
}

#[test]
fn a_relid_released_while_its_device_closes_is_free_only_afterwards() {
    let (mut pair, relid, ..) = Pair::opened(Version::V5_3);
    pair.slow_device = true;
    pair.server.rescind(pair.channel);
    pair.client.release(relid);
    assert_eq!(pair.run(), [Event::Rescinded(relid)]);
    pair.server.offer(OFFER).unwrap();
    let events = pair.run();
    let [Event::Offered(offer)] = events[..] else { panic!("{events:?}") };
    assert_ne!(offer.relid.get(), relid.get());
    pair.finish_closing();
    assert_eq!(pair.run(), []);
}

#[test]
fn a_device_that_the_guest_does_not_want_is_offered_to_the_next() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    pair.client.release(relid);
    pair.client.open(relid, GpadlId::new(1), 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(relid, false)]);
    assert_eq!(pair.connect(), relid);
}

#[test]
fn the_relid_of_an_open_channel_cannot_be_released() {
    let (mut pair, relid, _, mut rings) = Pair::opened(Version::V5_3);
    pair.client.release(relid);
    pair.run();
    assert_eq!(pair.server.faults().out_of_state, 1);
    pair.exchange(&mut rings);
}

#[test]
fn reserved_channels_are_refused() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let relid = zerocopy::little_endian::U32::new(relid.get());
    let (target_vp, target_sint) = (0.into(), 2.into());
    let open = wire::OpenReserved {
        relid,
        target_vp,
        target_sint,
        ring_gpadl: 1.into(),
        downstream_offset: 5.into(),
    };
    let answers = pair.raw(GuestMessage::OpenReserved(open).emit());
    let [HostMessage::OpenResult(result)] = answers[..] else { panic!("{answers:?}") };
    assert_ne!(result.status.get(), 0);
    let close = wire::CloseReserved { relid, target_vp, target_sint };
    let answers = pair.raw(GuestMessage::CloseReserved(close).emit());
    assert!(matches!(answers[..], [HostMessage::CloseReservedResponse(_)]));
}

#[test]
fn a_channel_is_reopened_only_within_a_connection() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    assert!(!pair.is_reopened);
    for _ in 0..2 {
        pair.client.close(relid);
        pair.client.open(relid, gpadl, 5, VpIndex::new(0));
        assert_eq!(pair.run(), [Event::Opened(relid, true)]);
        assert!(pair.is_reopened);
    }
    // Another kernel, or another firmware, connects.
    let relid = pair.connect();
    pair.open(relid);
    assert!(!pair.is_reopened);
}
