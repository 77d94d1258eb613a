//! Memory that the host can discard only in huge pages.

use std::time::Duration;

use dynmem_protocol::HotAddResult;
use hv_balloon::{
    Config, Event, FIRST_RETRY_PAUSE, HOT_ADD_TIMEOUT, HotAdd, MAX_FAILURES, Prepare, Settle,
    StateName, StopReason,
};

use crate::driver::*;

const UNIT: u64 = 512;

fn driver() -> Driver {
    let mut driver = Driver::with(Config {
        boot_ram: ram(),
        settle: Settle::Fixed(Duration::ZERO),
        discard_unit: pages(UNIT),
        ..Config::default()
    });
    driver.shake_hands();
    driver
}

fn held(driver: &Driver) -> u64 {
    driver.device.snapshot().held.get()
}

/// One job must not overtake the other.
#[test]
fn what_a_late_answer_leaves_is_removed_after_a_preparation() {
    let window = range(0x2_0000, 1 << 16);
    let hot_add = HotAdd { window, capacity: pages(4096), least_alignment: pages(UNIT) };
    let mut driver = Driver::with(Config {
        boot_ram: ram(),
        settle: Settle::Fixed(Duration::ZERO),
        hot_add: Some(hot_add),
        discard_unit: pages(UNIT),
        ..Config::default()
    });
    driver.shake_hands_as(0, CAN_GROW);
    driver.set_target(RAM_PAGES + 2 * UNIT);
    driver.prepared(true);
    let offer = driver.offered();
    driver.wait(2 * HOT_ADD_TIMEOUT);
    driver.set_target(RAM_PAGES - UNIT);
    driver.give(&[range(0, UNIT)], false);
    driver.finish_discards();
    driver.set_target(RAM_PAGES);
    assert_eq!(driver.preparing.len(), 1);
    driver.added(UNIT, HotAddResult::SUCCESS);
    assert!(driver.removed.is_empty());
    driver.prepared(true);
    assert_eq!(driver.removed, [range(offer.start().get() + UNIT, UNIT)]);
}

#[test]
fn only_whole_units_are_discarded_and_the_rest_is_held() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - 2 * UNIT);
    driver.give(&[range(0, UNIT), range(600, 500)], true);
    assert_eq!(driver.finish_discard(true), [range(0, UNIT)]);
    assert!(driver.discards.is_empty());
    assert_eq!((held(&driver), driver.actual()), (500, RAM_PAGES - UNIT));
    driver.give(&[range(1100, 12)], false);
    assert!(driver.discards.is_empty());
    assert_eq!(stop_reason(&driver), Some(StopReason::HeldByHugePages));
    assert_eq!(driver.actual(), RAM_PAGES - UNIT, "the host was said to have what it has not");
}

#[test]
fn a_unit_goes_once_its_last_page_is_out() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - UNIT);
    driver.give(&[range(UNIT, UNIT - 1)], true);
    assert!(driver.discards.is_empty());
    driver.give(&[range(2 * UNIT - 1, 1)], false);
    assert_eq!(driver.finish_discard(true), [range(UNIT, UNIT)]);
    assert_eq!((held(&driver), stop_reason(&driver)), (0, None));
    assert_eq!(driver.actual(), RAM_PAGES - UNIT);
}

#[test]
fn targets_are_rounded_up_to_whole_units() {
    let driver = driver();
    assert_eq!(driver.device.can_set_target(pages(UNIT + 1)), Ok(pages(2 * UNIT)));
}

#[test]
fn discarded_units_are_provided_before_they_are_given_back() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - 4 * UNIT);
    driver.give(&[range(0, 4 * UNIT)], false);
    driver.finish_discards();
    driver.drain();
    driver.set_target(RAM_PAGES - 3 * UNIT);
    assert!(driver.ring.is_empty());
    assert_eq!(driver.prepared(true), Prepare::Return(vec![range(3 * UNIT, UNIT)]));
    assert_eq!(driver.returned(), (vec![range(3 * UNIT, UNIT)], false));
    driver.unballooned();
    assert_eq!((driver.actual(), held(&driver)), (RAM_PAGES - 3 * UNIT, 0));
}

