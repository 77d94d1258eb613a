//! Failures of growth past boot size, and what outlives a session.

use std::time::Duration;

use guest_model::dynmem::{HotAddAnswer, MemoryMap, Personality};
use hv_balloon::{Notice, StateName, StopReason, Transaction};
use page_range::{Gpfn, PageCount, PageRange};

use crate::pair::*;

fn ready_with(answer: HotAddAnswer) -> Pair {
    Pair::ready(Personality::linux_6_1().with_hot_add(answer))
}

fn heal(pair: &mut Pair) {
    pair.guest.personality_mut().hot_add.answer = HotAddAnswer::TakesAll;
}

#[test]
fn what_the_guest_did_not_take_it_takes_later() {
    for (answer, added, reason) in [
        (HotAddAnswer::Refuses, 0, StopReason::HotAddRefused),
        (HotAddAnswer::FailsAlways, 0, StopReason::HotAddFailed),
        (HotAddAnswer::AtMost(PageCount::ZERO), 0, StopReason::HotAddRefused),
        (HotAddAnswer::AtMost(mib(512)), 512, StopReason::HotAddRefused),
    ] {
        let mut pair = ready_with(answer);
        pair.resize(mib(2048));
        let snapshot = pair.snapshot();
        assert_eq!((snapshot.last_stop, snapshot.hot_added), (Some(reason), mib(added)));
        pair.assert_size(mib(1024 + added));
        pair.resize(mib(512));
        pair.assert_size(mib(512));
        heal(&mut pair);
        pair.resize(mib(2048));
        pair.assert_size(mib(2048));
        assert_eq!(pair.snapshot().faults, Default::default());
    }
}

#[test]
fn a_guest_that_never_answers_is_not_offered_more() {
    let mut pair = ready_with(HotAddAnswer::Silent);
    for target in [2048, 3000] {
        pair.resize(mib(target));
        assert_eq!(pair.snapshot().last_stop, Some(StopReason::HotAddTimeout));
    }
    assert!(pair.notices.contains(&Notice::TimedOut(Transaction::HotAdd)));
    pair.resize(mib(600));
    pair.assert_size(mib(600));
}

#[test]
fn a_late_answer_counts() {
    let mut pair = ready_with(HotAddAnswer::Late(Duration::from_secs(3600)));
    pair.resize(mib(1100));
    assert!(pair.notices.contains(&Notice::TimedOut(Transaction::HotAdd)));
    assert_eq!(pair.now.as_secs() / 3600, 1);
    heal(&mut pair);
    pair.resize(mib(1100));
    pair.assert_size(mib(1100));
    assert_eq!(pair.snapshot().hot_added, mib(128));
}

#[test]
fn pages_of_memory_that_is_not_answered_for_are_not_lost() {
    let mut pair = ready_with(HotAddAnswer::Late(Duration::from_secs(3600)));
    pair.set_target(mib(1100));
    pair.run_now();
    assert!(pair.wait(), "the host waits for an answer");
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::HotAddTimeout));
    // Without large pages, the guest gives its highest pages first: those it just added.
    pair.guest.memory_mut().shatter();
    pair.set_target(mib(1000));
    pair.run_now();
    assert_eq!(pair.snapshot().foreign, mib(24));
    pair.run();
    pair.resize(mib(1000));
    assert_eq!((pair.snapshot().hot_added, pair.snapshot().foreign), (mib(128), mib(0)));
    pair.assert_size(mib(1000));
    pair.resize(mib(1152));
    pair.assert_size(mib(1152));
}

#[test]
fn an_answer_that_was_lost_does_not_lose_the_memory() {
    // A guest sends its answer only once, even if the ring is full.
    let mut pair = ready_with(HotAddAnswer::Late(Duration::from_secs(1 << 30)));
    pair.set_target(mib(1100));
    pair.run_now();
    assert!(pair.wait(), "the host waits for an answer");
    pair.close();
    heal(&mut pair);
    pair.reopen();
    pair.run();
    // The target outlives the session.
    pair.assert_size(mib(1100));
    pair.resize(mib(2000));
    pair.assert_size(mib(2000));
}

#[test]
fn memory_nobody_onlines_stops_the_growth_until_somebody_does() {
    let mut pair = Pair::ready(Personality::linux_without_auto_online());
    pair.resize(mib(3000));
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::NotOnlined));
    assert_eq!(pair.snapshot().hot_added, mib(128));
    assert_eq!(pair.guest.memory().managed(), mib(1024));
    pair.guest.memory_mut().online();
    pair.guest.personality_mut().hot_add.onlines = true;
    pair.guest.personality_mut().hot_add.online_wait = Duration::ZERO;
    pair.resize(mib(3000));
    pair.assert_size(mib(3000));
}

