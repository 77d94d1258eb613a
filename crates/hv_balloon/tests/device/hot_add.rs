//! Growing beyond boot RAM.

use std::time::Duration;

use dynmem_protocol::{Capabilities, HotAddResult};
use hv_balloon::{
    BALLOON_TIMEOUT, Event, FIRST_RETRY_PAUSE, HOT_ADD_TIMEOUT, MAX_FAILURES, Notice, Prepare,
    Refusal, ReplaceError, StateName, StopReason, TargetError, Transaction,
};
use page_range::{Gpfn, PageRange};

use crate::driver::*;

/// The first aligned page of the window, and the guest's block size.
const BASE: u64 = 0x2_0200;
const BLOCK: u64 = 512;

/// A driver whose guest was offered `count` pages.
fn offering(count: u64) -> (Driver, PageRange) {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + count);
    driver.prepared(true);
    let range = driver.offered();
    (driver, range)
}

/// A driver whose guest has taken `count` pages.
fn grown(count: u64) -> Driver {
    let (mut driver, _) = offering(count);
    driver.added(count, HotAddResult::SUCCESS);
    assert_eq!(driver.actual(), RAM_PAGES + count);
    driver.drain();
    driver
}

#[test]
fn memory_is_there_before_the_guest_is_told() {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + 1024);
    assert!(driver.ring.is_empty());
    let Prepare::Add { range: added, offset, alignment } = driver.prepared(true) else {
        panic!("not new memory");
    };
    assert_eq!((added, offset, alignment), (range(BASE, 1024), pages(0), pages(BLOCK)));
    assert_eq!(driver.offered(), added);
    assert_eq!((driver.actual(), driver.state()), (RAM_PAGES, StateName::HotAdding));
    driver.added(1024, HotAddResult::SUCCESS);
    let actual = pages(RAM_PAGES + 1024);
    assert_eq!(
        driver.notices,
        [
            Notice::HotAddedChanged { hot_added: pages(1024) },
            Notice::SizeChanged { actual },
            Notice::TargetReached { actual },
        ]
    );
}

#[test]
fn the_snapshot_says_where_added_memory_is_and_how_much_there_can_be() {
    let (mut driver, _) = offering(BLOCK);
    let place = |driver: &Driver| {
        let device = driver.device.snapshot();
        (device.hot_add_base.map(Gpfn::get), device.hot_add_capacity)
    };
    // Offered is not added.
    assert_eq!(place(&driver), (None, pages(4096)));
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!(place(&driver), (Some(BASE), pages(4096)));
    assert_eq!(Driver::ready().device.snapshot().hot_add_capacity, pages(0));
}

#[test]
fn what_is_ballooned_goes_back_first() {
    let mut driver = Driver::growable();
    driver.set_target(4096);
    driver.give(&[range(0, 4096)], false);
    driver.finish_discards();
    driver.drain();
    driver.set_target(RAM_PAGES + BLOCK);
    assert_eq!(driver.returned(), (vec![range(0, 4096)], false));
    assert!(driver.preparing.is_empty());
    driver.unballooned();
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE, BLOCK));
}

#[test]
fn memory_is_added_while_pages_are_still_being_discarded() {
    let mut driver = Driver::growable();
    driver.set_target(4096);
    driver.give(&[range(0, 4096)], false);
    driver.set_target(RAM_PAGES + BLOCK);
    driver.prepared(true);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    driver.drain();
    driver.finish_discards();
    assert_eq!(driver.returned(), (vec![range(0, 4096)], false));
}

#[test]
fn the_end_of_a_discard_is_not_taken_for_that_of_a_preparation() {
    let mut driver = Driver::growable();
    driver.set_target(4096);
    driver.give(&[range(0, 4096)], false);
    driver.set_target(RAM_PAGES + BLOCK);
    driver.drain();
    driver.finish_discards();
    assert_eq!((driver.state(), driver.ring.len()), (StateName::Preparing, 0));
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE, BLOCK));
}

#[test]
fn a_target_between_blocks_is_met_by_adding_a_block_and_ballooning_the_rest() {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + 100);
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE, BLOCK));
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!(driver.asked(), BLOCK - 100);
    driver.give(&[range(BASE + 100, BLOCK - 100)], false);
    driver.finish_discards();
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + 100, None));
}

#[test]
fn a_guest_that_cannot_balloon_gets_whole_blocks_only() {
    let mut driver = Driver::growable();
    driver.handle(Event::ChannelClosed);
    let hot_add = Capabilities::HOT_ADD.with_hot_add_alignment(1);
    driver.shake_hands_as(0, hot_add);
    driver.set_target(RAM_PAGES + BLOCK + 100);
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE, BLOCK));
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!(stop(&driver), Some(StopReason::NoAddressSpace));
}

