//! Services that are saved and restored between any two steps.

use guest_model::services::{Heard, ServiceDriver};
use integration_services::protocol::{STATUS_OK, Version, time_flags};
use integration_services::{
    Contact, HeartbeatKind, NotReady, Notice, SavedService, SavedState, Service, ShutdownKind,
    TimeSample, TimeSync, TimeSyncKind,
};
use vmbus::ChannelEvent;
use vmbus::VmbusDevice;

use crate::pair::{Memory, Pair, Sampled, channel, seconds};

/// Saves the service and goes on with a restored one.
fn move_on<K: Sampled>(pair: &mut Pair<K>, fresh: Service<Memory, K>) {
    let bytes = pair.service.save(pair.now).to_bytes();
    let saved = SavedService::from_bytes(&bytes).unwrap();
    let open = Some((pair.memory.clone(), channel()));
    pair.service = fresh.restored(&saved, open, pair.now).unwrap();
    pair.service.handle(pair.now, ChannelEvent::Signalled);
}

#[test]
fn a_negotiation_and_a_request_survive_at_every_step() {
    let mut pair = Pair::<ShutdownKind>::open(ServiceDriver::linux());
    move_on(&mut pair, Service::new());
    assert!(pair.guest.step());
    move_on(&mut pair, Service::new());
    pair.run();
    assert!(matches!(pair.notices()[..], [Notice::Ready { .. }]));
    pair.service.request_shutdown(seconds(1)).unwrap();
    move_on(&mut pair, Service::new());
    assert!(pair.service.is_waiting());
    pair.run();
    assert_eq!(pair.notices(), [Notice::ShutdownAnswered { status: STATUS_OK }]);
    assert_eq!(pair.heard()[1..], [Heard::Shutdown], "asked once");
}

#[test]
fn heartbeats_count_on() {
    let mut pair = Pair::<HeartbeatKind>::ready();
    for end in 1..20 {
        pair.pass(seconds(end));
        move_on(&mut pair, Service::new());
        assert_eq!(pair.service.contact(), Contact::Ok);
    }
    let notices = pair.notices();
    assert!(notices.iter().all(|notice| !matches!(notice, Notice::Fault(_))), "{notices:?}");
}

/// The guest stood still, so its clock is set.
#[test]
fn a_restored_guest_has_its_clock_set() {
    let fresh = || TimeSync::new().with_reference_time();
    let mut pair = Pair::<TimeSyncKind>::with(fresh(), ServiceDriver::linux());
    pair.sample = Some(TimeSample { host: 1, reference: Some(2) });
    pair.pass(seconds(6));
    pair.heard();
    move_on(&mut pair, fresh());
    pair.pass(seconds(6));
    assert_eq!(
        pair.heard(),
        [Heard::Time { host: 1, reference: Some(2), flags: time_flags::SYNC }]
    );
}

#[test]
fn a_guest_without_a_common_version_stays_one() {
    let mut pair = Pair::<ShutdownKind>::open(ServiceDriver::new(&[Version::new(2, 0)]));
    pair.run();
    move_on(&mut pair, Service::new());
    assert_eq!(pair.service.request_shutdown(seconds(1)), Err(NotReady::NoCommonVersion));
    pair.pass(seconds(9));
    assert_eq!(pair.heard(), [Heard::NoVersion], "asked once");
}

#[test]
fn a_closed_channel_stays_closed_until_it_is_opened_again() {
    let mut pair = Pair::<HeartbeatKind>::ready();
    pair.service.handle(seconds(1), ChannelEvent::Close);
    pair.take_outputs();
    let bytes = pair.service.save(seconds(1)).to_bytes();
    let saved = SavedService::from_bytes(&bytes).unwrap();
    pair.service = Service::new().restored(&saved, None, seconds(1)).unwrap();
    assert_eq!((pair.service.contact(), pair.service.poll_timeout()), (Contact::NoContact, None));
    pair.reopen();
    pair.pass(seconds(2));
    assert_eq!(pair.service.contact(), Contact::Ok);
}

#[test]
fn the_state_of_another_service_is_refused() {
    let pair = Pair::<HeartbeatKind>::ready();
    let saved = pair.service.save(seconds(1));
    let open = Some((pair.memory.clone(), channel()));
    let error = Service::<Memory, ShutdownKind>::new().restored(&saved, open, seconds(1));
    assert!(error.unwrap_err().to_string().contains("another service"));
}

/// Whatever is altered, restoring refuses it or makes a service that works on.
#[test]
fn altered_state_is_refused_or_harmless() {
    let mut pair = Pair::<HeartbeatKind>::ready();
    pair.pass(seconds(3));
    let bytes = postcard::to_allocvec(&pair.service.save(pair.now)).unwrap();
    let mut refused = 0;
    for at in 0..bytes.len() {
        for value in [0, 1, 2, 0x7f, 0xff] {
            let mut altered = bytes.clone();
            altered[at] = value;
            let Ok(saved) = postcard::from_bytes::<SavedService>(&altered) else {
                refused += 1;
                continue;
            };
            let open = Some((pair.memory.clone(), channel()));
            match Service::<Memory, HeartbeatKind>::new().restored(&saved, open, pair.now) {
                Err(_) => refused += 1,
                Ok(mut service) => {
                    for second in 0..100 {
                        service.handle(seconds(second), ChannelEvent::Timeout);
                        while service.poll_output().is_some() {}
                    }
                }
            }
        }
    }
    assert!(refused > 100, "{refused}");
}