#[test]
fn claims_of_more_than_was_offered_gain_nothing() {
    let mut pair = ready_with(HotAddAnswer::ClaimsMore(PageCount::new(1)));
    pair.resize(mib(1500));
    assert_eq!(pair.snapshot().actual, mib(1500));
    assert!(pair.snapshot().assigned <= mib(1024 + 512));
    assert_ne!(pair.snapshot().faults, Default::default());
}

#[test]
fn an_odd_answer_harms_nobody() {
    let mut pair = ready_with(HotAddAnswer::ClaimsOdd);
    pair.resize(mib(1500));
    assert_ne!(pair.snapshot().faults, Default::default());
    heal(&mut pair);
    pair.resize(mib(700));
    assert_eq!(pair.snapshot().actual, mib(700));
}

#[test]
fn a_host_without_memory_leaves_the_guest_as_it_is() {
    let mut pair = Pair::linux();
    pair.host_is_full = true;
    pair.resize(mib(1500));
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::HostMemory));
    pair.assert_size(mib(1024));
    pair.host_is_full = false;
    pair.resize(mib(1500));
    pair.assert_size(mib(1500));
}

#[test]
fn added_memory_outlives_the_driver_and_is_not_added_twice() {
    let mut pair = Pair::linux();
    pair.resize(mib(2048));
    pair.close();
    pair.reopen();
    pair.run();
    pair.assert_size(mib(2048));
    pair.resize(mib(3000));
    pair.assert_size(mib(3000));
}

#[test]
fn a_kernel_started_by_kexec_has_all_memory_again() {
    let mut pair = Pair::linux();
    pair.resize(mib(2048));
    pair.resize(mib(700));
    pair.kexec(MemoryMap::Machine);
    pair.reopen();
    pair.run();
    pair.assert_size(mib(2048));
    assert_eq!(pair.snapshot().hot_added, mib(1024));
    for size in [600, 3000] {
        pair.resize(mib(size));
        pair.assert_size(mib(size));
    }
}

#[test]
fn a_kernel_that_knows_only_boot_memory_gets_what_it_is_to_have() {
    for target in [1500, 3000, 700] {
        let mut pair = Pair::linux();
        pair.resize(mib(2048));
        pair.kexec(MemoryMap::Boot);
        pair.reopen();
        pair.resize(mib(target));
        pair.assert_size(mib(target));
        assert_eq!(pair.snapshot().unconfirmed, mib(1024));
        pair.resize(mib(1024));
        pair.assert_size(mib(1024));
    }
}

#[test]
fn a_large_guest_keeps_its_memory_when_it_starts_a_kernel_that_does_not_know_all() {
    let large = || Pair::with_capacity(Personality::linux_6_1(), 4096, 64, 20 << 10).into_opened();
    for map in [MemoryMap::Boot, MemoryMap::Machine] {
        let mut pair = large();
        pair.resize(mib(16 << 10));
        pair.kexec(map);
        pair.reopen();
        pair.resize(mib(8 << 10));
        pair.assert_size(mib(8 << 10));
        let unknown = if map == MemoryMap::Boot { mib(12 << 10) } else { mib(0) };
        assert_eq!(pair.snapshot().unconfirmed, unknown);
    }
}

#[test]
fn a_guest_that_does_not_report_goes_by_its_boot_memory() {
    let mut pair = Pair::linux();
    pair.resize(mib(2048));
    pair.kexec(MemoryMap::Boot);
    pair.reports = false;
    pair.reopen();
    pair.set_target(mib(700));
    pair.run_now();
    assert!(pair.snapshot().awaits_report);
    assert_eq!(pair.guest.memory().managed(), mib(1024), "shrunk on books that nobody confirmed");
    pair.run();
    pair.assert_size(mib(700));
    assert_eq!(pair.snapshot().unconfirmed, mib(1024));
}

#[test]
fn the_place_of_memory_that_a_kernel_does_not_know_is_lost_until_a_reset() {
    let small = Personality::linux_6_1();
    let mut pair = Pair::with_capacity(small, 1024, 64, 1024).into_opened();
    pair.resize(mib(2048));
    pair.kexec(MemoryMap::Boot);
    pair.reopen();
    pair.resize(mib(1500));
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::Unconfirmed));
    pair.assert_size(mib(1024));
    pair.reset();
    pair.reopen();
    pair.resize(mib(1500));
    pair.assert_size(mib(1500));
}