#[test]
fn added_memory_balloons_page_by_page() {
    let mut driver = grown(1024);
    driver.set_target(RAM_PAGES + 1023);
    assert_eq!(driver.asked(), 1);
    driver.give(&[range(BASE + 7, 1)], false);
    assert_eq!(driver.finish_discard(true), [range(BASE + 7, 1)]);
    driver.set_target(RAM_PAGES + 1024);
    driver.ring.clear();
    driver.unballooned();
    assert_eq!(driver.actual(), RAM_PAGES + 1024);
}

#[test]
fn what_the_guest_did_not_take_goes_back_and_is_offered_again() {
    let (mut driver, _) = offering(2048);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!(driver.removed, [range(BASE + BLOCK, 2048 - BLOCK)]);
    assert_eq!((driver.actual(), driver.state()), (RAM_PAGES + BLOCK, StateName::Pausing));
    driver.wait(FIRST_RETRY_PAUSE);
    let Prepare::Add { range: again, offset, .. } = driver.prepared(true) else {
        panic!("not new memory");
    };
    assert_eq!((again, offset), (range(BASE + BLOCK, 2048 - BLOCK), pages(BLOCK)));
    driver.added(2048 - BLOCK, HotAddResult::SUCCESS);
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + 2048, None));
}

#[test]
fn a_refusal_is_no_failure_and_not_final() {
    let (mut driver, offer) = offering(BLOCK);
    let reason = StopReason::HotAddRefused;
    driver.added(0, HotAddResult::SUCCESS);
    assert_eq!((driver.removed.as_slice(), stop(&driver)), ([offer].as_slice(), Some(reason)));
    let target = pages(RAM_PAGES + BLOCK);
    let refusal = driver.device.snapshot().last_refusal;
    assert_eq!(refusal, Some((target, Refusal::Stopped(reason))));
    assert!(driver.preparing.is_empty(), "asked again by itself");
    driver.set_target(RAM_PAGES + BLOCK);
    driver.prepared(true);
    assert_eq!(driver.offered(), offer);
}

#[test]
fn a_guest_that_fails_to_add_memory_is_asked_again_a_few_times() {
    let (mut driver, offer) = offering(BLOCK);
    for failure in 1..MAX_FAILURES {
        driver.added(0, HotAddResult::FAILURE);
        assert_eq!((driver.state(), stop(&driver)), (StateName::Pausing, None));
        let pause = FIRST_RETRY_PAUSE * (1 << (failure - 1));
        assert_eq!(driver.device.next_deadline(), Some(driver.now + pause));
        driver.wait(pause);
        driver.prepared(true);
        assert_eq!(driver.offered(), offer);
    }
    driver.added(0, HotAddResult::FAILURE);
    assert_eq!(stop(&driver), Some(StopReason::HotAddFailed));
    driver.wait(Duration::from_secs(3600));
    assert!(driver.preparing.is_empty());
}

#[test]
fn a_failure_that_passes_changes_nothing() {
    let (mut driver, offer) = offering(BLOCK);
    driver.added(0, HotAddResult::FAILURE);
    driver.wait(FIRST_RETRY_PAUSE);
    driver.prepared(true);
    assert_eq!(driver.offered(), offer);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + BLOCK, None));
}

#[test]
fn impossible_answers_count_as_far_as_they_go() {
    let (mut driver, _) = offering(1024);
    driver.added(5000, HotAddResult::SUCCESS);
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + 1024, None));
    let (mut driver, _) = offering(1024);
    driver.added(700, HotAddResult::SUCCESS);
    assert_eq!(driver.actual(), RAM_PAGES + 1024, "the guest can reach all of the block");
    assert_eq!(driver.device.snapshot().faults.odd_hot_adds, 1);
    assert!(driver.removed.is_empty());
    driver.set_target(RAM_PAGES + 1024 + BLOCK);
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE + 1024, BLOCK));
}

#[test]
fn a_silent_guest_keeps_what_it_was_offered_and_may_answer_late() {
    let (mut driver, _) = offering(BLOCK);
    driver.drain();
    driver.wait(2 * HOT_ADD_TIMEOUT);
    assert!(driver.notices.contains(&Notice::TimedOut(Transaction::HotAdd)));
    assert_eq!(stop(&driver), Some(StopReason::HotAddTimeout));
    assert!(driver.removed.is_empty());
    driver.wait(100 * HOT_ADD_TIMEOUT);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + BLOCK, None));
}

#[test]
fn a_late_refusal_does_not_hide_that_the_guest_is_silent_again() {
    let (mut driver, _) = offering(BLOCK);
    driver.wait(HOT_ADD_TIMEOUT * 2);
    driver.set_target(RAM_PAGES - 100);
    assert_eq!(driver.asked(), 100);
    driver.added(0, HotAddResult::SUCCESS);
    driver.notices.clear();
    driver.wait(BALLOON_TIMEOUT);
    assert_eq!(stop(&driver), Some(StopReason::Timeout));
    let (target, actual, reason) = (pages(RAM_PAGES - 100), pages(RAM_PAGES), StopReason::Timeout);
    assert!(driver.notices.contains(&Notice::StoppedShort { target, actual, reason }));
}

