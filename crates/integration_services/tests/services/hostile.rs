//! Guests that break the rules.

use guest_model::services::ServiceDriver;
use integration_services::protocol::{
    HeartbeatBody, Message, MessageType, Negotiation, Version, flags,
};
use integration_services::{
    BATCH, Contact, Fault, Heartbeat, HeartbeatKind, NotReady, Notice, ShutdownKind,
};
use proptest::prelude::*;
use vmbus::ring::RingError;
use vmbus::{ChannelEvent, ChannelOutput, VmbusDevice};

use crate::pair::{Memory, Pair, seconds};

const ANSWER: Message<'_> = Message {
    framework: Version::new(3, 0),
    message_type: MessageType::HEARTBEAT,
    version: Version::new(3, 0),
    status: 0,
    transaction: 1,
    flags: flags::TRANSACTION | flags::RESPONSE,
    body: &[],
};

fn faults(pair: &mut Pair<HeartbeatKind>, packet: &[u8]) -> Vec<Fault> {
    pair.guest.rings.send(packet, 0).unwrap();
    pair.service.handle(pair.now, ChannelEvent::Signalled);
    pair.take_outputs();
    pair.notices()
        .into_iter()
        .filter_map(|notice| match notice {
            Notice::Fault(fault) => Some(fault),
            _ => None,
        })
        .collect()
}

#[test]
fn what_answers_nothing_is_a_fault_and_changes_nothing() {
    let mut pair = Pair::<HeartbeatKind>::ready();
    let message_type = MessageType::HEARTBEAT;
    assert_eq!(
        faults(&mut pair, &ANSWER.emit()),
        [Fault::Unasked { message_type, transaction: 1 }]
    );
    let request = Message { flags: flags::REQUEST, ..ANSWER };
    assert_eq!(faults(&mut pair, &request.emit()), [Fault::NoAnswer { message_type, flags: 2 }]);
    assert!(matches!(faults(&mut pair, &[0; 8])[..], [Fault::Unreadable(_)]));
    pair.pass(seconds(1));
    assert_eq!(pair.service.contact(), Contact::Ok);
}

#[test]
fn a_heartbeat_that_does_not_count_on_is_no_sign_of_life() {
    let mut pair = Pair::<HeartbeatKind>::open(ServiceDriver::linux());
    assert!(pair.guest.step(), "the versions");
    pair.service.handle(pair.now, ChannelEvent::Signalled);
    pair.take_outputs();
    let sent = pair.guest.rings.receive().unwrap().payload;
    let sent = Message::parse(&sent).unwrap();
    let sequence = HeartbeatBody::parse(sent.body).unwrap().sequence.get();
    let body = HeartbeatBody { sequence: (sequence + 2).into(), reserved: [0; 32] }.emit();
    let wrong = Message { body: &body, transaction: sent.transaction, ..ANSWER };
    assert_eq!(
        faults(&mut pair, &wrong.emit()),
        [Fault::Sequence { expected: sequence + 1, actual: sequence + 2 }]
    );
    assert_eq!(pair.service.contact(), Contact::NoContact);
    // It is asked again.
    pair.pass(seconds(3));
    assert_eq!(pair.service.contact(), Contact::Ok);
}

#[test]
fn a_version_that_was_not_offered_is_not_used() {
    let mut pair = Pair::<HeartbeatKind>::open(ServiceDriver::linux());
    let (framework, version) = (Version::new(3, 0), Version::new(7, 0));
    let choice = Negotiation { framework: vec![framework], service: vec![version] };
    let body = choice.emit();
    let answer = Message { message_type: MessageType::NEGOTIATE, body: &body, ..ANSWER };
    assert_eq!(faults(&mut pair, &answer.emit()), [Fault::Version { framework, version }]);
    assert_eq!(pair.service.negotiated(), Err(NotReady::NoCommonVersion));
}

/// A guest that floods the ring does not keep the host from its other work.
#[test]
fn a_flood_is_taken_in_batches() {
    let mut pair = Pair::<HeartbeatKind>::ready();
    pair.pass(seconds(0));
    let packets = BATCH * 2 + 1;
    for _ in 0..packets {
        pair.guest.rings.send(&[0; 8], 0).unwrap();
    }
    pair.notices();
    pair.service.handle(seconds(1), ChannelEvent::Signalled);
    for taken in [BATCH, BATCH, 1] {
        pair.take_outputs();
        assert_eq!(pair.notices().len(), taken as usize);
        if taken == BATCH {
            assert_eq!(pair.service.poll_timeout(), Some(seconds(1)));
            pair.service.handle(seconds(1), ChannelEvent::Timeout);
        }
    }
}

#[test]
fn a_broken_ring_stops_the_service_until_the_guest_opens_it_anew() {
    let mut pair = Pair::<ShutdownKind>::ready();
    // The guest's write index, in the first word of its ring's control page.
    vmbus::GuestMemory::write(&pair.memory, page_range::Gpa::default(), &[0xff; 4]).unwrap();
    pair.service.handle(seconds(1), ChannelEvent::Signalled);
    let broken = std::iter::from_fn(|| pair.service.poll_output())
        .any(|output| matches!(output, ChannelOutput::Broken(RingError::WriteIndex(_))));
    assert!(broken);
    assert_eq!(pair.service.request_shutdown(seconds(2)), Err(NotReady::Broken));
    assert_eq!((pair.service.poll_timeout(), pair.service.waits_for_room()), (None, false));
    pair.reopen();
    pair.run();
    assert!(pair.service.request_shutdown(seconds(3)).is_ok());
}

proptest! {
    /// Any packets, at any times: no panic, and no message but the one that is allowed.
    #[test]
    fn no_packet_harms_the_service(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..20),
        seed in prop::collection::vec((0_u8..4, 0_u64..30), 1..20),
    ) {
        let mut pair = Pair::<HeartbeatKind>::open(ServiceDriver::linux());
        pair.is_deaf = true;
        for (packet, (act, time)) in packets.iter().zip(seed) {
            let mut packet = packet.clone();
            if act > 1 && packet.len() > 30 {
                // A message as far as its headers go.
                let message = Message { transaction: act, body: &packet[28..], ..ANSWER };
                packet = message.emit();
            }
            let _ = pair.guest.rings.send(&packet, 0);
            pair.now += seconds(time);
            let event = if act % 2 == 0 { ChannelEvent::Signalled } else { ChannelEvent::Timeout };
            pair.service.handle(pair.now, event);
            pair.take_outputs();
            let bytes = integration_services::SavedState::to_bytes(&pair.service.save(pair.now));
            let saved = integration_services::SavedState::from_bytes(&bytes).unwrap();
            let open = Some((pair.memory.clone(), crate::pair::channel()));
            let restored = Heartbeat::<Memory>::new().restored(&saved, open, pair.now).unwrap();
            prop_assert_eq!(restored.contact(), pair.service.contact());
        }
    }
}
