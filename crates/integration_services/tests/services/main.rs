//! The services and a guest with their drivers, over rings in memory.

mod hostile;
mod pair;
mod saved_state;

use std::time::Duration;

use guest_model::services::{Heard, ServiceDriver};
use integration_services::protocol::{STATUS_FAILED, STATUS_OK, Version, time_flags};
use integration_services::{
    Contact, HeartbeatKind, NotReady, Notice, ShutdownKind, TimeSample, TimeSync, TimeSyncKind,
    Work,
};
use vmbus::protocol::VpIndex;
use vmbus::{ChannelEvent, VmbusDevice};

use pair::{Pair, seconds};

const SAMPLE: TimeSample = TimeSample { host: 1_000_000, reference: Some(77) };

#[test]
fn the_newest_versions_that_both_have_are_used() {
    let versions = |list: &[(u16, u16)]| -> Vec<Version> {
        list.iter().map(|(major, minor)| Version::new(*major, *minor)).collect()
    };
    for (own, chosen) in [
        (versions(&[(3, 2), (3, 1), (3, 0), (1, 0)]), Version::new(3, 2)),
        (versions(&[(9, 9), (3, 0), (1, 0)]), Version::new(3, 0)),
        (versions(&[(1, 0)]), Version::new(1, 0)),
    ] {
        let mut pair = Pair::<ShutdownKind>::open(ServiceDriver::new(&own));
        pair.run();
        let framework = Version::new(3, 0);
        assert_eq!(pair.notices(), [Notice::Ready { framework, version: chosen }]);
        assert_eq!(pair.service.negotiated(), Ok((framework, chosen)));
    }
}

#[test]
fn a_guest_without_a_common_version_cannot_be_asked() {
    let mut pair = Pair::<ShutdownKind>::open(ServiceDriver::new(&[Version::new(2, 0)]));
    assert_eq!(pair.service.request_shutdown(seconds(0)), Err(NotReady::Negotiating));
    pair.run();
    assert_eq!(pair.notices(), [Notice::NoCommonVersion]);
    assert_eq!(pair.service.request_shutdown(seconds(1)), Err(NotReady::NoCommonVersion));
    assert_eq!(pair.guest.driver.heard, [Heard::NoVersion]);
}

#[test]
fn a_guest_is_asked_to_shut_down_once_until_it_answers() {
    let mut pair = Pair::<ShutdownKind>::ready();
    for _ in 0..3 {
        pair.service.request_shutdown(seconds(1)).unwrap();
        assert!(pair.service.is_waiting());
    }
    pair.run();
    assert_eq!(pair.notices(), [Notice::ShutdownAnswered { status: STATUS_OK }]);
    pair.service.request_shutdown(seconds(2)).unwrap();
    pair.run();
    assert_eq!(pair.heard(), [Heard::Shutdown, Heard::Shutdown]);
    assert_eq!(pair.notices(), [Notice::ShutdownAnswered { status: STATUS_OK }]);
}

#[test]
fn a_guest_that_refuses_to_shut_down_is_told_as_such() {
    let mut pair = Pair::<ShutdownKind>::open(ServiceDriver::linux().that_refuses());
    pair.run();
    pair.notices();
    pair.service.request_shutdown(seconds(1)).unwrap();
    pair.run();
    assert_eq!(pair.notices(), [Notice::ShutdownAnswered { status: STATUS_FAILED }]);
}

#[test]
fn a_request_dies_with_the_channel() {
    let mut pair = Pair::<ShutdownKind>::ready();
    pair.service.request_shutdown(seconds(1)).unwrap();
    pair.reopen();
    pair.run();
    assert!(!pair.heard().contains(&Heard::Shutdown), "the next kernel is asked");
    pair.service.handle(seconds(2), ChannelEvent::Close);
    assert_eq!(pair.service.request_shutdown(seconds(3)), Err(NotReady::NotConnected));
}

#[test]
fn heartbeats_come_every_two_seconds_and_their_absence_is_noticed() {
    let mut pair = Pair::<HeartbeatKind>::open(ServiceDriver::linux());
    assert_eq!(pair.service.contact(), Contact::NoContact);
    pair.pass(seconds(9));
    assert_eq!(pair.service.contact(), Contact::Ok);
    let beats = |pair: &mut Pair<HeartbeatKind>| {
        pair.heard().iter().filter(|heard| **heard == Heard::Heartbeat).count()
    };
    assert_eq!(beats(&mut pair), 5, "at 0, 2, 4, 6 and 8 s");
    assert_eq!(pair.notices()[1..], [Notice::Contact(Contact::Ok)], "after the versions");

    pair.is_deaf = true;
    pair.pass(seconds(39));
    assert_eq!(pair.service.contact(), Contact::Ok, "asked at 10 s");
    pair.pass(seconds(41));
    assert_eq!(pair.service.contact(), Contact::LostCommunication);
    pair.is_deaf = false;
    pair.pass(seconds(42));
    let lost = Notice::Contact(Contact::LostCommunication);
    assert_eq!(pair.notices(), [lost, Notice::Contact(Contact::Ok)], "each once");
    assert!(beats(&mut pair) >= 1);
}

#[test]
fn a_guest_that_closes_its_channel_is_no_contact() {
    let mut pair = Pair::<HeartbeatKind>::ready();
    pair.pass(seconds(1));
    pair.notices();
    pair.service.handle(seconds(2), ChannelEvent::Close);
    assert_eq!(pair.service.contact(), Contact::NoContact);
    pair.take_outputs();
    assert_eq!(pair.notices(), [Notice::Contact(Contact::NoContact)]);
    assert_eq!(pair.service.poll_timeout(), None);
}

