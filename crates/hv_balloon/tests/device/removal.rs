//! Removal of memory: a job like the others, before whose end no memory is added.

use dynmem_protocol::HotAddResult;
use hv_balloon::{Event, Notice, Prepare, StateName, StopReason};

use crate::driver::*;

/// The first aligned page of the window, and the guest's block size.
const BASE: u64 = 0x2_0200;
const BLOCK: u64 = 512;

/// A driver whose guest was offered two blocks and took one: the other one is being removed.
fn removing() -> Driver {
    let mut driver = Driver::growable();
    driver.removes_at_once = false;
    driver.set_target(RAM_PAGES + 2 * BLOCK);
    driver.prepared(true);
    driver.added(BLOCK, HotAddResult::SUCCESS);
    assert_eq!(driver.removing[0].1, range(BASE + BLOCK, BLOCK));
    driver.drain();
    driver
}

/// Like [`removing`], but the removal has failed.
fn stuck() -> Driver {
    let mut driver = removing();
    driver.finish_removal(false);
    driver
}

#[test]
fn nothing_is_prepared_while_memory_leaves() {
    let mut driver = removing();
    driver.set_target(RAM_PAGES + 2 * BLOCK);
    assert!(driver.preparing.is_empty());
    driver.finish_removal(true);
    let Prepare::Add { range: again, .. } = driver.prepared(true) else { panic!("not new memory") };
    assert_eq!(again, range(BASE + BLOCK, BLOCK));
}

#[test]
fn pages_come_and_go_while_memory_leaves() {
    let mut driver = removing();
    driver.set_target(RAM_PAGES);
    assert_eq!(driver.asked(), BLOCK);
    driver.give(&[range(0, BLOCK)], false);
    driver.finish_discards();
    driver.set_target(RAM_PAGES + BLOCK);
    assert_eq!(driver.returned(), (vec![range(0, BLOCK)], false));
}

#[test]
fn a_close_waits_for_removals() {
    let mut driver = removing();
    driver.handle(Event::ChannelClosed);
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closing, 0));
    driver.finish_removal(true);
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
}

#[test]
fn a_reset_removes_what_was_added_once_the_removal_before_has_ended() {
    let mut driver = removing();
    driver.handle(Event::SystemReset);
    assert_eq!(driver.removing.len(), 1);
    driver.finish_removal(true);
    assert_eq!(driver.closes_finished, 0);
    assert_eq!(driver.finish_removal(true), range(BASE, 2 * BLOCK));
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
}

#[test]
fn a_second_reset_forgets_no_removal_of_the_first() {
    let mut driver = removing();
    driver.handle(Event::SystemReset);
    driver.handle(Event::SystemReset);
    driver.finish_removal(true);
    assert_eq!(driver.finish_removal(true), range(BASE, 2 * BLOCK));
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
}

#[test]
fn a_failed_removal_is_told_and_ends_no_session() {
    let driver = stuck();
    let range = range(BASE + BLOCK, BLOCK);
    assert_eq!(driver.notices, [Notice::RemovalFailed { range }]);
    assert_eq!(driver.state(), StateName::Pausing);
}

#[test]
fn memory_is_added_only_once_what_stuck_was_removed() {
    let mut driver = stuck();
    driver.set_target(RAM_PAGES + 2 * BLOCK);
    assert!(driver.preparing.is_empty());
    assert_eq!(driver.finish_removal(false), range(BASE + BLOCK, BLOCK));
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::HostMemory));
    assert!(driver.preparing.is_empty() && driver.removing.is_empty(), "tried again by itself");
    driver.set_target(RAM_PAGES + 2 * BLOCK);
    driver.finish_removal(true);
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE + BLOCK, BLOCK));
}

#[test]
fn a_close_and_a_reset_try_again_and_end_all_the_same() {
    for event in [Event::ChannelClosed, Event::SystemReset] {
        let mut driver = stuck();
        driver.handle(event);
        assert_eq!((driver.state(), driver.closes_finished), (StateName::Closing, 0));
        driver.finish_removal(false);
        assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
    }
}

#[test]
fn what_sticks_through_a_reset_keeps_the_next_guest_from_growing() {
    let mut driver = stuck();
    driver.handle(Event::SystemReset);
    driver.finish_removal(false);
    driver.shake_hands_as(0, CAN_GROW);
    driver.set_target(RAM_PAGES + BLOCK);
    assert!(driver.preparing.is_empty());
    assert_eq!(driver.finish_removal(true), range(BASE, 2 * BLOCK));
    driver.prepared(true);
    assert_eq!(driver.offered(), range(BASE, BLOCK));
}

#[test]
fn a_new_machine_has_nothing_that_sticks() {
    let mut driver = stuck();
    driver.handle(Event::SystemReset);
    driver.finish_removal(false);
    let hot_add = driver.config.hot_add;
    driver.device.replace_memory(driver.now, ram(), hot_add).unwrap();
    driver.shake_hands_as(0, CAN_GROW);
    driver.set_target(RAM_PAGES + BLOCK);
    assert!(driver.removing.is_empty());
    driver.prepared(true);
}

#[test]
fn removals_are_asked_for_again_after_a_restore() {
    let mut driver = removing();
    let before = driver.removing.clone();
    driver.save_and_restore();
    assert_eq!(driver.removing, before);
    driver.handle(Event::SystemReset);
    driver.save_and_restore();
    assert_eq!((&driver.removing, driver.closes_finished), (&before, 0));
    driver.finish_removal(true);
    driver.save_and_restore();
    driver.finish_removal(false);
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
    driver.save_and_restore();
    driver.shake_hands_as(0, CAN_GROW);
    driver.set_target(RAM_PAGES + BLOCK);
    assert_eq!(driver.finish_removal(true), range(BASE, 2 * BLOCK));
}
