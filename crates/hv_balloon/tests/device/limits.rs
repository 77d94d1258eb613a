//! Limits on what a guest can make grow or wait.

use std::time::Duration;

use crate::driver::*;
use hv_balloon::{
    BALLOON_TIMEOUT, Event, MAX_BALLOON_TIME, MAX_FOREIGN_PAGES, Notice, SHORT_ANSWER_PAUSE,
    StateName, StopReason, Transaction,
};

/// A driver whose guest has given a part of what it was asked for, and then nothing in time.
fn overdue() -> Driver {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 512)], true);
    driver.wait(BALLOON_TIMEOUT);
    assert_eq!((driver.state(), driver.discards.len()), (StateName::Ballooning, 1));
    assert!(driver.notices.contains(&stopped_short(RAM_PAGES)), "{:?}", driver.notices);
    driver
}

fn stopped_short(actual: u64) -> Notice {
    let (target, actual) = (pages(4096), pages(actual));
    Notice::StoppedShort { target, actual, reason: StopReason::Timeout }
}

#[test]
fn a_target_is_kept_over_a_close_and_not_over_a_reset() {
    for (gone, kept) in [(Event::ChannelClosed, Some(pages(4096))), (Event::SystemReset, None)] {
        let mut driver = overdue();
        driver.handle(gone);
        assert_eq!(driver.device.snapshot().target, kept);
        let told = driver.notices.len();
        driver.finish_discards();
        assert_eq!(driver.notices.len(), told);
    }
}

/// The guest is not given up, so its answer ends the doubt; what was said about this target is not
/// said again.
#[test]
fn a_late_answer_ends_the_doubt_and_the_next_silence_is_not_announced_again() {
    let mut driver = overdue();
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::Timeout));
    driver.give(&[range(512, 512)], false);
    assert_eq!((driver.state(), driver.device.snapshot().last_stop), (StateName::Pausing, None));
    driver.finish_discards();
    driver.wait(SHORT_ANSWER_PAUSE);
    driver.drain();
    driver.wait(BALLOON_TIMEOUT);
    assert_eq!(driver.notices, [Notice::TimedOut(Transaction::Balloon)]);
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::Timeout));
}

/// The guest is not given up when the operator wants something else: its answer, in however many parts,
/// is no breach. What comes after its last part is one.
#[test]
fn a_request_given_up_for_another_target_may_be_answered_once() {
    let mut driver = overdue();
    driver.set_target(RAM_PAGES - 512);
    let faults = |driver: &Driver| driver.device.snapshot().faults.unasked_responses;
    driver.give(&[range(512, 1)], true);
    driver.give(&[range(513, 1)], false);
    assert_eq!(faults(&driver), 0);
    driver.give(&[range(514, 1)], false);
    assert_eq!(faults(&driver), 1);
}

/// While the ring is full, the guest knows nothing of the request.
#[test]
fn the_guests_time_starts_when_the_request_is_in_the_ring() {
    let mut driver = Driver::ready();
    driver.ring_is_full = true;
    driver.set_target(4096);
    driver.now += BALLOON_TIMEOUT / 2;
    driver.make_room();
    let start = driver.now;
    assert_eq!(driver.device.next_deadline(), Some(start + BALLOON_TIMEOUT));
    let mut given = 0;
    while driver.now + BALLOON_TIMEOUT <= start + MAX_BALLOON_TIME {
        driver.now += BALLOON_TIMEOUT - Duration::from_secs(1);
        driver.give(&[range(given, 1)], true);
        given += 1;
    }
    assert_eq!(driver.device.next_deadline(), Some(start + MAX_BALLOON_TIME));
}

/// The last discard would have decided the size that is announced; a close or a reset decides it now.
#[test]
fn a_target_given_up_while_a_discard_runs_is_announced_when_the_session_ends() {
    for gone in [Event::ChannelClosed, Event::SystemReset] {
        let mut driver = Driver::ready();
        driver.set_target(4096);
        driver.give(&[range(0, 512)], false);
        driver.wait(SHORT_ANSWER_PAUSE);
        driver.drain();
        driver.give(&[], false);
        assert_eq!((driver.state(), driver.discards.len()), (StateName::Idle, 1));
        assert_eq!(driver.notices, []);
        driver.handle(gone);
        // The pages being discarded go back to the guest.
        let (target, actual, reason) = (pages(4096), pages(RAM_PAGES), StopReason::GuestFloor);
        assert_eq!(driver.notices, [Notice::StoppedShort { target, actual, reason }]);
        assert_eq!(driver.device.snapshot().target, None);
    }
}

#[test]
fn no_more_foreign_pages_are_remembered_than_the_limit() {
    let mut driver = Driver::ready();
    let most = MAX_FOREIGN_PAGES.get();
    let half = most / 2;
    driver.give(&[range(1 << 30, half), range(1 << 31, half), range(1 << 32, 1)], false);
    let device = driver.device.snapshot();
    assert_eq!((device.foreign, device.faults.forgotten_pages), (pages(most), 1));
    // All of them are returned, and that makes room.
    driver.set_target(RAM_PAGES - 1);
    driver.give(&[range(0, 2)], false);
    driver.finish_discards();
    assert_eq!(driver.device.snapshot().foreign, pages(0));
}

#[test]
fn a_target_waits_for_room_in_the_ring_no_longer_than_for_an_answer() {
    let mut driver = Driver::ready();
    driver.ring_is_full = true;
    // The first target becomes a request; the second finds that request unsent.
    for _ in 0..2 {
        driver.set_target(4096);
        assert_eq!(driver.device.next_deadline(), Some(driver.now + BALLOON_TIMEOUT));
        driver.wait(BALLOON_TIMEOUT / 2);
        assert_eq!(driver.notices, []);
        driver.wait(BALLOON_TIMEOUT / 2);
        let timeout = Notice::TimedOut(Transaction::Balloon);
        assert_eq!(driver.notices, [timeout, stopped_short(RAM_PAGES)]);
        assert_eq!(driver.device.next_deadline(), None);
        driver.notices.clear();
    }
    driver.make_room();
    // The request that waited, and that of the target that was set again.
    assert_eq!([driver.asked(), driver.asked()], [4096; 2]);
}

#[test]
fn a_request_is_overdue_however_often_the_guest_gives_a_page() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.drain();
    let start = driver.now;
    let mut given = 0;
    while !driver.notices.contains(&Notice::TimedOut(Transaction::Balloon)) {
        driver.wait(BALLOON_TIMEOUT - Duration::from_secs(1));
        driver.give(&[range(given, 1)], true);
        given += 1;
        assert!(driver.now - start <= MAX_BALLOON_TIME + BALLOON_TIMEOUT, "no end");
    }
    driver.finish_discards();
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::Timeout));
    // The operator need not wait for it.
    driver.set_target(4096);
    assert_eq!(driver.asked(), RAM_PAGES - 4096 - 512);
}