#[test]
fn a_kexec_in_the_middle_of_a_hot_add_keeps_what_was_told() {
    let mut pair = Pair::ready(Personality::linux_without_auto_online());
    pair.set_target(mib(2048));
    while pair.snapshot().state != StateName::HotAdding {
        assert!(pair.step(Step::Job));
    }
    pair.step(Step::ToGuest);
    pair.step(Step::ToHost);
    let added = pair.guest.memory().hot_added();
    assert_eq!(added, mib(128));
    pair.kexec(MemoryMap::Machine);
    pair.reopen();
    pair.resize(mib(1152));
    pair.assert_size(mib(1152));
    assert_eq!(pair.snapshot().hot_added, added);
}

#[test]
fn a_kernel_with_another_alignment_grows_on_from_what_there_is() {
    let mut pair = Pair::ready(Personality::windows_server_2016());
    pair.resize(mib(1200));
    for log2_mib in [7, 10, 1] {
        pair.kexec(MemoryMap::Machine);
        let kernel = Personality::linux_6_12(log2_mib);
        *pair.guest.personality_mut() = kernel;
        pair.reopen();
        pair.run();
        let size = pair.snapshot().actual.saturating_add(mib(200));
        pair.resize(size);
        pair.assert_size(size);
    }
}

#[test]
fn a_crash_kernel_lives_in_its_part_and_the_books_stay_those_of_the_machine() {
    let mut pair = Pair::linux();
    pair.resize(mib(2048));
    let start = Gpfn::new(0x1000).unwrap();
    let reserved = PageRange::new(start, mib(192)).unwrap();
    pair.crash(&[reserved].into_iter().collect());
    pair.reopen();
    pair.run();
    let books = pair.snapshot();
    assert_eq!((books.hot_added, books.assigned), (mib(1024), mib(2048)));
    // It knows no added memory, but is thought to know what the machine booted with.
    assert_eq!((books.actual, books.unconfirmed), (mib(1024), mib(1024)));
    pair.resize(mib(512));
    let snapshot = pair.snapshot();
    // It cannot give memory that it does not have, and keeps some for itself.
    assert_eq!(snapshot.last_stop, Some(StopReason::GuestFloor));
    assert_eq!(mib(1024).saturating_sub(snapshot.actual), pair.guest.memory().ballooned().len());
    pair.reset();
    pair.reopen();
    pair.run();
    pair.assert_size(mib(1024));
    assert_eq!(pair.snapshot().hot_added, PageCount::ZERO);
}

#[test]
fn a_reset_takes_added_memory_away_and_it_can_be_added_again() {
    let mut pair = Pair::linux();
    for _ in 0..3 {
        pair.resize(mib(3000));
        pair.assert_size(mib(3000));
        pair.reset();
        pair.reopen();
        pair.run();
        assert_eq!((pair.snapshot().target, pair.snapshot().hot_added), (None, PageCount::ZERO));
        pair.assert_size(mib(1024));
    }
}

#[test]
fn a_reset_in_the_middle_of_a_hot_add_ends_at_boot_size() {
    for steps in 0..6 {
        let mut pair = Pair::linux();
        pair.set_target(mib(3000));
        let order = [Step::Job, Step::ToGuest, Step::ToHost, Step::Job, Step::ToGuest];
        for step in &order[..steps.min(order.len())] {
            pair.step(*step);
        }
        pair.reset();
        pair.reopen();
        pair.resize(mib(2000));
        pair.assert_size(mib(2000));
    }
}

#[test]
fn a_target_lowered_while_huge_pages_are_made_ready_is_reached() {
    let mut pair = Pair::on_huge_pages(Personality::linux_6_1(), 1024, 64, 1024);
    pair.open();
    pair.run();
    pair.resize(mib(512));
    pair.set_target(mib(800));
    assert_eq!(pair.snapshot().state, StateName::Preparing);
    pair.resize(mib(600));
    pair.assert_size(mib(600));
}

#[test]
fn a_target_that_a_change_of_alignment_puts_out_of_reach_is_given_up() {
    let small = Personality::windows_server_2016();
    let mut pair = Pair::with_capacity(small, 1024, 64, 512);
    pair.open();
    pair.run();
    pair.resize(mib(1026));
    pair.kexec(MemoryMap::Machine);
    *pair.guest.personality_mut() = Personality::linux_6_1();
    pair.set_target(mib(1500));
    pair.reopen();
    pair.run();
    assert_eq!(pair.snapshot().last_stop, Some(StopReason::NoAddressSpace));
}