/// The first sample, and the first after the guest stood still, sets its clock.
#[test]
fn samples_set_the_clock_when_they_must_and_otherwise_inform() {
    let mut pair =
        Pair::<TimeSyncKind>::with(TimeSync::new().with_reference_time(), ServiceDriver::linux());
    pair.sample = Some(SAMPLE);
    pair.pass(seconds(11));
    let time = |flags| Heard::Time { host: SAMPLE.host, reference: SAMPLE.reference, flags };
    let (sync, sample) = (time(time_flags::SYNC), time(time_flags::SAMPLE));
    assert_eq!(pair.heard()[1..], [sync, sample, sample], "at 0, 5 and 10 s");
    pair.service.resync(seconds(12));
    pair.pass(seconds(12));
    assert_eq!(pair.heard(), [sync]);
    pair.pass(seconds(17));
    assert_eq!(pair.heard(), [sample]);
}

#[test]
fn a_guest_is_offered_version_4_only_by_a_host_that_knows_the_reference_time() {
    let mut pair = Pair::<TimeSyncKind>::ready();
    assert_eq!(pair.service.negotiated().unwrap().1, Version::new(3, 0));
    pair.sample = Some(TimeSample { reference: None, ..SAMPLE });
    pair.pass(seconds(1));
    assert_eq!(
        pair.heard(),
        [Heard::Time { host: SAMPLE.host, reference: None, flags: time_flags::SYNC }]
    );
}

/// A host whose clock fails is asked again, and a clock that must be set is set then.
#[test]
fn a_sample_that_does_not_come_is_asked_for_again() {
    let mut pair =
        Pair::<TimeSyncKind>::with(TimeSync::new().with_reference_time(), ServiceDriver::linux());
    pair.pass(seconds(4));
    assert_eq!(pair.asked_for_samples, 1);
    // Without the reference time that was promised, there is nothing to send.
    pair.sample = Some(TimeSample { reference: None, ..SAMPLE });
    pair.pass(seconds(6));
    assert_eq!(pair.heard().len(), 1, "the versions");
    pair.sample = Some(SAMPLE);
    pair.pass(seconds(11));
    assert!(matches!(pair.heard()[..], [Heard::Time { flags: time_flags::SYNC, .. }]));
    assert_eq!(pair.asked_for_samples, 3);
}

#[test]
fn time_since_1970_becomes_time_since_1601() {
    let sample = TimeSample::since_unix_epoch(Duration::new(1, 200), None);
    assert_eq!(sample.host, 116_444_736_000_000_000 + 10_000_002);
    assert_eq!(TimeSample::since_unix_epoch(Duration::MAX, None).host, u64::MAX);
}

/// The channel works before the guest has heard that it is open, so the first signal may be missed.
#[test]
fn a_guest_that_leaves_the_offer_of_versions_unread_is_signalled_again() {
    let mut pair = Pair::<ShutdownKind>::open(ServiceDriver::linux());
    pair.is_deaf = true;
    let before = pair.signals;
    pair.pass(seconds(200));
    assert_eq!(pair.signals - before, 7, "a reminder with growing pauses, not for ever");
    pair.is_deaf = false;
    pair.run();
    assert!(pair.service.negotiated().is_ok());
}

#[test]
fn signals_go_to_the_vp_that_the_guest_named_last() {
    let mut pair = Pair::<ShutdownKind>::ready();
    pair.service.handle(seconds(1), ChannelEvent::SetTargetVp(VpIndex::new(1)));
    pair.service.request_shutdown(seconds(1)).unwrap();
    pair.take_outputs();
    assert_eq!(pair.last_signal.map(|signal| signal.vp), Some(VpIndex::new(1)));
}

#[test]
fn a_reset_leaves_a_service_that_the_next_guest_can_use() {
    let mut pair = Pair::<HeartbeatKind>::ready();
    pair.pass(seconds(3));
    pair.service.handle(seconds(4), ChannelEvent::Reset);
    assert_eq!(pair.service.contact(), Contact::NoContact);
    assert!(!pair.service.is_quiet(), "the channel is not closed yet");
    pair.reopen();
    pair.run();
    pair.pass(seconds(5));
    assert_eq!(pair.service.contact(), Contact::Ok);
}

#[test]
fn notices_are_sentences_for_the_operator() {
    let (framework, version) = (Version::new(3, 0), Version::new(3, 2));
    for (notice, words) in [
        (Notice::Ready { framework, version }, "ready, framework 3.0, version 3.2"),
        (Notice::NoCommonVersion, "the guest has none of the versions offered"),
        (Notice::ShutdownAnswered { status: STATUS_OK }, "the guest shuts down"),
        (
            Notice::ShutdownAnswered { status: STATUS_FAILED },
            "the guest refuses to shut down, with status 0x80004005",
        ),
        (Notice::Contact(Contact::Ok), "heartbeat: OK"),
        (Notice::Contact(Contact::LostCommunication), "heartbeat: Lost Communication"),
    ] {
        assert_eq!(notice.to_string(), words);
    }
}

#[test]
fn packets_are_traced_in_their_order() {
    use integration_services::Trace;
    let mut pair = Pair::<ShutdownKind>::with(
        integration_services::Shutdown::new().with_trace(),
        ServiceDriver::linux(),
    );
    pair.run();
    let traces: Vec<_> = pair
        .work
        .iter()
        .filter_map(|work| match work {
            Work::Trace(Trace::Sent(_)) => Some("sent"),
            Work::Trace(Trace::Received(_)) => Some("received"),
            Work::Notify(_) => Some("notice"),
            _ => None,
        })
        .collect();
    assert_eq!(traces, ["sent", "received", "notice"]);
}
