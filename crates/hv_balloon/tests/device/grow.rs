//! Returning pages to the guest, and targets that change meanwhile.

use crate::driver::*;
use hv_balloon::{
    Config, Device, Event, MAX_UNBALLOON_MESSAGE, Notice, StateName, Transaction, UNBALLOON_TIMEOUT,
};

/// Gives `count` pages: every other page of the lower half of RAM.
fn give_scattered(driver: &mut Driver, count: u64) {
    driver.set_target(RAM_PAGES - count);
    let all: Vec<_> = (0..count).map(|page| range(page * 2, 1)).collect();
    for ranges in all.chunks(500) {
        driver.give(ranges, true);
    }
    driver.give(&[], false);
    driver.finish_discards();
    driver.drain();
}

#[test]
fn exactly_the_pages_wanted_are_returned_from_the_end() {
    let mut driver = Driver::with_ballooned(4096);
    driver.set_target(5000);
    assert_eq!(driver.returned(), (vec![range(0x1_1000 - 904, 904)], false));
}

#[test]
fn a_return_counts_at_once_and_ends_when_the_guest_confirms_it() {
    let mut driver = Driver::with_ballooned(4096);
    driver.set_target(RAM_PAGES);
    assert_eq!((driver.state(), driver.actual()), (StateName::Unballooning, RAM_PAGES));
    let actual = pages(RAM_PAGES);
    assert_eq!(driver.notices, [Notice::SizeChanged { actual }]);
    driver.unballooned();
    assert_eq!(driver.notices.last(), Some(&Notice::TargetReached { actual }));
}

#[test]
fn an_answer_before_the_pages_are_in_the_ring_ends_nothing() {
    let mut driver = Driver::with_ballooned(4096);
    driver.ring_is_full = true;
    driver.set_target(RAM_PAGES);
    driver.unballooned();
    let device = driver.device.snapshot();
    assert_eq!((device.state, device.faults.out_of_state), (StateName::Unballooning, 1));
    driver.make_room();
    driver.unballooned();
    assert_eq!(driver.state(), StateName::Idle);
}

#[test]
fn many_ranges_go_in_few_messages_and_one_answer_ends_them() {
    let mut driver = Driver::ready();
    give_scattered(&mut driver, 1200);
    driver.set_target(RAM_PAGES);
    let messages = [driver.returned(), driver.returned(), driver.returned()];
    let shape = messages.map(|(ranges, more)| (ranges.len(), more));
    assert_eq!(shape, [(508, true), (508, true), (184, false)]);
    driver.unballooned();
    assert_eq!((driver.state(), driver.actual()), (StateName::Idle, RAM_PAGES));
}

#[test]
fn no_message_returns_more_pages_than_windows_takes() {
    let ram = [range(0, 1 << 20)].into_iter().collect();
    let mut driver = Driver::ready();
    driver.device = Device::new(Config { boot_ram: ram, ..Config::default() }).unwrap();
    driver.handle(Event::ChannelOpened { guest_os_id: 0x81 << 56, is_reopened: false });
    driver.packet(&version_request(dynmem_protocol::Version::V2_0));
    driver.packet(&capabilities_report(dynmem_protocol::Capabilities::BALLOON));
    driver.give(&[range(0, 600_000)], false);
    driver.finish_discards();
    driver.drain();
    driver.set_target(1 << 20);
    let rest = 600_000 - MAX_UNBALLOON_MESSAGE.get();
    assert_eq!(driver.returned(), (vec![range(rest, MAX_UNBALLOON_MESSAGE.get())], true));
    assert_eq!(driver.returned(), (vec![range(0, rest)], false));
}

#[test]
fn pages_still_being_discarded_are_not_returned() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 2048)], true);
    driver.give(&[range(2048, 2048)], false);
    driver.drain();
    driver.set_target(RAM_PAGES);
    assert!(driver.ring.is_empty());
    driver.finish_discard(true);
    assert_eq!(driver.returned(), (vec![range(0, 2048)], false));
    driver.unballooned();
    assert!(driver.ring.is_empty());
    driver.finish_discard(true);
    assert_eq!(driver.returned(), (vec![range(2048, 2048)], false));
}

#[test]
fn pages_that_were_never_discarded_are_returned_first() {
    let mut driver = Driver::with_ballooned(2048);
    driver.set_target(4096);
    driver.give(&[range(0, 2048)], false);
    driver.finish_discard(false);
    driver.drain();
    driver.set_target(4096 + 2048);
    assert_eq!(driver.returned(), (vec![range(0, 2048)], false));
    assert_eq!(driver.actual(), RAM_PAGES - 2048);
}

#[test]
fn pages_that_are_not_ram_go_back_once_with_the_next_return() {
    let mut driver = Driver::with_ballooned(4096);
    driver.give(&[range(0x8000, 7)], false);
    driver.set_target(4097);
    assert_eq!(driver.returned(), (vec![range(0x8000, 7), range(0x1_0fff, 1)], false));
    driver.unballooned();
    driver.set_target(4098);
    assert_eq!(driver.returned(), (vec![range(0x1_0ffe, 1)], false));
}

#[test]
fn a_lower_target_ends_a_return_at_the_next_message() {
    let mut driver = Driver::ready();
    give_scattered(&mut driver, 1200);
    driver.ring_is_full = true;
    driver.set_target(RAM_PAGES);
    driver.set_target(RAM_PAGES - 1200 + 508);
    driver.make_room();
    assert_eq!(driver.returned().0.len(), 508);
    assert_eq!(driver.returned(), (vec![], false));
    driver.unballooned();
    let actual = pages(RAM_PAGES - 692);
    assert_eq!(driver.notices.last(), Some(&Notice::TargetReached { actual }));
}

