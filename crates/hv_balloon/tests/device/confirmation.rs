//! Memory that was added before the guest's kernel started, which may not know it.

use std::time::Duration;

use dynmem_protocol::{Capabilities, HostBody, HostMessage, HotAddResult, StatusReport, Version};
use hv_balloon::{
    CONFIRMATION_WAIT, Config, Event, HotAdd, Notice, Settle, StateName, StopReason, TargetError,
};
use page_range::PageRange;

use crate::driver::*;

const MIB: u64 = 256;
const GIB: u64 = 1024 * MIB;
const LINUX: u64 = 0x8100_0601_0000_0000;
/// The first page beyond boot RAM.
const BASE: u64 = 64 * GIB;

/// A guest with boot RAM of this size, which was grown by `added` and could be grown by `more`.
/// Another kernel has opened the channel since.
fn after_kexec(boot: u64, added: u64, more: u64) -> Driver {
    let mut driver = grown(boot, added, more);
    driver.handle(Event::ChannelClosed);
    driver.shake_hands_as(LINUX, CAN_GROW);
    driver
}

fn grown(boot: u64, added: u64, more: u64) -> Driver {
    let capacity = pages(added + more);
    let hot_add = HotAdd { window: range(BASE, 64 * GIB), capacity, least_alignment: pages(1) };
    let mut driver = Driver::with(Config {
        boot_ram: [range(0, boot)].into_iter().collect(),
        settle: Settle::Fixed(Duration::ZERO),
        hot_add: Some(hot_add),
        ..Config::default()
    });
    driver.shake_hands_as(LINUX, CAN_GROW);
    driver.set_target(boot + added);
    while driver.actual() < boot + added {
        take_offer(&mut driver);
    }
    driver.drain();
    driver
}

/// The guest takes what it is offered.
fn take_offer(driver: &mut Driver) -> PageRange {
    driver.prepared(true);
    let range = driver.offered();
    driver.added(range.count().get(), HotAddResult::SUCCESS);
    range
}

/// What a Linux with this much memory reports, of which it uses 100 MiB.
fn report(driver: &mut Driver, managed: u64) {
    let used = 100 * MIB;
    let floor = StatusReport::linux_floor(pages(managed));
    let committed = pages(used).saturating_add(floor);
    let report = StatusReport { available: pages(managed - used), committed, ..Default::default() };
    driver.packet(&report.emit(7));
}

fn confirmed(driver: &Driver) -> (u64, u64, bool) {
    let snapshot = driver.device.snapshot();
    (snapshot.actual.get(), snapshot.unconfirmed.get(), snapshot.awaits_report)
}

/// A real 6.1 guest: MemTotal was 126 MiB less than its memory, 78 MiB more than with boot memory
/// only, and some of MemTotal is neither available nor committed either.
#[test]
fn a_small_kernel_that_knows_all_of_it_is_believed_in_spite_of_what_it_keeps() {
    let (all, kept) = (1536 * MIB, 190 * MIB);
    let mut driver = after_kexec(1024 * MIB, 512 * MIB, GIB);
    let floor = StatusReport::linux_floor(pages(all));
    let report = StatusReport {
        available: pages(all - kept - 16 * MIB),
        committed: pages(16 * MIB).saturating_add(floor),
        ..Default::default()
    };
    driver.packet(&report.emit(7));
    assert_eq!(confirmed(&driver), (all, 0, false));
}

/// Whatever the guest can do: its size may be another one.
#[test]
fn a_target_that_seems_to_be_reached_waits_for_the_report() {
    for capabilities in [CAN_GROW, Capabilities::BALLOON, Capabilities::HOT_ADD] {
        let mut driver = grown(4 * GIB, 4 * GIB, 0);
        driver.handle(Event::ChannelClosed);
        driver.handle(Event::ChannelOpened { guest_os_id: LINUX, is_reopened: false });
        driver.set_target(8 * GIB);
        driver.drain();
        driver.packet(&version_request(Version::V2_0));
        driver.packet(&capabilities_report(capabilities));
        let reached = Notice::TargetReached { actual: pages(8 * GIB) };
        assert!(!driver.notices.contains(&reached), "{capabilities:?}");
        report(&mut driver, 8 * GIB);
        assert!(driver.notices.contains(&reached), "{capabilities:?}");
    }
}

