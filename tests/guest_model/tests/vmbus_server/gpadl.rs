//! GPADLs: lending pages to the host.

use guest_model::vmbus::{Event, GuestRings};
use page_range::Gpfn;
use vmbus::{
    MAX_GPADL_PAGES, MAX_GPADLS,
    protocol::{GpadlId, GuestMessage, HostMessage, Relid, Version, VpIndex, wire},
};

use crate::pair::{MEMORY_PAGES, Pair, pages};

/// The longest possible list, in bytes.
const LONGEST: u16 = 65_528;

fn header(relid: Relid, gpadl: u32, buflen: u16, words: &[u64]) -> vmbus::protocol::Message {
    let mut message = GuestMessage::GpadlHeader(wire::GpadlHeader {
        relid: relid.get().into(),
        gpadl: gpadl.into(),
        range_buflen: buflen.into(),
        range_count: 1.into(),
    })
    .emit();
    for word in words {
        message.append(&word.to_le_bytes()).unwrap();
    }
    message
}

fn body(gpadl: u32, words: &[u64]) -> vmbus::protocol::Message {
    let body = wire::GpadlBody { message_number: 0.into(), gpadl: gpadl.into() };
    let mut message = GuestMessage::GpadlBody(body).emit();
    for word in words {
        message.append(&word.to_le_bytes()).unwrap();
    }
    message
}

/// The statuses of the GPADL_CREATED messages; there must be no others.
fn statuses(answers: &[HostMessage]) -> Vec<bool> {
    let status = |answer: &HostMessage| match answer {
        HostMessage::GpadlCreated(created) => created.status.get() == 0,
        other => panic!("{other:?}"),
    };
    answers.iter().map(status).collect()
}

#[test]
fn a_list_over_many_messages_makes_rings() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let pages: Vec<_> = pages(1, 900).into_iter().rev().collect();
    let gpadl = pair.client.create_gpadl(relid, &pages);
    assert_eq!(pair.run(), [Event::GpadlCreated(gpadl, true)]);
    let mut rings = GuestRings::new(pair.mem.clone(), &pages, 300);
    pair.client.open(relid, gpadl, 300, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(relid, true)]);
    pair.exchange(&mut rings);
}

#[test]
fn pages_at_the_limit_are_refused() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let gpadl = pair.client.create_gpadl(relid, &pages(MEMORY_PAGES - 1, 2));
    assert_eq!(pair.run(), [Event::GpadlCreated(gpadl, false)]);
    let gpadl = pair.client.create_gpadl(relid, &pages(MEMORY_PAGES - 1, 1));
    assert_eq!(pair.run(), [Event::GpadlCreated(gpadl, true)]);
}

#[test]
fn an_id_in_use_is_refused() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    assert_eq!(statuses(&pair.raw(header(relid, 5, 16, &[0x1000, 1]))), [true]);
    assert_eq!(statuses(&pair.raw(header(relid, 5, 16, &[0x1000, 2]))), [false]);
    assert_eq!(statuses(&pair.raw(header(relid, 6, 24, &[0x2000, 1]))), []);
    assert_eq!(statuses(&pair.raw(header(relid, 6, 16, &[0x1000, 2]))), [false]);
    assert_eq!(statuses(&pair.raw(body(6, &[2]))), [true]);
}

#[test]
fn bodies_that_nobody_waits_for_are_counted() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    pair.raw(header(relid, 5, 16, &[0x1000, 1]));
    assert_eq!(pair.raw(body(5, &[2, 3])), [], "after completion");
    assert_eq!(pair.raw(body(6, &[2])), [], "unknown");
    assert_eq!(pair.server.faults().unknown_gpadls, 2);
}

#[test]
fn a_gpadl_for_no_channel_is_answered() {
    let (mut pair, _) = Pair::connected(Version::V5_3);
    assert_eq!(statuses(&pair.raw(header(Relid::new(77), 5, 16, &[0x1000, 1]))), [false]);
    assert_eq!(pair.server.faults().gpadls_refused, 1);
}

#[test]
fn a_teardown_of_nothing_is_answered() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let unknown = GpadlId::new(99);
    pair.client.teardown_gpadl(relid, unknown);
    assert_eq!(pair.run(), [Event::GpadlTorndown(unknown)]);
}