#[test]
fn a_higher_target_extends_a_return() {
    let mut driver = Driver::ready();
    give_scattered(&mut driver, 1200);
    driver.ring_is_full = true;
    driver.set_target(RAM_PAGES - 1200 + 600);
    driver.set_target(RAM_PAGES);
    driver.make_room();
    let messages = [driver.returned(), driver.returned(), driver.returned()];
    let shape = messages.map(|(ranges, more)| (ranges.len(), more));
    assert_eq!(shape, [(508, true), (508, true), (184, false)]);
}

#[test]
fn a_lower_target_after_the_last_message_waits_for_the_answer() {
    let mut driver = Driver::with_ballooned(4096);
    driver.set_target(RAM_PAGES);
    driver.drain();
    driver.set_target(4096);
    assert!(driver.ring.is_empty());
    driver.unballooned();
    assert_eq!(driver.asked(), 4096);
}

#[test]
fn a_higher_target_during_a_balloon_request_waits_for_its_end() {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.drain();
    driver.set_target(6144);
    driver.give(&[range(0, 2048)], true);
    driver.finish_discards();
    assert_eq!(driver.notices.last(), Some(&Notice::SizeChanged { actual: pages(6144) }));
    driver.give(&[range(2048, 2048)], false);
    driver.finish_discards();
    assert_eq!(driver.returned(), (vec![range(0, 2048)], false));
    driver.unballooned();
    assert_eq!(driver.notices.last(), Some(&Notice::TargetReached { actual: pages(6144) }));
}

#[test]
fn a_lower_target_during_a_balloon_request_is_the_next_request() {
    let mut driver = Driver::ready();
    driver.set_target(6144);
    driver.drain();
    driver.set_target(4096);
    assert!(driver.ring.is_empty());
    driver.give(&[range(0, 2048)], false);
    assert_eq!(driver.asked(), 2048);
}

#[test]
fn a_return_nobody_confirms_counts_as_done() {
    let mut driver = Driver::with_ballooned(4096);
    driver.set_target(RAM_PAGES);
    driver.drain();
    driver.wait(UNBALLOON_TIMEOUT);
    let actual = pages(RAM_PAGES);
    assert_eq!(
        driver.notices,
        [Notice::TimedOut(Transaction::Unballoon), Notice::TargetReached { actual }]
    );
    assert!(driver.ring.is_empty());
}

/// A driver whose guest has not read all of a return in time.
fn stuck_return() -> Driver {
    let mut driver = Driver::ready();
    give_scattered(&mut driver, 1200);
    driver.ring_is_full = true;
    driver.set_target(RAM_PAGES);
    driver.wait(UNBALLOON_TIMEOUT);
    driver
}

/// A guest that stands still finds the request as it was.
#[test]
fn a_return_of_which_a_part_was_read_late_goes_on() {
    let mut driver = stuck_return();
    assert_eq!(
        (driver.state(), driver.actual()),
        (StateName::Unballooning, RAM_PAGES - 692),
        "a request is broken off"
    );
    assert!(driver.notices.contains(&Notice::TimedOut(Transaction::Unballoon)));
    driver.wait(100 * UNBALLOON_TIMEOUT);
    driver.make_room();
    let messages = [driver.returned(), driver.returned(), driver.returned()];
    let shape = messages.map(|(ranges, more)| (ranges.len(), more));
    assert_eq!(shape, [(508, true), (508, true), (184, false)]);
    driver.unballooned();
    let actual = pages(RAM_PAGES);
    assert_eq!(driver.notices.last(), Some(&Notice::TargetReached { actual }));
}

#[test]
fn a_new_target_gives_a_return_that_is_stuck_more_time_and_its_end_is_told_again() {
    let mut driver = stuck_return();
    driver.notices.clear();
    driver.set_target(RAM_PAGES);
    driver.wait(UNBALLOON_TIMEOUT / 2);
    assert_eq!(driver.notices, []);
    driver.wait(UNBALLOON_TIMEOUT);
    assert!(driver.notices.contains(&Notice::TimedOut(Transaction::Unballoon)));
    assert_eq!(driver.state(), StateName::Unballooning);
    driver.make_room();
    let messages = [driver.returned(), driver.returned(), driver.returned()];
    assert_eq!(messages.map(|(_, more)| more), [true, true, false]);
}

#[test]
fn a_page_given_again_before_its_return_was_confirmed_is_taken_again() {
    let mut driver = Driver::with_ballooned(4096);
    driver.set_target(RAM_PAGES);
    driver.give(&[range(0x1_0000, 512)], false);
    driver.finish_discards();
    assert_eq!(driver.actual(), RAM_PAGES - 512);
    driver.drain();
    driver.unballooned();
    assert_eq!(driver.returned(), (vec![range(0x1_0000, 512)], false));
}

#[test]
fn an_answer_before_the_last_message_is_out_of_place() {
    let mut driver = Driver::ready();
    give_scattered(&mut driver, 1200);
    driver.ring_is_full = true;
    driver.set_target(RAM_PAGES);
    driver.unballooned();
    assert_eq!(driver.state(), StateName::Unballooning);
    assert_eq!(driver.device.snapshot().faults.out_of_state, 1);
}

#[test]
fn a_higher_target_ends_a_shrink_after_the_request_that_is_out() {
    let mut driver = Driver::ready();
    driver.set_target(4000);
    assert_eq!(driver.asked(), 4096);
    driver.set_target(RAM_PAGES);
    assert!(driver.ring.is_empty(), "two requests at a time");
    driver.give(&[range(0, 4096)], false);
    driver.finish_discards();
    assert_eq!(driver.returned(), (vec![range(0, 4096)], false), "asked for the rest first");
    driver.unballooned();
    assert!(driver.ring.is_empty());
    assert_eq!(driver.actual(), RAM_PAGES);
}
