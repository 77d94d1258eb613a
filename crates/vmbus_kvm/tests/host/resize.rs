//! Resizing a guest, and what happens meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use host_faults::Refusal;
use page_range::PageCount;
use vmbus_kvm::{Config, Inhibit, MachineMemory, Notice, SetTargetError, Thread};

use crate::dynmem::{
    BOOT, Backed, Backend, Driver, HALF, MemoryHost, boot_ram, hot_add, memory_config,
};
use crate::platform::{FakePlatform, Quirks, chain};

/// Long enough for a thread to do what it must not do.
const A_WHILE: Duration = Duration::from_millis(50);

fn resize(quirks: Quirks) {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(quirks));

    assert_eq!(host.memory.set_target(HALF), Ok(HALF));
    driver.until("the shrink", |_| host.is_at_target());
    assert_eq!(host.backend.discarded(), HALF);
    assert_eq!(*host.backend.discarded.lock().unwrap(), *driver.driver.memory().ballooned());

    // All back, and half as much again.
    let larger = BOOT.saturating_add(HALF);
    assert_eq!(host.memory.set_target(larger), Ok(larger));
    driver.until("the growth", |driver| {
        host.is_at_target() && driver.driver.memory().managed() == larger
    });
    assert_eq!(host.backend.added.lock().unwrap().len(), HALF);
    assert!(driver.driver.memory().ballooned().is_empty());

    let notices = host.notices.lock().unwrap().clone();
    for target in [HALF, larger] {
        assert!(notices.contains(&Notice::TargetReached { actual: target }), "{notices:?}");
    }
    assert_eq!(host.seen.failures(), Vec::<String>::new());
}

#[test]
fn a_guest_shrinks_and_grows_beyond_its_boot_size() {
    resize(Quirks::default());
}

#[test]
fn a_guest_is_resized_on_a_machine_that_helps_little() {
    resize(Quirks { signals_exit: true, no_acknowledgement: true, loses_kicks: true });
}

#[test]
fn a_while_after_a_change_the_backend_learns_what_is_out() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    let odd = HALF.saturating_add(PageCount::new(3));
    for target in [HALF, odd] {
        host.memory.set_target(target).unwrap();
        driver.until("the target", |_| host.is_at_target());
    }
    let settled = || host.backend.settled.lock().unwrap().clone();
    driver
        .until("the news", |driver| settled().as_ref() == Some(driver.driver.memory().ballooned()));
    assert_eq!(settled().unwrap().len(), BOOT.saturating_sub(odd));
}

#[test]
fn a_target_out_of_reach_is_refused_at_once() {
    let host = MemoryHost::start().unwrap();
    let error = host.memory.set_target(PageCount::new(1 << 30)).unwrap_err();
    assert!(matches!(error, SetTargetError::Target(_)), "{error}");
    assert!(host.memory.snapshot().device.last_refusal.is_some());
}

#[test]
fn a_target_set_before_the_guest_is_there_waits_for_it() {
    let host = MemoryHost::start().unwrap();
    host.memory.set_target(HALF).unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    driver.until("the shrink", |_| host.is_at_target());
    assert_eq!(host.actual(), HALF);
}

#[test]
fn a_reset_returns_only_when_the_discard_in_flight_has_ended() {
    let host = MemoryHost::start().unwrap();
    let platform = FakePlatform::new(Quirks::default());
    let mut driver = Driver::boot(&host, Arc::clone(&platform));
    host.backend.hold(true);
    host.memory.set_target(HALF).unwrap();
    driver.until("a discard", |_| host.backend.is_discarding.load(Ordering::Acquire));
    let (done, waits) = channel();
    thread::scope(|scope| {
        let host = &host;
        scope.spawn(move || done.send(host.host.reset()));
        assert!(waits.recv_timeout(A_WHILE).is_err(), "a page may still be discarded");
        host.backend.hold(false);
        waits.recv().unwrap().unwrap();
    });
    let kept = host.memory.take_kept();
    assert_eq!(kept.target, Some(HALF));
    assert_eq!(kept.set_since, None);
    drop(driver);
    assert_eq!(Arc::strong_count(&platform), 1, "the host keeps the machine");
}

#[test]
fn the_next_machine_gets_its_own_memory_and_its_target() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    let larger = BOOT.saturating_add(HALF);
    host.memory.set_target(larger).unwrap();
    driver.until("the growth", |_| host.is_at_target());
    host.memory.announce_reset();
    host.memory.set_target(HALF).unwrap();
    drop(driver);
    host.host.reset().unwrap();
    let kept = host.memory.take_kept();
    assert_eq!((kept.size, kept.set_since), (Some(larger), Some(HALF)));
    assert!(host.backend.added.lock().unwrap().is_empty(), "added memory outlives its machine");

    let next = Arc::new(Backend::default());
    host.memory.replace_backend(Backed(Arc::clone(&next))).unwrap();
    let memory =
        MachineMemory { boot_ram: boot_ram(), hot_add: Some(hot_add()), target: kept.set_since };
    host.memory.next_machine(memory).unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    driver.until("the shrink", |_| host.is_at_target());
    assert_eq!(next.discarded(), HALF);
    assert_eq!(host.backend.discarded(), PageCount::ZERO);
}

