//! While discards are forbidden, everything else continues.

use std::time::Duration;

use dynmem_protocol::HotAddResult;
use hv_balloon::{Config, Event, SHORT_ANSWER_PAUSE, Settle, StateName};

use crate::driver::*;

fn inhibited() -> Driver {
    let mut driver = Driver::growable();
    driver.set_inhibited(true);
    driver
}

#[test]
fn no_page_is_asked_for_until_it_may_be_discarded() {
    let mut driver = inhibited();
    driver.set_target(4096);
    assert!(driver.ring.is_empty());
    assert!(driver.device.snapshot().inhibited && driver.device.snapshot().is_pursued);
    assert_eq!(driver.device.next_deadline(), None, "gives up by itself");
    driver.set_inhibited(false);
    assert_eq!(driver.asked(), 4096);
}

#[test]
fn pages_that_come_wait_and_are_discarded_later() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.set_inhibited(true);
    driver.give(&[range(0, 4096)], false);
    assert!(driver.discards.is_empty());
    let snapshot = driver.device.snapshot();
    assert_eq!((snapshot.in_flight, snapshot.discarding), (pages(4096), pages(0)));
    assert_eq!((snapshot.actual, snapshot.is_pursued), (pages(RAM_PAGES), true));
    driver.set_inhibited(false);
    driver.finish_discards();
    assert_eq!((driver.actual(), driver.device.snapshot().is_pursued), (4096, false));
}

#[test]
fn pages_that_wait_may_be_given_back() {
    let mut driver = inhibited();
    driver.give(&[range(0, 512)], false);
    driver.set_target(RAM_PAGES);
    assert_eq!(driver.returned(), (vec![range(0, 512)], false));
}

#[test]
fn a_discard_that_runs_is_seen_to_end() {
    let mut driver = Driver::ready();
    driver.give(&[range(0, 512)], false);
    driver.set_inhibited(true);
    driver.give(&[range(512, 512)], false);
    assert_eq!(driver.device.snapshot().discarding, pages(512));
    driver.finish_discard(true);
    let snapshot = driver.device.snapshot();
    assert_eq!((snapshot.discarding, snapshot.in_flight), (pages(0), pages(512)));
    assert!(driver.discards.is_empty());
}

#[test]
fn a_discard_of_a_closed_channel_is_seen_to_end() {
    let mut driver = Driver::ready();
    driver.give(&[range(0, 512)], false);
    driver.handle(Event::ChannelClosed);
    assert_eq!(driver.device.snapshot().discarding, pages(512));
    driver.finish_discard(true);
    assert_eq!(driver.device.snapshot().discarding, pages(0));
}

#[test]
fn a_guest_grows_all_the_same() {
    let mut driver = inhibited();
    driver.set_target(RAM_PAGES + 512);
    driver.prepared(true);
    driver.added(512, HotAddResult::SUCCESS);
    assert_eq!(driver.actual(), RAM_PAGES + 512);
}

#[test]
fn a_guest_that_gave_little_is_asked_again_once_it_may_be() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 512)], false);
    driver.finish_discards();
    driver.drain();
    driver.set_inhibited(true);
    driver.wait(SHORT_ANSWER_PAUSE);
    assert_eq!((driver.state(), driver.ring.len()), (StateName::Idle, 0));
    driver.set_inhibited(false);
    assert_eq!(driver.asked(), 4096 - 512);
}

#[test]
fn it_holds_over_closes_and_resets() {
    let mut driver = inhibited();
    for event in [Event::ChannelClosed, Event::SystemReset] {
        driver.handle(event);
        driver.shake_hands();
        driver.set_target(4096);
        assert!(driver.ring.is_empty() && driver.device.snapshot().inhibited);
    }
}

#[test]
fn parts_of_huge_pages_wait_too_and_keep_no_target_from_its_end() {
    let unit = 512;
    let mut driver = Driver::with(Config {
        boot_ram: ram(),
        discard_unit: pages(unit),
        settle: Settle::Fixed(Duration::ZERO),
        ..Config::default()
    });
    driver.shake_hands();
    driver.set_target(RAM_PAGES - unit);
    driver.give(&[range(0, unit), range(unit, 100)], false);
    driver.finish_discards();
    driver.drain();
    driver.set_inhibited(true);
    // The held part of one unit is returned first, then the other unit, which the host provides
    // whole.
    driver.set_target(RAM_PAGES);
    while driver.state() != StateName::Idle {
        if driver.preparing.is_empty() {
            driver.unballooned();
        } else {
            driver.prepared(true);
        }
    }
    assert_eq!((driver.actual(), driver.device.snapshot().is_pursued), (RAM_PAGES, false));
}

#[test]
fn who_restores_says_whether_it_holds() {
    let mut driver = Driver::ready();
    driver.give(&[range(0, 512)], false);
    assert_eq!(driver.discards.len(), 1);
    driver.config.inhibited = true;
    driver.save_and_restore();
    let snapshot = driver.device.snapshot();
    assert!(driver.discards.is_empty() && snapshot.inhibited);
    assert_eq!((snapshot.in_flight, snapshot.discarding), (pages(512), pages(0)));
    driver.config.inhibited = false;
    driver.save_and_restore();
    assert!(!driver.device.snapshot().inhibited);
    driver.finish_discards();
    assert_eq!(driver.actual(), RAM_PAGES - 512);
}
