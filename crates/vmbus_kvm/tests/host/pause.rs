//! A host that is paused, saved and restored.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use guest_model::dynmem::{Client, Memory, Personality};
use page_range::PageCount;
use vmbus_kvm::{Config, HostBuilder, Inhibit, RestoreError, SavedBus, SavedVsp, Settle};

use crate::dynmem::{BOOT, Backed, Driver, HALF, MemoryHost, boot_ram, memory_config};
use crate::echo::config;
use crate::guest::Guest;
use crate::platform::{FakePlatform, Quirks, Seen};

const A_WHILE: Duration = Duration::from_millis(50);

/// Saves a host, ends it, and makes another one of what was saved.
fn save(host: MemoryHost) -> (Vec<u8>, MemoryHost) {
    let paused = host.host.pause().unwrap();
    assert!(!host.backend.is_discarding.load(Ordering::Acquire));
    let saved = (paused.save(), host.memory.save(&paused));
    paused.stop();
    (postcard::to_allocvec(&saved).unwrap(), host)
}

/// The host that goes on with a guest in the same memory.
fn restore(bytes: &[u8], before: MemoryHost, guest: &mut Guest) -> MemoryHost {
    let MemoryHost { backend, notices, seen, .. } = before;
    let (bus, vsp): (SavedBus, SavedVsp) = postcard::from_bytes(bytes).unwrap();
    let old = &guest.platform;
    let platform = FakePlatform::with_memory(old.quirks, Arc::clone(&old.memory));
    let mut builder = HostBuilder::restore(config(), Arc::clone(&seen), &bus).unwrap();
    let sink = Arc::clone(&notices);
    let on_notice = move |notice| sink.lock().unwrap().push(notice);
    let backed = Backed(Arc::clone(&backend));
    let memory = builder
        .restore_dynamic_memory(memory_config(), backed, on_notice, &platform, &vsp)
        .unwrap();
    let host = builder.start().unwrap();
    guest.machine = host.restore_machine(Arc::clone(&platform), &bus).unwrap();
    guest.platform = platform;
    MemoryHost { memory, host, backend, notices, seen }
}

fn moved_all_the_time(quirks: Quirks) {
    let host = Rc::new(RefCell::new(Some(MemoryHost::start().unwrap())));
    let moves = Rc::new(RefCell::new(0));
    let (slot, counter) = (Rc::clone(&host), Rc::clone(&moves));
    let hook = Box::new(move |guest: &mut Guest| {
        let Some(before) = slot.borrow_mut().take() else { return };
        let (bytes, before) = save(before);
        *slot.borrow_mut() = Some(restore(&bytes, before, guest));
        *counter.borrow_mut() += 1;
    });
    let first = host.borrow_mut().take().unwrap();
    // Not moved before it has connected: the first host is borrowed meanwhile.
    let mut guest = Guest::boot_with(&first.host, FakePlatform::new(quirks), None);
    *host.borrow_mut() = Some(first);
    guest.hook = Some(hook);
    let memory = Memory::new(boot_ram(), PageCount::new(1 << 14));
    let mut driver = Driver::load(guest, Client::new(Personality::linux_6_1(), memory));

    let at_target = || host.borrow().as_ref().is_some_and(MemoryHost::is_at_target);
    let set_target = |target| {
        let host = host.borrow();
        assert_eq!(host.as_ref().unwrap().memory.set_target(target), Ok(target));
    };
    set_target(HALF);
    driver.until("the shrink", |_| at_target());
    let larger = BOOT.saturating_add(HALF);
    set_target(larger);
    driver.until("the growth", |driver| at_target() && driver.driver.memory().managed() == larger);
    let host = host.borrow();
    let host = host.as_ref().unwrap();
    assert!(host.seen.failures().is_empty());
    assert_eq!(host.backend.added.lock().unwrap().len(), HALF);
    assert!(*moves.borrow() >= 10, "moved {} times", moves.borrow());
}

#[test]
fn a_guest_does_not_notice_that_its_host_is_another_one_all_the_time() {
    moved_all_the_time(Quirks::default());
    // Kicks are not lost here: no host lives long enough to repeat one.
    let quirks = Quirks { signals_exit: true, no_acknowledgement: true, loses_kicks: false };
    moved_all_the_time(quirks);
}

#[test]
fn a_new_backend_learns_what_was_out_when_the_host_was_saved() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    host.memory.set_target(HALF).unwrap();
    driver.until("the shrink", |_| host.is_at_target());
    let (bytes, before) = save(host);
    *before.backend.settled.lock().unwrap() = None;
    let host = restore(&bytes, before, &mut driver.guest);
    let settled = || host.backend.settled.lock().unwrap().clone();
    driver
        .until("the news", |driver| settled().as_ref() == Some(driver.driver.memory().ballooned()));
}

