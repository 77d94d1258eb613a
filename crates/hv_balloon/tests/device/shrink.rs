//! Pages from the guest.

use std::time::Duration;

use crate::driver::*;
use dynmem_protocol::*;
use hv_balloon::{
    BALLOON_TIMEOUT, Config, Device, Event, FaultCounts, MAX_DISCARD_RANGES, Notice, Refusal,
    SHORT_ANSWER_PAUSE, Settle, StateName, StopReason, TargetError, Transaction,
};

#[test]
fn a_target_is_reached_when_the_discard_has_ended() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    assert_eq!(driver.asked(), 4096);
    driver.give(&[range(0, 4096)], false);
    assert_eq!(driver.actual(), RAM_PAGES);
    assert_eq!(driver.notices, []);
    assert_eq!(driver.finish_discard(true), [range(0, 4096)]);
    let actual = pages(4096);
    assert_eq!(driver.notices, [Notice::SizeChanged { actual }, Notice::TargetReached { actual }]);
}

#[test]
fn the_ranges_of_a_message_are_discarded_merged() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(1024, 512), range(0, 512), range(512, 512), range(2048, 1)], true);
    assert_eq!(driver.finish_discard(true), [range(0, 1536), range(2048, 1)]);
}

#[test]
fn messages_that_come_faster_than_discards_are_merged() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    for start in [0, 512, 1024, 1536] {
        driver.give(&[range(start, 512)], true);
    }
    assert_eq!(driver.discards.len(), 2);
    assert_eq!(driver.device.snapshot().in_flight, pages(2048));
    assert_eq!(driver.finish_discard(true), [range(0, 512)]);
    assert_eq!(driver.finish_discard(true), [range(512, 512)]);
    assert_eq!(driver.finish_discard(true), [range(1024, 1024)]);
}

#[test]
fn the_next_request_is_out_before_the_discard_of_the_last_one_ends() {
    let mut driver = Driver::ready();
    driver.set_target(RAM_PAGES - 1000);
    assert_eq!(driver.asked(), 512);
    driver.give(&[range(0, 512)], false);
    assert_eq!(driver.discards.len(), 1);
    assert_eq!(driver.asked(), 488);
}

#[test]
fn a_discard_has_no_more_ranges_than_a_guest_can_wait_for() {
    let mut driver = Driver::ready();
    let ram = [range(0, 1 << 16)].into_iter().collect();
    driver.device = Device::new(Config { boot_ram: ram, ..Config::default() }).unwrap();
    driver.handle(Event::ChannelOpened { guest_os_id: 0x81 << 56, is_reopened: false });
    driver.packet(&version_request(Version::V2_0));
    driver.packet(&capabilities_report(Capabilities::BALLOON));
    let given: Vec<_> = (0..21_000).map(|page| range(page * 2, 1)).collect();
    given.chunks(500).for_each(|ranges| driver.give(ranges, true));
    let sizes: Vec<usize> = std::iter::from_fn(|| {
        let waits = !driver.discards.is_empty();
        waits.then(|| driver.finish_discard(true).len())
    })
    .collect();
    assert_eq!(sizes, [500, 500, MAX_DISCARD_RANGES, 20_000 - MAX_DISCARD_RANGES]);
    assert_eq!(driver.device.snapshot().ballooned, pages(21_000));
}

#[test]
fn an_uneven_target_is_met_with_a_last_small_request() {
    let mut driver = Driver::ready();
    driver.set_target(RAM_PAGES - 1000);
    assert_eq!(driver.asked(), 512);
    driver.give(&[range(0, 512)], false);
    assert_eq!(driver.asked(), 488);
    driver.give(&[range(1000, 488)], false);
    driver.finish_discards();
    assert_eq!(driver.actual(), RAM_PAGES - 1000);
    assert_eq!(driver.state(), StateName::Idle);
}

#[test]
fn an_answer_may_end_with_a_message_without_pages() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 4096)], true);
    driver.give(&[], false);
    driver.finish_discards();
    assert_eq!(driver.notices.last(), Some(&Notice::TargetReached { actual: pages(4096) }));
}

#[test]
fn a_guest_that_gives_nothing_is_at_its_floor() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[], false);
    let (target, actual) = (pages(4096), pages(RAM_PAGES));
    let reason = StopReason::GuestFloor;
    assert_eq!(driver.notices, [Notice::StoppedShort { target, actual, reason }]);
    assert_eq!(driver.device.snapshot().last_stop, Some(reason));
    assert_eq!(driver.state(), StateName::Idle);
}

