//! Open, handshake, settle, close, reset.

use std::time::Duration;

use crate::driver::*;
use dynmem_protocol::*;
use hv_balloon::{Config, Event, HotAdd, Notice, Settle, StateName, StopReason};

const LINUX: u64 = 0x8100_0601_0000_0000;

fn opened(settle: Settle, status_reports: bool, guest_os_id: u64) -> Driver {
    let mut driver = Driver::new(settle, status_reports);
    driver.handle(Event::ChannelOpened { guest_os_id, is_reopened: false });
    driver
}

#[test]
fn linux_is_answered_byte_for_byte_and_ready_at_once() {
    let mut driver = opened(Settle::Auto, false, LINUX);
    driver.packet(&[1, 0, 16, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    driver.packet(&capabilities_report(Capabilities::from_wire(0x1f)));
    assert_eq!(driver.ring[0], [2, 0, 16, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.ring[1], [4, 0, 16, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.notices, [Notice::Ready { version: Version::V2_0 }]);
}

#[test]
fn reports_are_not_suppressed_where_they_are_wanted() {
    let mut driver = opened(Settle::Auto, true, LINUX);
    driver.packet(&version_request(Version::V2_0));
    driver.packet(&capabilities_report(Capabilities::BALLOON));
    assert_eq!(driver.ring[1], [4, 0, 16, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_guest_comes_down_to_a_version_both_know() {
    let mut driver = opened(Settle::Auto, false, 0);
    driver.packet(&version_request(Version::from_wire(0x0003_0000)));
    driver.packet(&version_request(Version::from_wire(0x0001_0001)));
    assert_eq!(driver.state(), StateName::AwaitVersion);
    driver.packet(&version_request(Version::V0_3));
    assert_eq!(driver.state(), StateName::AwaitCaps);
    assert_eq!(driver.device.snapshot().version, Some(Version::V0_3));
    let accepted: Vec<u8> = driver.ring.iter().map(|message| message[8]).collect();
    assert_eq!(accepted, [0, 0, 1]);
    let version = Version::from_wire(0x0003_0000);
    assert_eq!(driver.notices[0], Notice::VersionRefused { version, was_last_attempt: false });
}

#[test]
fn the_snapshot_names_the_guest_while_the_channel_is_open() {
    let named = |driver: &Driver| driver.device.snapshot().guest_os_id;
    let mut driver = Driver::new(Settle::Auto, false);
    assert_eq!(named(&driver), None);
    driver.handle(Event::ChannelOpened { guest_os_id: LINUX, is_reopened: false });
    assert_eq!(named(&driver), Some(LINUX));
    driver.packet(&version_request(Version::V2_0));
    driver.packet(&capabilities_report(Capabilities::BALLOON));
    assert_eq!((driver.state(), named(&driver)), (StateName::Idle, Some(LINUX)));
    driver.handle(Event::ChannelClosed);
    assert_eq!(named(&driver), None);
}

#[test]
fn what_the_guest_cannot_do_is_said_before_it_has_settled() {
    for (target, capabilities, reason) in [
        (RAM_PAGES + 512, Capabilities::BALLOON, StopReason::NoHotAddCapability),
        (RAM_PAGES - 512, Capabilities::HOT_ADD, StopReason::NoBalloonCapability),
    ] {
        let hot_add = HotAdd { window: WINDOW, capacity: pages(4096), least_alignment: pages(1) };
        let settle = Settle::Fixed(Duration::from_secs(60));
        let config =
            Config { boot_ram: ram(), settle, hot_add: Some(hot_add), ..Config::default() };
        let mut driver = Driver::with(config);
        driver.set_target(target);
        driver.shake_hands_as(0, capabilities);
        let device = driver.device.snapshot();
        assert_eq!((device.state, device.last_stop), (StateName::Settling, Some(reason)));
    }
}

#[test]
fn a_guest_that_asks_and_does_not_read_is_held_off() {
    let mut driver = opened(Settle::Auto, false, 0);
    driver.ring_is_full = true;
    for _ in 0..20 {
        driver.packet(&version_request(Version::from_wire(7)));
    }
    assert_eq!(driver.device.snapshot().faults.floods, 11);
    driver.make_room();
    assert_eq!(driver.ring.len(), 9);
}

#[test]
fn other_guests_get_fifty_seconds_to_settle() {
    let mut driver = opened(Settle::Auto, false, 0);
    driver.packet(&version_request(Version::V2_0));
    driver.packet(&capabilities_report(Capabilities::BALLOON));
    assert_eq!(driver.state(), StateName::Settling);
    assert_eq!(driver.device.snapshot().ready_in, Some(Duration::from_secs(50)));
    assert_eq!(driver.device.next_deadline(), Some(Duration::from_secs(51)));
    driver.wait(Duration::from_secs(49));
    assert_eq!(driver.device.snapshot().ready_in, Some(Duration::from_secs(1)));
    driver.wait(Duration::from_secs(1));
    assert_eq!(driver.state(), StateName::Idle);
}

#[test]
fn a_target_set_early_is_carried_out_when_the_guest_is_ready() {
    let mut driver = Driver::new(Settle::Fixed(Duration::from_secs(5)), false);
    driver.set_target(4096);
    driver.shake_hands();
    assert!(driver.ring.is_empty());
    driver.wait(Duration::from_secs(5));
    assert_eq!(driver.asked(), 4096);
}

#[test]
fn close_waits_for_discards_and_gives_all_pages_back() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 512)], true);
    driver.finish_discards();
    driver.give(&[range(512, 512)], true);
    assert_eq!(driver.actual(), RAM_PAGES - 512);
    driver.handle(Event::ChannelClosed);
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closing, 0));
    assert_eq!((driver.actual(), driver.device.snapshot().in_flight), (RAM_PAGES, pages(512)));
    driver.finish_discards();
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
    let snapshot = driver.device.snapshot();
    assert_eq!((snapshot.ballooned, snapshot.in_flight), (pages(0), pages(0)));
}

#[test]
fn a_reset_during_a_close_waits_for_the_same_discards() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 512)], true);
    driver.handle(Event::ChannelClosed);
    driver.handle(Event::SystemReset);
    assert_eq!(driver.closes_finished, 0);
    driver.finish_discards();
    assert_eq!(driver.closes_finished, 1);
}

