//! Complete resizes, as an operator sees them.

use dynmem_protocol::{Capabilities, Version};
use guest_model::dynmem::{Ending, Personality};
use hv_balloon::{Notice, StateName, StopReason, Transaction};
use page_range::PageCount;

use crate::pair::*;

#[test]
fn a_guest_shrinks_and_grows_ten_times() {
    let mut pair = Pair::linux();
    for _ in 0..10 {
        pair.resize(mib(512));
        pair.assert_size(mib(512));
        pair.resize(mib(1024));
        pair.assert_size(mib(1024));
    }
    assert_eq!(pair.snapshot().faults, Default::default());
}

#[test]
fn a_guest_without_large_pages_shrinks_and_grows() {
    let mut pair = Pair::linux();
    pair.guest.memory_mut().shatter();
    pair.resize(mib(512));
    pair.assert_size(mib(512));
    pair.resize(mib(1024));
    pair.assert_size(mib(1024));
}

#[test]
fn targets_are_met_to_the_page() {
    let mut pair = Pair::linux();
    for target in [200_001, 150_000, 200_511, 262_143, 262_144] {
        pair.resize(PageCount::new(target));
        pair.assert_size(PageCount::new(target));
    }
}

#[test]
fn an_answer_that_ends_with_an_empty_message_is_understood() {
    let mut personality = Personality::linux_6_1();
    personality.ballooning.ending = Ending::Separate;
    let mut pair = Pair::opened(personality, 1024, 64);
    pair.resize(mib(300));
    pair.assert_size(mib(300));
}

#[test]
fn a_large_guest_takes_several_requests_and_messages() {
    let mut pair = Pair::opened(Personality::linux_6_1(), 8192, 64);
    pair.resize(mib(2048));
    pair.assert_size(mib(2048));
    pair.resize(mib(8192));
    pair.assert_size(mib(8192));
}

#[test]
fn below_its_floor_a_guest_stops_and_stays_usable() {
    let mut pair = Pair::linux();
    pair.resize(mib(64));
    let snapshot = pair.snapshot();
    assert_eq!(snapshot.last_stop, Some(StopReason::GuestFloor));
    assert_eq!(pair.guest.memory().managed(), snapshot.actual);
    assert!(snapshot.actual > mib(64) && snapshot.actual < mib(512));
    pair.resize(mib(1024));
    pair.assert_size(mib(1024));
}

#[test]
fn when_memory_is_free_again_the_same_target_goes_further() {
    let mut pair = Pair::opened(Personality::linux_6_1(), 1024, 800);
    pair.resize(mib(512));
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::GuestFloor));
    let stopped_at = pair.snapshot().actual;
    pair.guest.memory_mut().release();
    pair.resize(mib(512));
    assert!(stopped_at > mib(512));
    pair.assert_size(mib(512));
}

#[test]
fn an_old_guest_is_resized_with_its_version() {
    let versions = vec![Version::from_wire(0x0003_0000), Version::V0_3];
    let personality = Personality { versions, ..Personality::linux_6_1() };
    let mut pair = Pair::new(personality, 1024, 64);
    pair.open();
    pair.resize(mib(512));
    assert_eq!(pair.guest.version(), Some(Version::V0_3));
    pair.assert_size(mib(512));
}

#[test]
fn a_guest_without_a_common_version_never_gets_ready() {
    let versions = vec![Version::from_wire(0x0003_0000)];
    let personality = Personality { versions, ..Personality::linux_6_1() };
    let mut pair = Pair::new(personality, 1024, 64);
    pair.open();
    pair.resize(mib(512));
    assert_eq!(pair.snapshot().state, StateName::AwaitVersion);
    assert_eq!(pair.guest.version(), None);
}

#[test]
fn a_guest_that_cannot_balloon_keeps_its_memory() {
    let personality =
        Personality { capabilities: Capabilities::HOT_ADD, ..Personality::linux_6_1() };
    let mut pair = Pair::new(personality, 1024, 64);
    pair.open();
    pair.resize(mib(512));
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::NoBalloonCapability));
    pair.assert_size(mib(1024));
}

#[test]
fn a_guest_that_could_hibernate_ignores_the_host() {
    let personality = Personality { ignores_requests: true, ..Personality::linux_6_1() };
    let mut pair = Pair::new(personality, 1024, 64);
    pair.open();
    pair.resize(mib(512));
    assert!(pair.notices.contains(&Notice::TimedOut(Transaction::Balloon)));
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::Timeout));
    pair.assert_size(mib(1024));
}

#[test]
fn a_reloaded_driver_starts_afresh() {
    let mut pair = Pair::linux();
    pair.resize(mib(768));
    pair.close();
    assert_eq!((pair.closes_finished, pair.snapshot().actual), (1, mib(1024)));
    pair.open();
    pair.run();
    assert_eq!(pair.snapshot().state, StateName::Idle);
    // The guest lost the first session's pages; only the second's can come back.
    pair.resize(mib(896));
    assert_eq!(pair.guest.memory().managed(), mib(1024 - 256 - 128));
    pair.resize(mib(1024));
    assert_eq!(pair.guest.memory().managed(), mib(1024 - 256));
}

#[test]
fn after_a_reset_with_a_request_in_flight_the_guest_has_all_its_memory() {
    let mut pair = Pair::opened(Personality::linux_6_1(), 4096, 64);
    pair.set_target(mib(1024));
    pair.step(Step::ToGuest);
    pair.step(Step::ToHost);
    pair.reset();
    assert_eq!(pair.closes_finished, 0, "a discard is in flight");
    pair.run();
    assert_eq!(pair.closes_finished, 1);
    pair.open();
    pair.run();
    assert_eq!(pair.snapshot().target, None);
    pair.assert_size(mib(4096));
    pair.resize(mib(2048));
    pair.assert_size(mib(2048));
}

#[test]
fn status_reports_are_passed_on_between_the_messages_of_an_answer() {
    let mut pair = Pair::opened(Personality::linux_6_1(), 4096, 64);
    pair.set_target(mib(1024));
    pair.step(Step::ToGuest);
    pair.step(Step::ToHost);
    pair.guest.report_status();
    pair.run();
    assert!(pair.snapshot().status.is_some());
    pair.assert_size(mib(1024));
}