#[test]
fn a_kernel_that_knows_only_boot_memory_keeps_it() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 4 * GIB);
    driver.set_target(8 * GIB);
    // Nothing is asked of it, or offered to it, on books that it has not confirmed.
    assert_eq!(confirmed(&driver), (16 * GIB, 0, true));
    assert!(driver.ring.is_empty() && driver.preparing.is_empty());
    report(&mut driver, 4 * GIB);
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB, false));
    assert!(driver.notices.contains(&Notice::Unconfirmed { pages: pages(12 * GIB) }));
    // It gets what it lacks, from other places.
    while driver.actual() < 8 * GIB {
        let offered = take_offer(&mut driver);
        assert!(offered.start().get() >= BASE + 12 * GIB, "{offered} is offered again");
    }
    assert_eq!(confirmed(&driver), (8 * GIB, 12 * GIB, false));
    assert!(driver.notices.contains(&Notice::TargetReached { actual: pages(8 * GIB) }));
    assert!(driver.ring.is_empty());
}

#[test]
fn a_kernel_that_knows_all_memory_shrinks_as_ever() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.set_target(16 * GIB - MIB);
    assert!(driver.ring.is_empty());
    report(&mut driver, 16 * GIB);
    assert_eq!(confirmed(&driver), (16 * GIB, 0, false));
    assert_eq!(driver.asked(), MIB);
}

#[test]
fn a_shrink_below_boot_memory_asks_for_no_more_than_there_is() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.set_target(3 * GIB);
    report(&mut driver, 4 * GIB);
    assert_eq!(driver.asked(), GIB);
}

#[test]
fn a_guest_of_twice_its_boot_size_grows_to_what_it_is_to_have() {
    for (target, offered) in [(1500, 476), (3000, 1976)] {
        let mut driver = after_kexec(GIB, GIB, 4 * GIB);
        driver.set_target(target * MIB);
        report(&mut driver, GIB);
        while driver.actual() < target * MIB {
            take_offer(&mut driver);
        }
        let added = driver.device.snapshot().hot_added.get() - GIB;
        assert_eq!(added, offered * MIB);
        assert_eq!(confirmed(&driver), (target * MIB, GIB, false));
    }
}

#[test]
fn what_no_place_is_left_for_is_refused_with_the_reason() {
    let mut driver = after_kexec(GIB, GIB, 512 * MIB);
    driver.set_target(2 * GIB);
    report(&mut driver, GIB);
    while driver.actual() < 1536 * MIB {
        take_offer(&mut driver);
    }
    let snapshot = driver.device.snapshot();
    assert_eq!(snapshot.last_stop, Some(StopReason::Unconfirmed));
    assert_eq!((snapshot.actual, snapshot.maximum), (pages(1536 * MIB), pages(1536 * MIB)));
    let (maximum, unconfirmed) = (snapshot.maximum, pages(GIB));
    let refused = driver.try_target(2 * GIB);
    assert_eq!(refused, Err(TargetError::Unconfirmed { maximum, unconfirmed }));
    let requested = pages(4 * GIB);
    let refused = driver.try_target(4 * GIB);
    assert_eq!(refused, Err(TargetError::AboveMaximum { requested, maximum }));
}

#[test]
fn reports_are_asked_for_only_where_they_are_needed() {
    for (added, suppressed) in [(0, true), (GIB, false)] {
        let mut driver = grown(GIB, added, GIB);
        assert!(!driver.config.status_reports);
        driver.handle(Event::ChannelClosed);
        driver.handle(Event::ChannelOpened { guest_os_id: LINUX, is_reopened: false });
        driver.packet(&version_request(dynmem_protocol::Version::V2_0));
        driver.packet(&capabilities_report(CAN_GROW));
        let answer = driver.ring.pop_back().unwrap();
        let HostBody::CapabilitiesResponse(answer) = HostMessage::parse(&answer).unwrap().body
        else {
            panic!("not the answer to the capabilities")
        };
        assert_eq!(answer.suppress_pressure_reports, suppressed);
        report(&mut driver, GIB);
        // The operator wants none all the same.
        assert!(!driver.notices.iter().any(|it| matches!(it, Notice::StatusReport(_))));
    }
}

#[test]
fn a_guest_that_never_reports_is_counted_without_and_goes_by_boot_memory() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.set_target(3 * GIB);
    driver.wait(CONFIRMATION_WAIT - Duration::from_millis(1));
    assert_eq!(confirmed(&driver), (16 * GIB, 0, true));
    assert!(driver.ring.is_empty());
    driver.wait(Duration::from_millis(1));
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB, false));
    assert!(driver.notices.contains(&Notice::Unconfirmed { pages: pages(12 * GIB) }));
    assert_eq!(driver.asked(), GIB);
}