#[test]
fn a_stop_is_announced_with_the_final_size() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 512)], false);
    driver.wait(SHORT_ANSWER_PAUSE);
    driver.give(&[], false);
    assert_eq!(driver.notices, []);
    driver.finish_discards();
    let (target, actual) = (pages(4096), pages(RAM_PAGES - 512));
    let reason = StopReason::GuestFloor;
    assert_eq!(driver.notices.last(), Some(&Notice::StoppedShort { target, actual, reason }));
}

#[test]
fn a_short_answer_is_followed_by_a_pause_and_another_request() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.drain();
    driver.give(&[range(0, 512)], false);
    assert_eq!(driver.state(), StateName::Pausing);
    assert!(driver.ring.is_empty());
    driver.wait(SHORT_ANSWER_PAUSE);
    assert_eq!(driver.asked(), 3584);
}

#[test]
fn five_short_answers_in_a_row_are_the_floor() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    for start in 0..4 {
        driver.give(&[range(start, 1)], false);
        driver.wait(SHORT_ANSWER_PAUSE);
    }
    driver.give(&[range(4, 1)], false);
    driver.finish_discards();
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::GuestFloor));
    assert_eq!((driver.state(), driver.actual()), (StateName::Idle, RAM_PAGES - 5));
}

#[test]
fn the_same_target_again_is_a_new_try() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[], false);
    driver.drain();
    driver.set_target(4096);
    assert_eq!(driver.asked(), 4096);
    assert_eq!(driver.device.snapshot().last_stop, None);
}

#[test]
fn a_target_that_is_there_already_is_reached_at_once() {
    let mut driver = Driver::with_ballooned(4096);
    driver.set_target(4096);
    assert_eq!(driver.notices, [Notice::TargetReached { actual: pages(4096) }]);
}

#[test]
fn a_guest_that_cannot_balloon_is_never_asked() {
    let mut driver = Driver::new(Settle::Fixed(Duration::ZERO), false);
    driver.set_target(4096);
    driver.shake_hands_as(0, Capabilities::HOT_ADD);
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::NoBalloonCapability));
    let refusal = TargetError::CannotBalloon { present: pages(RAM_PAGES) };
    assert_eq!(driver.try_target(2048), Err(refusal));
    assert_eq!(
        driver.device.snapshot().last_refusal,
        Some((pages(2048), Refusal::Target(refusal)))
    );
    assert!(driver.ring.is_empty());
    // What it has is no less.
    assert_eq!(driver.try_target(RAM_PAGES), Ok(pages(RAM_PAGES)));
}

#[test]
fn pages_given_twice_count_once() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 512), range(256, 512)], true);
    driver.give(&[range(0, 768)], true);
    driver.finish_discards();
    driver.give(&[range(0, 768)], true);
    assert!(driver.discards.is_empty());
    assert_eq!(driver.actual(), RAM_PAGES - 768);
    assert_eq!(driver.device.snapshot().faults.duplicate_pages, 256 + 768 + 768);
}

#[test]
fn pages_that_are_not_ram_are_kept_apart() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(4000, 200), range(0x1_0ff0, 0x20)], true);
    assert_eq!(driver.finish_discard(true), [range(4000, 96), range(0x1_0ff0, 0x10)]);
    let snapshot = driver.device.snapshot();
    assert_eq!((snapshot.foreign, snapshot.actual), (pages(104 + 16), pages(RAM_PAGES - 112)));
}

#[test]
fn pages_that_are_not_ram_are_forgotten_when_they_are_too_many() {
    let mut driver = Driver::ready();
    for message in 0..10 {
        let start = 0x10_0000 + message * 0x1000;
        let scattered: Vec<_> = (0..508).map(|page| range(start + page * 2, 1)).collect();
        driver.give(&scattered, false);
    }
    let snapshot = driver.device.snapshot();
    assert_eq!(snapshot.foreign, pages(4096));
    assert_eq!(snapshot.faults.forgotten_pages, 5080 - 4096);
}

#[test]
fn an_answer_of_useless_pages_ends_the_try() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(5000, 4096)], false);
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::NothingUsable));
}