#[test]
fn a_channel_being_withdrawn_takes_gpadls_until_it_is_released() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    pair.server.rescind(pair.channel);
    assert_eq!(pair.run(), [Event::Rescinded(relid)]);
    let answers = pair.raw(header(relid, 10, 16, &[0x1000, 1]));
    assert_eq!(statuses(&answers), [true]);
    pair.client.teardown_gpadl(relid, GpadlId::new(10));
    assert_eq!(pair.run(), [Event::GpadlTorndown(GpadlId::new(10))]);
    pair.client.release(relid);
    pair.run();
    let answers = pair.raw(header(relid, 11, 16, &[0x1000, 1]));
    assert_eq!(statuses(&answers), [false], "the relid was released");
}

#[test]
fn a_gpadl_is_torn_down_by_its_own_channel_only() {
    let (mut pair, relid, gpadl, mut rings) = Pair::opened(Version::V5_3);
    let other = pair.client.create_gpadl(relid, &pages(40, 2));
    assert_eq!(pair.run(), [Event::GpadlCreated(other, true)]);
    for gpadl in [gpadl, other] {
        pair.client.teardown_gpadl(Relid::new(77), gpadl);
        assert_eq!(pair.run(), []);
    }
    assert_eq!(pair.server.faults().unknown_gpadls, 2);
    pair.exchange(&mut rings);
    pair.client.teardown_gpadl(relid, other);
    pair.client.teardown_gpadl(relid, gpadl);
    assert_eq!(pair.run(), [Event::GpadlTorndown(other), Event::GpadlTorndown(gpadl)]);
}

#[test]
fn a_half_built_gpadl_can_be_torn_down() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    pair.raw(header(relid, 5, 24, &[0x2000, 1]));
    pair.client.teardown_gpadl(relid, GpadlId::new(5));
    assert_eq!(pair.run(), [Event::GpadlTorndown(GpadlId::new(5))]);
    assert_eq!(statuses(&pair.raw(header(relid, 5, 16, &[0x1000, 1]))), [true]);
}

#[test]
fn rings_must_be_one_range_of_whole_pages() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    assert_eq!(statuses(&pair.raw(header(relid, 5, 48, &[0x4fff, 1, 2, 3, 4, 5]))), [true]);
    pair.client.open(relid, GpadlId::new(5), 2, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::Opened(relid, false)]);
}

#[test]
fn the_number_of_gpadls_is_limited() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let limit = u32::try_from(MAX_GPADLS).unwrap();
    for id in 0..limit {
        assert_eq!(statuses(&pair.raw(header(relid, id, 16, &[0x1000, 1]))), [true]);
    }
    assert_eq!(statuses(&pair.raw(header(relid, limit, 16, &[0x1000, 1]))), [false]);
    pair.client.teardown_gpadl(relid, GpadlId::new(0));
    pair.run();
    assert_eq!(statuses(&pair.raw(header(relid, limit, 16, &[0x1000, 1]))), [true]);
}

#[test]
fn announced_pages_count_against_the_limit() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let words = usize::from(u16::MAX / 8);
    let fit = u32::try_from(MAX_GPADL_PAGES / words).unwrap();
    for id in 0..fit {
        assert_eq!(statuses(&pair.raw(header(relid, id, LONGEST, &[0x1000]))), []);
    }
    assert_eq!(statuses(&pair.raw(header(relid, fit, LONGEST, &[0x1000]))), [false]);
    pair.client.teardown_gpadl(relid, GpadlId::new(0));
    pair.run();
    assert_eq!(statuses(&pair.raw(header(relid, fit, LONGEST, &[0x1000]))), []);
}

#[test]
fn a_page_listed_twice_does_no_harm() {
    let (mut pair, relid) = Pair::connected(Version::V5_3);
    let same = vec![Gpfn::new(40).unwrap(); 10];
    let gpadl = pair.client.create_gpadl(relid, &same);
    pair.client.open(relid, gpadl, 5, VpIndex::new(0));
    assert_eq!(pair.run(), [Event::GpadlCreated(gpadl, true), Event::Opened(relid, true)]);
    let host = pair.rings.as_mut().unwrap();
    let _ = host.send(&[0xff; 4096], 0);
    let _ = host.receive();
    let _ = host.end_receive();
}
