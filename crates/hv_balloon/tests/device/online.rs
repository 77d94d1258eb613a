//! Whether a guest uses the memory it was given, before it is offered more.

use std::time::Duration;

use dynmem_protocol::HotAddResult;
use hv_balloon::{
    Config, Event, FIRST_HOT_ADD_REQUEST, HotAdd, Notice, Prepare, Settle, StateName, StopReason,
};

use crate::driver::*;

/// The guest's block size, in pages.
const BLOCK: u64 = 512;
const LINUX: u64 = 0x8100_0601_0000_0000;

/// A Linux that has reported its status and was offered a block, of two that it lacks.
fn offering_to_linux() -> Driver {
    let mut driver = Driver::growable();
    driver.handle(Event::ChannelClosed);
    driver.shake_hands_as(LINUX, CAN_GROW);
    driver.packet(&status(5000, 2000));
    driver.set_target(RAM_PAGES + 2 * BLOCK);
    let Prepare::Add { range, .. } = driver.prepared(true) else { panic!("not new memory") };
    assert_eq!(range.count(), pages(2 * BLOCK));
    driver
}

#[test]
fn a_slow_linux_that_uses_its_memory_is_given_more() {
    let mut driver = offering_to_linux();
    driver.now += Duration::from_secs(300);
    driver.added(2 * BLOCK, HotAddResult::SUCCESS);
    driver.packet(&status(5000 + 2 * BLOCK - 20, 2010));
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + 2 * BLOCK, None));
    driver.set_target(RAM_PAGES + 3 * BLOCK);
    assert_eq!(driver.preparing.len(), 1);
}

#[test]
fn a_linux_that_reports_its_new_memory_offline_is_given_no_more_until_it_uses_it() {
    let mut driver = offering_to_linux();
    driver.now += Duration::from_secs(5);
    driver.added(2 * BLOCK, HotAddResult::SUCCESS);
    driver.packet(&status(4990, 2000 + 2 * BLOCK));
    let size = (RAM_PAGES + 2 * BLOCK, Some(StopReason::NotOnlined));
    assert_eq!((driver.actual(), stop(&driver)), size);
    let (target, reason) = (pages(RAM_PAGES + 2 * BLOCK), StopReason::NotOnlined);
    let stopped = Notice::StoppedShort { target, actual: target, reason };
    assert_eq!(driver.notices.iter().filter(|notice| **notice == stopped).count(), 1);
    assert!(driver.device.snapshot().is_pursued);
    driver.wait(Duration::from_secs(3600));
    assert_eq!((driver.actual(), stop(&driver)), size);
    driver.packet(&status(5000 + 2 * BLOCK, 2000));
    assert_eq!(stop(&driver), None);
}

/// A Linux with room for much memory, which lacks several times what it is offered first.
fn lacking_much(has_reported: bool) -> Driver {
    let hot_add = HotAdd { window: WINDOW, capacity: pages(300_000), least_alignment: pages(1) };
    let mut driver = Driver::with(Config {
        boot_ram: ram(),
        settle: Settle::Fixed(Duration::ZERO),
        hot_add: Some(hot_add),
        ..Config::default()
    });
    driver.shake_hands_as(LINUX, CAN_GROW);
    if has_reported {
        driver.packet(&status(5000, 2000));
    }
    driver.set_target(RAM_PAGES + 200 * BLOCK);
    driver.prepared(true);
    assert_eq!(driver.offered().count(), FIRST_HOT_ADD_REQUEST);
    driver
}

#[test]
fn a_quick_answer_is_followed_by_an_offer_of_all_that_is_missing() {
    let mut driver = lacking_much(false);
    driver.added(FIRST_HOT_ADD_REQUEST.get(), HotAddResult::SUCCESS);
    driver.prepared(true);
    assert_eq!(driver.offered().count().get(), 200 * BLOCK - FIRST_HOT_ADD_REQUEST.get());
}

/// There was no report to compare the next one with; the next block is compared with it.
#[test]
fn a_slow_linux_without_a_report_is_offered_no_more_before_it_reports() {
    let mut driver = lacking_much(false);
    driver.now += Duration::from_secs(5);
    driver.added(FIRST_HOT_ADD_REQUEST.get(), HotAddResult::SUCCESS);
    driver.wait(Duration::from_secs(600));
    assert_eq!((driver.preparing.len(), stop(&driver)), (0, Some(StopReason::NotOnlined)));
    driver.packet(&status(5000, 2000));
    assert_eq!((driver.preparing.len(), stop(&driver)), (1, None));
}

/// The balloon changes what the guest commits as well.
#[test]
fn no_report_is_compared_with_one_before_a_balloon_request() {
    let mut driver = Driver::growable();
    driver.handle(Event::ChannelClosed);
    driver.shake_hands_as(LINUX, CAN_GROW);
    driver.packet(&status(5000, 2000));
    driver.set_target(RAM_PAGES + 100);
    driver.prepared(true);
    driver.now += Duration::from_secs(5);
    driver.offered();
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!(driver.asked(), BLOCK - 100);
    driver.packet(&status(5000, 2000 + BLOCK));
    assert_eq!((driver.state(), stop(&driver)), (StateName::Ballooning, None));
}

#[test]
fn a_slow_linux_whose_reports_do_not_come_is_offered_more_after_a_while() {
    let mut driver = lacking_much(true);
    driver.now += Duration::from_secs(5);
    driver.added(FIRST_HOT_ADD_REQUEST.get(), HotAddResult::SUCCESS);
    assert!(driver.preparing.is_empty());
    let until = driver.device.next_deadline().expect("waits without end");
    driver.wait(until - driver.now);
    assert_eq!((driver.preparing.len(), stop(&driver)), (1, None));
}

/// Linux reports nothing in the first 45 seconds of its driver.
#[test]
fn a_slow_linux_without_a_report_is_doubted_until_the_next_target() {
    let mut driver = Driver::growable();
    driver.handle(Event::ChannelClosed);
    driver.shake_hands_as(LINUX, CAN_GROW);
    driver.set_target(RAM_PAGES + BLOCK);
    driver.prepared(true);
    driver.now += Duration::from_secs(5);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    let doubted = (RAM_PAGES + BLOCK, Some(StopReason::NotOnlined));
    assert_eq!((driver.actual(), stop(&driver)), doubted);
    // There is nothing to compare a report with.
    driver.packet(&status(5000, 2000));
    assert_eq!((driver.actual(), stop(&driver)), doubted);
    driver.set_target(RAM_PAGES + 2 * BLOCK);
    driver.prepared(true);
    driver.now += Duration::from_secs(1);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!((driver.actual(), stop(&driver)), (RAM_PAGES + 2 * BLOCK, None));
}