#[test]
fn memory_is_not_replaced_under_a_guest() {
    let host = MemoryHost::start().unwrap();
    let _driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    let memory = MachineMemory { boot_ram: boot_ram(), ..MachineMemory::default() };
    assert!(host.memory.next_machine(memory).is_err());
}

#[test]
fn while_inhibited_nothing_is_discarded() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    let snapshot = host.memory.inhibit(Inhibit::Snapshot);
    let passthrough = host.memory.inhibit(Inhibit::Passthrough);
    host.memory.set_target(HALF).unwrap();
    let start = std::time::Instant::now();
    driver.until("a while", |_| start.elapsed() > A_WHILE);
    assert_eq!(host.backend.discarded(), PageCount::ZERO);
    assert_eq!(host.memory.snapshot().inhibited_by, [Inhibit::Passthrough, Inhibit::Snapshot]);
    drop(snapshot);
    let start = std::time::Instant::now();
    driver.until("a while", |_| start.elapsed() > A_WHILE);
    assert_eq!(host.backend.discarded(), PageCount::ZERO);
    drop(passthrough);
    assert_eq!(host.memory.snapshot().inhibited_by, []);
    driver.until("the shrink", |_| host.is_at_target());
    assert_eq!(host.backend.discarded(), HALF);
}

#[test]
fn a_host_made_without_discards_stays_so_after_an_inhibitor() {
    let host = MemoryHost::start_with(Config { inhibited: true, ..memory_config() }).unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    drop(host.memory.inhibit(Inhibit::Snapshot));
    assert_eq!(host.memory.snapshot().inhibited_by, [Inhibit::Other]);
    host.memory.set_target(HALF).unwrap();
    let start = std::time::Instant::now();
    driver.until("a while", |_| start.elapsed() > A_WHILE);
    assert_eq!(host.backend.discarded(), PageCount::ZERO);
}

#[test]
fn an_inhibitor_waits_for_the_discard_in_flight() {
    let (host, mut driver) = MemoryHost::discarding();
    let (done, waits) = channel();
    thread::scope(|scope| {
        let memory = host.memory.clone();
        scope.spawn(move || done.send(memory.inhibit(Inhibit::Postcopy)));
        assert!(waits.recv_timeout(A_WHILE).is_err(), "a page may still be discarded");
        host.backend.hold(false);
        let inhibitor = waits.recv().unwrap();
        let discarded = host.backend.discarded();
        let start = std::time::Instant::now();
        driver.until("a while", |_| start.elapsed() > A_WHILE);
        assert_eq!(host.backend.discarded(), discarded);
        drop(inhibitor);
    });
    driver.until("the shrink", |_| host.is_at_target());
}

#[test]
fn an_inhibitor_may_outlive_the_host() {
    let host = MemoryHost::start().unwrap();
    let inhibitor = host.memory.inhibit(Inhibit::Other);
    let MemoryHost { memory, host, .. } = host;
    drop(host);
    drop(inhibitor);
    assert!(memory.set_target(HALF).is_err());
    drop(memory.inhibit(Inhibit::Other));
}

#[test]
fn pages_that_cannot_be_discarded_stay_the_guests_and_are_reported() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    host.backend.fails.store(true, Ordering::Release);
    host.memory.set_target(HALF).unwrap();
    driver.until("the report", |_| {
        !host.seen.reports().is_empty() && {
            host.seen.reports().iter().any(|text| text.contains("no such luck"))
        }
    });
    let wanted = "cannot give pages back to the host: no such luck";
    assert!(host.seen.reports().iter().any(|text| text == wanted), "{:?}", host.seen.reports());
    assert_eq!(host.actual(), BOOT);
}

#[test]
fn a_driver_that_is_unloaded_waits_for_its_discards() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    host.memory.set_target(HALF).unwrap();
    driver.until("a discard", |_| host.backend.discarded() > PageCount::ZERO);
    let (guest, client) = driver.unload();
    assert!(!host.backend.is_discarding.load(Ordering::Acquire));
    let mut driver = Driver::load(guest, client);
    driver.until("the driver", |_| host.memory.snapshot().device.version.is_some());
}

#[test]
fn a_backend_that_panics_ends_the_host() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    host.backend.panics.store(true, Ordering::Release);
    host.memory.set_target(HALF).unwrap();
    driver.until("the end", |_| !host.seen.failures().is_empty());
    assert_eq!(host.seen.failures(), ["the memory thread panicked"]);
    assert!(host.host.reset().is_err());
    assert!(matches!(host.memory.set_target(HALF), Err(SetTargetError::Stopped(_))));
    let _ = host.memory.take_kept();
    drop(host.memory.inhibit(Inhibit::Other));
}

#[test]
fn both_threads_are_told_of_and_their_lack_has_a_remedy() {
    let host = MemoryHost::start().unwrap();
    host.host.reset().unwrap();
    let _ = host.memory.take_kept();
    let mut threads = host.seen.threads.lock().unwrap().clone();
    threads.sort_by_key(|thread| thread.name());
    assert_eq!(threads, [Thread::Memory, Thread::Bus]);
    let both = [libc::SYS_clone, libc::SYS_clone3].map(|call| Refusal::of(call, libc::EAGAIN));
    let start = || MemoryHost::start().map(drop);
    let error = chain(&host_faults::with(&both, start).unwrap_err());
    assert!(error.starts_with("cannot start the thread that works on memory; raise"), "{error}");
}