#[test]
fn a_message_in_the_slot_survives() {
    let host = MemoryHost::start().unwrap();
    let mut guest = Guest::boot(&host.host, FakePlatform::new(Quirks::default()));
    // Three messages for a guest that takes none: one in the slot, the others queued.
    guest.bus.request_offers();
    let post = guest.bus.poll_post().unwrap();
    assert_eq!(guest.post(post.connection_id.get(), post.message.as_bytes()), 0);
    let paused = host.host.pause().unwrap();
    guest.machine.before_run(crate::guest::MESSAGE_VP).unwrap();
    drop(paused);
    let (bytes, before) = save(host);
    let _host = restore(&bytes, before, &mut guest);
    let mut offers = 0;
    guest.wait(|event| {
        offers += u32::from(matches!(event, guest_model::vmbus::Event::Offered(_)));
        matches!(event, guest_model::vmbus::Event::OffersDelivered).then_some(())
    });
    assert_eq!(offers, 1);
}

#[test]
fn a_pause_waits_for_the_discard_in_flight_and_for_no_other() {
    let (host, mut driver) = MemoryHost::discarding();
    let (done, waits) = channel();
    thread::scope(|scope| {
        let host = &host;
        scope.spawn(move || {
            let paused = host.host.pause().unwrap();
            done.send(()).unwrap();
            thread::sleep(A_WHILE);
            drop(paused);
        });
        assert!(waits.recv_timeout(A_WHILE).is_err(), "a page may still be discarded");
        host.backend.hold(false);
        waits.recv().unwrap();
    });
    driver.until("the shrink", |_| host.is_at_target());
}

#[test]
fn while_paused_commands_wait_and_inhibitors_do_not() {
    let host = MemoryHost::start().unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    driver.until("the driver", |_| host.memory.snapshot().device.version.is_some());
    let paused = host.host.pause().unwrap();
    let inhibitor = host.memory.inhibit(Inhibit::Snapshot);
    let (done, waits) = channel();
    thread::scope(|scope| {
        let memory = host.memory.clone();
        scope.spawn(move || done.send(memory.set_target(HALF)));
        assert!(waits.recv_timeout(A_WHILE).is_err(), "the device was changed while paused");
        drop(paused);
        assert_eq!(waits.recv().unwrap(), Ok(HALF));
    });
    let start = std::time::Instant::now();
    driver.until("a while", |_| start.elapsed() > A_WHILE);
    assert_eq!(host.backend.discarded(), PageCount::ZERO);
    drop(inhibitor);
    driver.until("the shrink", |_| host.is_at_target());
}

#[test]
fn no_time_passes_for_a_device_whose_clock_stands_still() {
    let settle = Settle::Fixed(A_WHILE);
    let host = MemoryHost::start_with(Config { settle, ..memory_config() }).unwrap();
    let clock = host.host.handle();
    clock.stop_clock();
    let stopped_at = clock.now();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    driver.until("the driver", |_| host.memory.snapshot().device.version.is_some());
    assert_eq!(host.memory.set_target(HALF), Ok(HALF));
    let start = std::time::Instant::now();
    driver.until("a while", |_| start.elapsed() > 3 * A_WHILE);
    let device = host.memory.snapshot().device;
    assert_eq!((device.target, device.state.as_str()), (Some(HALF), "settling"));
    assert_eq!((device.ready_in, clock.now()), (Some(A_WHILE), stopped_at));
    clock.continue_clock();
    driver.until("the shrink", |_| host.is_at_target());
}

#[test]
fn what_was_saved_of_another_machine_is_refused() {
    let host = MemoryHost::start().unwrap();
    let guest = Guest::boot(&host.host, FakePlatform::new(Quirks::default()));
    let saved = host.host.pause().unwrap().save();
    drop(guest);
    let larger = vmbus::ServerConfig { vp_count: 8, ..config() };
    let builder = HostBuilder::restore(larger, Seen::default(), &saved).unwrap();
    let other = builder.start().unwrap();
    let platform = FakePlatform::new(Quirks::default());
    let error = other.restore_machine(platform, &saved).unwrap_err();
    assert!(matches!(error, RestoreError::VpCount { saved: 2, now: 8 }), "{error}");
    let smaller = vmbus::ServerConfig { vp_count: 0, ..config() };
    let refused = HostBuilder::<Arc<FakePlatform>>::restore(smaller, Seen::default(), &saved);
    assert!(matches!(refused, Err(RestoreError::Bus(_))));
}