#[test]
fn ranges_that_name_no_pages_are_counted() {
    let mut driver = Driver::ready();
    let packet = [&[7, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0][..], &[0; 8]].concat();
    driver.packet(&packet);
    assert_eq!(driver.device.snapshot().faults.bad_ranges, 1);
}

#[test]
fn more_pages_than_asked_for_are_given_back() {
    let mut driver = Driver::ready();
    driver.set_target(RAM_PAGES - 512);
    driver.drain();
    driver.give(&[range(0, 1024)], false);
    driver.finish_discards();
    assert_eq!(driver.returned(), (vec![range(512, 512)], false));
    driver.unballooned();
    assert_eq!(driver.actual(), RAM_PAGES - 512);
    assert_eq!(driver.device.snapshot().faults.excess_pages, 512);
}

#[test]
fn a_silent_guest_is_reported_after_a_minute() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.wait(BALLOON_TIMEOUT - Duration::from_millis(1));
    assert_eq!(driver.notices, []);
    driver.wait(Duration::from_millis(1));
    assert_eq!(driver.notices[0], Notice::TimedOut(Transaction::Balloon));
    let snapshot = driver.device.snapshot();
    assert_eq!((snapshot.last_stop, snapshot.is_pursued), (Some(StopReason::Timeout), true));
    assert_eq!(driver.device.next_deadline(), None);
}

#[test]
fn messages_without_pages_give_no_more_time() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.wait(BALLOON_TIMEOUT / 2);
    driver.give(&[range(0, 512)], true);
    driver.wait(BALLOON_TIMEOUT / 2);
    driver.give(&[], true);
    assert_eq!(driver.device.snapshot().last_stop, None);
    driver.wait(BALLOON_TIMEOUT / 2);
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::Timeout));
}

#[test]
fn a_guest_that_answers_an_hour_late_reaches_the_target() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.wait(Duration::from_secs(3600));
    assert_eq!(driver.ring.len(), 1, "it would give twice as much");
    driver.give(&[range(0, 2048)], true);
    driver.give(&[range(0x1_0000, 2048)], false);
    driver.finish_discards();
    assert_eq!(driver.notices.last(), Some(&Notice::TargetReached { actual: pages(4096) }));
    assert_eq!(driver.device.snapshot().faults, FaultCounts::default());
}

#[test]
fn an_answer_after_the_operator_wanted_something_else_counts() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.wait(BALLOON_TIMEOUT);
    driver.set_target(RAM_PAGES);
    driver.set_target(4097);
    driver.give(&[range(0, 4095)], false);
    driver.finish_discards();
    assert_eq!(driver.notices.last(), Some(&Notice::TargetReached { actual: pages(4097) }));
}

#[test]
fn a_late_answer_beyond_the_target_is_returned() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.wait(BALLOON_TIMEOUT);
    driver.set_target(6144);
    driver.drain();
    driver.give(&[range(0, 4096)], false);
    driver.finish_discards();
    assert_eq!(driver.returned(), (vec![range(2048, 2048)], false));
}

#[test]
fn a_failed_discard_is_not_claimed() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 4096)], false);
    driver.finish_discard(false);
    let (target, actual) = (pages(4096), pages(RAM_PAGES));
    let reason = StopReason::DiscardFailed;
    assert_eq!(
        driver.notices,
        [
            Notice::DiscardFailed { pages: pages(4096) },
            Notice::StoppedShort { target, actual, reason }
        ]
    );
}

#[test]
fn a_failed_discard_is_tried_again_with_the_next_target() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 4096)], false);
    driver.finish_discard(false);
    driver.set_target(4096);
    assert_eq!(driver.finish_discard(true), [range(0, 4096)]);
    assert_eq!(driver.actual(), 4096);
}

#[test]
fn targets_out_of_bounds_are_refused_with_the_bound() {
    let mut driver = Driver::ready();
    let too_much = TargetError::AboveMaximum { requested: pages(8193), maximum: pages(8192) };
    assert_eq!(driver.device.can_set_target(pages(8193)), Err(too_much));
    assert_eq!(driver.device.can_set_target(pages(0)), Err(TargetError::Zero));
    assert_eq!(driver.device.can_set_target(pages(1)), Ok(pages(1)));
    assert_eq!(driver.try_target(8193), Err(too_much));
    assert_eq!(driver.device.snapshot().target, None);
    assert_eq!(
        too_much.to_string(),
        "33558528 bytes are more than the 33554432 bytes this guest can have; \
         ask for no more than that"
    );
}