#[test]
fn a_report_that_comes_late_counts_all_the_same() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.set_target(4 * GIB);
    driver.wait(CONFIRMATION_WAIT);
    assert!(driver.notices.contains(&Notice::TargetReached { actual: pages(4 * GIB) }));
    report(&mut driver, 16 * GIB);
    assert_eq!(confirmed(&driver), (16 * GIB, 0, false));
    assert!(driver.asked() > 0, "the guest is larger than its target");
}

#[test]
fn a_report_that_leaves_it_open_decides_nothing() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    report(&mut driver, 9 * GIB);
    assert_eq!(confirmed(&driver), (16 * GIB, 0, true));
    driver.wait(CONFIRMATION_WAIT);
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB, false));
}

#[test]
fn a_verdict_holds_until_another_kernel_comes() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    report(&mut driver, 4 * GIB);
    // It may commit more than there is.
    report(&mut driver, 16 * GIB);
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB, false));
    driver.handle(Event::ChannelClosed);
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB, false));
    driver.handle(Event::ChannelOpened { guest_os_id: LINUX, is_reopened: true });
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB, false));
    driver.handle(Event::ChannelClosed);
    driver.shake_hands_as(LINUX, CAN_GROW);
    assert_eq!(confirmed(&driver), (16 * GIB, 0, true));
    driver.handle(Event::ChannelClosed);
    driver.handle(Event::SystemReset);
    assert_eq!(confirmed(&driver), (4 * GIB, 0, false));
}

#[test]
fn a_driver_that_is_loaded_again_is_not_doubted() {
    let mut driver = grown(4 * GIB, 12 * GIB, 0);
    driver.handle(Event::ChannelClosed);
    driver.handle(Event::ChannelOpened { guest_os_id: LINUX, is_reopened: true });
    driver.packet(&version_request(dynmem_protocol::Version::V2_0));
    driver.packet(&capabilities_report(CAN_GROW));
    driver.drain();
    driver.set_target(16 * GIB - MIB);
    assert_eq!(driver.asked(), MIB);
}

#[test]
fn a_guest_knows_what_it_gives() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    report(&mut driver, 4 * GIB);
    driver.set_target(4 * GIB - MIB);
    assert_eq!(driver.asked(), MIB);
    driver.give(&[range(BASE, MIB)], false);
    driver.finish_discards();
    // It is no smaller than it was thought to be, and is asked again.
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB - MIB, false));
    assert_eq!(driver.asked(), MIB);
    driver.give(&[range(0, MIB)], false);
    driver.finish_discards();
    assert_eq!(confirmed(&driver), (4 * GIB - MIB, 12 * GIB - MIB, false));
}

#[test]
fn other_guests_have_no_floor() {
    let mut driver = grown(4 * GIB, 12 * GIB, 0);
    driver.handle(Event::ChannelClosed);
    driver.shake_hands_as(0x0001_040a_0000_4563, CAN_GROW);
    let report = StatusReport { available: pages(13 * GIB), ..Default::default() };
    driver.packet(&report.emit(7));
    assert_eq!(confirmed(&driver), (16 * GIB, 0, false));
}

#[test]
fn a_target_set_before_the_report_is_not_reached_by_hearsay() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.set_target(16 * GIB);
    assert!(driver.device.snapshot().is_pursued);
    report(&mut driver, 4 * GIB);
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::Unconfirmed));
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.set_target(16 * GIB);
    report(&mut driver, 16 * GIB);
    assert!(driver.notices.contains(&Notice::TargetReached { actual: pages(16 * GIB) }));
}

#[test]
fn a_guest_that_cannot_balloon_is_told_at_once() {
    let mut driver = grown(4 * GIB, 12 * GIB, 0);
    driver.handle(Event::ChannelClosed);
    driver.set_target(8 * GIB);
    driver.shake_hands_as(LINUX, Capabilities::HOT_ADD);
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::NoBalloonCapability));
}

#[test]
fn what_is_awaited_or_unconfirmed_is_so_after_a_restore() {
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.set_target(3 * GIB);
    driver.save_and_restore();
    assert_eq!((confirmed(&driver), driver.state()), ((16 * GIB, 0, true), StateName::Idle));
    report(&mut driver, 4 * GIB);
    assert_eq!(driver.asked(), GIB);
    driver.save_and_restore();
    assert_eq!(confirmed(&driver), (4 * GIB, 12 * GIB, false));
    let mut driver = after_kexec(4 * GIB, 12 * GIB, 0);
    driver.wait(CONFIRMATION_WAIT);
    driver.save_and_restore();
    report(&mut driver, 16 * GIB);
    assert_eq!(confirmed(&driver), (16 * GIB, 0, false));
}