#[test]
fn a_late_failure_is_followed_by_a_pause_unless_something_else_is_under_way() {
    for (target, state) in
        [(RAM_PAGES + BLOCK, StateName::Pausing), (RAM_PAGES - BLOCK, StateName::Ballooning)]
    {
        let (mut driver, _) = offering(BLOCK);
        driver.wait(2 * HOT_ADD_TIMEOUT);
        driver.set_target(target);
        driver.added(0, HotAddResult::FAILURE);
        assert_eq!(driver.state(), state);
    }
}

#[test]
fn memory_is_not_offered_twice_whatever_the_operator_wants() {
    let (mut driver, _) = offering(BLOCK);
    driver.wait(2 * HOT_ADD_TIMEOUT);
    driver.set_target(RAM_PAGES + BLOCK);
    assert_eq!(
        stop(&driver),
        Some(StopReason::HotAddTimeout),
        "offered again while it may be used"
    );
    driver.set_target(RAM_PAGES - BLOCK);
    driver.drain();
    driver.set_target(RAM_PAGES + BLOCK);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + BLOCK, None));
}

#[test]
fn pages_of_new_memory_given_before_the_answer_count_as_given() {
    let (mut driver, offer) = offering(BLOCK);
    driver.give(&[range(BASE, 10)], false);
    assert_eq!(driver.device.snapshot().foreign, pages(10));
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!(driver.discards.front().unwrap().1, [range(BASE, 10)]);
    driver.finish_discards();
    assert_eq!(driver.device.snapshot().foreign, pages(0));
    assert_eq!(driver.returned(), (vec![range(offer.start().get(), 10)], false));
}

#[test]
fn pages_given_before_they_exist_are_never_given_back() {
    let mut driver = Driver::growable();
    driver.give(&[range(BASE, 10)], false);
    driver.set_target(RAM_PAGES + BLOCK);
    driver.prepared(true);
    driver.offered();
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert!(driver.discards.is_empty() && driver.ring.is_empty());
    assert_eq!(driver.device.snapshot().foreign, pages(0));
}

#[test]
fn a_guest_without_the_capability_is_never_asked() {
    let mut driver = Driver::growable();
    driver.handle(Event::ChannelClosed);
    driver.set_target(RAM_PAGES + BLOCK);
    driver.shake_hands_as(0, Capabilities::BALLOON);
    assert_eq!(stop(&driver), Some(StopReason::NoHotAddCapability));
    let maximum = pages(RAM_PAGES);
    let refused = driver.try_target(RAM_PAGES + BLOCK);
    assert_eq!(refused, Err(TargetError::CannotHotAdd { maximum }));
    assert!(driver.preparing.is_empty());
}

#[test]
fn the_maximum_is_what_the_guests_alignment_lets_through() {
    let mut driver = Driver::growable();
    assert_eq!(driver.device.snapshot().maximum, pages(RAM_PAGES + 4096));
    driver.handle(Event::ChannelClosed);
    driver.set_target(RAM_PAGES + 4000);
    let coarse = Capabilities::BALLOON.union(Capabilities::HOT_ADD).with_hot_add_alignment(5);
    driver.shake_hands_as(0, coarse);
    assert_eq!(driver.device.snapshot().maximum, pages(RAM_PAGES));
    assert_eq!(stop(&driver), Some(StopReason::NoAddressSpace));
    let error = TargetError::CannotHotAdd { maximum: pages(RAM_PAGES) };
    assert_ne!(driver.device.can_set_target(pages(RAM_PAGES + 1)), Err(error));
    assert!(driver.device.can_set_target(pages(RAM_PAGES + 1)).is_err());
}

#[test]
fn what_a_guest_cannot_do_is_told_before_it_has_settled() {
    let mut driver = Driver::new(hv_balloon::Settle::Fixed(Duration::from_secs(50)), false);
    driver.set_target(4096);
    driver.shake_hands_as(0, Capabilities::HOT_ADD);
    assert_eq!(
        (driver.state(), stop(&driver)),
        (StateName::Settling, Some(StopReason::NoBalloonCapability))
    );
}

#[test]
fn a_reset_says_what_becomes_of_the_target() {
    let (mut driver, _) = offering(BLOCK);
    driver.handle(Event::SystemReset);
    let (target, actual, reason) = (pages(RAM_PAGES + BLOCK), pages(RAM_PAGES), StopReason::Reset);
    assert!(driver.notices.contains(&Notice::StoppedShort { target, actual, reason }));
    assert_eq!(driver.device.snapshot().target, None);
}