#[test]
fn a_pool_that_is_empty_ends_the_try_and_a_later_one_succeeds() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - UNIT);
    driver.give(&[range(0, UNIT)], false);
    driver.finish_discards();
    driver.set_target(RAM_PAGES);
    for failure in 1..MAX_FAILURES {
        driver.prepared(false);
        assert_eq!((driver.state(), stop_reason(&driver)), (StateName::Pausing, None));
        driver.wait(FIRST_RETRY_PAUSE * (1 << (failure - 1)));
    }
    driver.prepared(false);
    assert_eq!(
        (driver.state(), stop_reason(&driver)),
        (StateName::Idle, Some(StopReason::HostMemory))
    );
    assert!(driver.preparing.is_empty(), "tried without end");
    driver.drain();
    driver.set_target(RAM_PAGES);
    driver.prepared(true);
    assert_eq!(driver.returned(), (vec![range(0, UNIT)], false));
}

#[test]
fn held_pages_go_back_first_and_need_no_host_memory() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - 2 * UNIT);
    driver.give(&[range(0, UNIT), range(600, UNIT)], false);
    driver.finish_discards();
    driver.drain();
    driver.set_target(RAM_PAGES - UNIT);
    assert_eq!(driver.returned(), (vec![range(600, UNIT)], false));
    assert!(driver.preparing.is_empty());
}

#[test]
fn units_provided_in_vain_are_discarded_again() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - UNIT);
    driver.give(&[range(0, UNIT)], false);
    driver.finish_discards();
    driver.set_target(RAM_PAGES);
    driver.set_target(RAM_PAGES - UNIT);
    driver.prepared(true);
    assert_eq!(driver.finish_discard(true), [range(0, UNIT)]);
    assert_eq!((driver.actual(), held(&driver)), (RAM_PAGES - UNIT, 0));
}

#[test]
fn a_close_waits_until_units_are_provided() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - UNIT);
    driver.give(&[range(0, UNIT)], false);
    driver.finish_discards();
    driver.set_target(RAM_PAGES);
    driver.handle(Event::ChannelClosed);
    assert_eq!(driver.closes_finished, 0);
    driver.prepared(true);
    // The device requests it once more, since the first job may have failed.
    driver.prepared(true);
    assert_eq!((driver.closes_finished, driver.actual()), (1, RAM_PAGES));
}

#[test]
fn the_next_kernel_finds_all_pages_there() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - 2 * UNIT);
    driver.give(&[range(0, UNIT)], true);
    driver.finish_discards();
    driver.give(&[range(UNIT, UNIT)], false);
    driver.handle(Event::ChannelClosed);
    assert!(driver.preparing.is_empty(), "provided while a discard runs");
    driver.finish_discards();
    assert_eq!(driver.prepared(true), Prepare::Return(vec![range(0, 2 * UNIT)]));
    assert_eq!(driver.closes_finished, 1);
    driver.handle(Event::SystemReset);
    assert!(driver.preparing.is_empty(), "a reset makes all memory anew");
}

#[test]
fn units_provided_beyond_what_a_lower_target_needs_are_discarded_again() {
    let mut driver = driver();
    driver.set_target(RAM_PAGES - 4 * UNIT);
    driver.give(&[range(0, 4 * UNIT)], false);
    driver.finish_discards();
    driver.set_target(RAM_PAGES);
    driver.set_target(RAM_PAGES - 3 * UNIT);
    driver.drain();
    driver.prepared(true);
    assert_eq!(driver.returned(), (vec![range(3 * UNIT, UNIT)], false));
    driver.unballooned();
    assert_eq!(driver.finish_discard(true), [range(0, 3 * UNIT)]);
    assert_eq!((driver.actual(), held(&driver)), (RAM_PAGES - 3 * UNIT, 0));
    assert_eq!(stop_reason(&driver), None);
}

fn stop_reason(driver: &Driver) -> Option<StopReason> {
    driver.device.snapshot().last_stop
}