#[test]
fn a_target_under_way_survives_a_close_but_not_a_reset() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.handle(Event::ChannelClosed);
    driver.drain();
    driver.shake_hands();
    assert_eq!(driver.device.snapshot().target, Some(pages(4096)));
    assert_eq!(driver.state(), StateName::Ballooning);
    driver.handle(Event::SystemReset);
    driver.drain();
    driver.shake_hands();
    assert_eq!(driver.device.snapshot().target, None);
    assert_eq!(driver.state(), StateName::Idle);
}

#[test]
fn a_target_that_was_reached_is_not_pursued_again_after_a_close() {
    let mut driver = Driver::with_ballooned(4096);
    driver.handle(Event::ChannelClosed);
    driver.shake_hands();
    assert_eq!((driver.state(), driver.actual()), (StateName::Idle, RAM_PAGES));
}

#[test]
fn a_message_the_ring_did_not_take_is_void_after_a_close() {
    let mut driver = Driver::ready();
    driver.ring_is_full = true;
    driver.set_target(4096);
    driver.handle(Event::ChannelClosed);
    driver.stuck = None;
    driver.ring_is_full = false;
    driver.handle(Event::SystemReset);
    driver.shake_hands();
    driver.set_target(8000);
    assert_eq!(driver.asked(), 192);
}

#[test]
fn reports_are_kept_and_passed_on_where_wanted() {
    let report = StatusReport { available: pages(7), committed: pages(9), ..Default::default() };
    let mut driver = Driver::new(Settle::Fixed(Duration::ZERO), true);
    driver.shake_hands();
    driver.packet(&report.emit(3));
    assert_eq!(driver.notices, [Notice::StatusReport(report)]);
    assert_eq!(driver.device.snapshot().status, Some(report));
    driver.handle(Event::ChannelClosed);
    assert_eq!(driver.device.snapshot().status, None);
}

#[test]
fn reports_are_kept_but_not_passed_on_elsewhere() {
    let mut driver = Driver::ready();
    driver.packet(&StatusReport::default().emit(3));
    assert_eq!(driver.notices, []);
    assert_eq!(driver.device.snapshot().status, Some(StatusReport::default()));
}