#[test]
fn a_target_set_after_a_reset_outlives_new_memory() {
    let mut driver = Driver::growable();
    driver.handle(Event::SystemReset);
    driver.set_target(4096);
    driver.device.replace_memory(driver.now, ram(), None).unwrap();
    assert_eq!(driver.device.snapshot().target, Some(pages(4096)));
}

#[test]
fn memory_the_host_has_not_got_is_tried_for_a_few_times() {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + BLOCK);
    for failure in 1..MAX_FAILURES {
        driver.prepared(false);
        assert_eq!((driver.state(), stop(&driver)), (StateName::Pausing, None));
        driver.wait(FIRST_RETRY_PAUSE * (1 << (failure - 1)));
    }
    driver.prepared(false);
    assert!(driver.ring.is_empty());
    assert_eq!((driver.state(), stop(&driver)), (StateName::Idle, Some(StopReason::HostMemory)));
    driver.set_target(RAM_PAGES + BLOCK);
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE, BLOCK));
}

#[test]
fn a_target_that_falls_while_memory_is_prepared_takes_it_away_again() {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + BLOCK);
    driver.set_target(RAM_PAGES);
    driver.prepared(true);
    assert_eq!(driver.removed, [range(BASE, BLOCK)]);
    assert!(driver.ring.is_empty());
}

#[test]
fn added_memory_outlives_the_channel_but_not_a_reset() {
    let mut driver = grown(BLOCK);
    driver.handle(Event::ChannelClosed);
    assert_eq!(driver.actual(), RAM_PAGES + BLOCK);
    driver.shake_hands_as(0, CAN_GROW);
    driver.packet(&status(RAM_PAGES + BLOCK, 0));
    driver.set_target(RAM_PAGES + 2 * BLOCK);
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE + BLOCK, BLOCK));
    driver.handle(Event::SystemReset);
    assert_eq!(driver.removed, [range(BASE, 2 * BLOCK)]);
    assert_eq!(driver.actual(), RAM_PAGES);
    assert_eq!(driver.device.snapshot().hot_added, pages(0));
}

#[test]
fn after_a_reset_the_guest_may_have_other_memory() {
    let mut driver = grown(BLOCK);
    let other: page_range::PageRangeSet = [range(0, 1024)].into_iter().collect();
    let refused = driver.device.replace_memory(driver.now, other.clone(), None);
    assert_eq!(refused, Err(ReplaceError::InUse { state: StateName::Idle }));
    driver.handle(Event::SystemReset);
    driver.device.replace_memory(driver.now, other, None).unwrap();
    let snapshot = driver.device.snapshot();
    assert_eq!(
        (snapshot.actual, snapshot.boot, snapshot.maximum),
        (pages(1024), pages(1024), pages(1024))
    );
}

#[test]
fn a_target_that_the_next_machine_boots_with_is_reached() {
    let mut driver = Driver::growable();
    driver.handle(Event::SystemReset);
    driver.set_target(RAM_PAGES / 2);
    assert!(driver.device.snapshot().is_pursued);
    let half = [range(0, RAM_PAGES / 2)].into_iter().collect();
    driver.device.replace_memory(driver.now, half, None).unwrap();
    assert!(!driver.device.snapshot().is_pursued, "nobody tells the operator");
}

#[test]
fn a_close_waits_for_memory_being_prepared_and_removes_it() {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + BLOCK);
    driver.handle(Event::ChannelClosed);
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closing, 0));
    driver.prepared(true);
    assert_eq!(
        (driver.removed.as_slice(), driver.closes_finished),
        ([range(BASE, BLOCK)].as_slice(), 1)
    );
    assert_eq!(driver.actual(), RAM_PAGES);
}

#[test]
fn a_close_removes_nothing_that_could_not_be_prepared() {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + BLOCK);
    driver.handle(Event::ChannelClosed);
    driver.prepared(false);
    assert_eq!((driver.removed.len(), driver.closes_finished), (0, 1));
}

#[test]
fn memory_offered_and_not_answered_for_stays_when_the_channel_closes() {
    let (mut driver, _) = offering(BLOCK);
    driver.handle(Event::ChannelClosed);
    assert!(driver.removed.is_empty());
    assert_eq!(driver.actual(), RAM_PAGES + BLOCK);
}

#[test]
fn an_offer_that_never_reached_the_ring_is_withdrawn() {
    let mut driver = Driver::growable();
    driver.ring_is_full = true;
    driver.set_target(RAM_PAGES + BLOCK);
    driver.prepared(true);
    driver.handle(Event::ChannelClosed);
    assert_eq!(driver.removed, [range(BASE, BLOCK)]);
    assert_eq!(driver.actual(), RAM_PAGES);
}
