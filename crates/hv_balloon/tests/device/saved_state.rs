//! A restored device continues where it was saved, and invalid state is refused.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use dynmem_protocol::*;
use hv_balloon::*;
use proptest::prelude::*;
use saved_state::Format;

use crate::driver::*;

const FORMAT: Format = SavedDevice::FORMAT;

/// The numbers of bytes before and after the payload.
const FRAME: (usize, usize) = (20, 4);

const HUGE: u64 = 512;

fn huge() -> Driver {
    let mut driver = Driver::with(Config {
        boot_ram: ram(),
        discard_unit: pages(HUGE),
        settle: Settle::Fixed(Duration::ZERO),
        ..Config::default()
    });
    driver.shake_hands();
    driver
}

/// Devices in all states, with everything that a state can hold. Their guests keep to the protocol.
fn tour() -> Vec<(&'static str, Driver)> {
    vec![
        ("closed", Driver::new(Settle::Auto, true)),
        ("await-version", await_version()),
        ("await-capabilities", await_capabilities()),
        ("settling", settling()),
        ("idle-with-a-balloon", Driver::with_ballooned(1000)),
        ("pausing", pausing()),
        ("ballooning-with-discards", ballooning()),
        ("unballooning-unsent", unballooning()),
        ("preparing", preparing()),
        ("hot-adding", hot_adding()),
        ("late-hot-add", late_hot_add()),
        ("grown", grown()),
        ("confirmation-awaited", confirmation_awaited()),
        ("unconfirmed", unconfirmed()),
        ("huge-pages-held", huge_pages_held()),
        ("huge-pages-returning", huge_pages_returning()),
        ("huge-pages-closing", huge_pages_closing()),
        ("foreign-and-failed", foreign_and_failed()),
        ("target-refused", target_refused()),
    ]
}

fn await_version() -> Driver {
    let mut driver = Driver::new(Settle::Auto, false);
    driver.handle(Event::ChannelOpened { guest_os_id: 0x8100_0601_0000_0000, is_reopened: false });
    driver.set_target(5000);
    driver
}

fn await_capabilities() -> Driver {
    let mut driver = await_version();
    driver.ring_is_full = true;
    driver.packet(&version_request(Version::V1_0));
    driver
}

fn settling() -> Driver {
    let mut driver = Driver::new(Settle::Auto, true);
    driver.shake_hands();
    driver.packet(&StatusReport { available: pages(7), ..StatusReport::default() }.emit(3));
    driver.wait(Duration::from_secs(20));
    driver.packet(&[1, 2, 3]);
    driver
}

fn pausing() -> Driver {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0, 10)], false);
    driver.finish_discards();
    driver.wait(Duration::from_millis(250));
    driver
}

/// Two discards in flight, and pages that wait behind them.
fn ballooning() -> Driver {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    for start in [0, 100, 200] {
        driver.give(&[range(start, 50), range(start + 60, 1)], true);
    }
    driver.wait(Duration::from_secs(7));
    driver
}

fn unballooning() -> Driver {
    let mut driver = Driver::with_ballooned(1000);
    driver.ring_is_full = true;
    driver.set_target(RAM_PAGES);
    driver
}

fn preparing() -> Driver {
    let mut driver = Driver::growable();
    driver.set_target(RAM_PAGES + 700);
    driver
}

fn hot_adding() -> Driver {
    let mut driver = preparing();
    driver.prepared(true);
    driver.wait(Duration::from_secs(3));
    driver
}

fn late_hot_add() -> Driver {
    let mut driver = hot_adding();
    driver.wait(Duration::from_secs(600));
    driver.set_target(RAM_PAGES + 701);
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::HotAddTimeout));
    driver
}

fn grown() -> Driver {
    let mut driver = hot_adding();
    driver.added(1024, HotAddResult::SUCCESS);
    driver.drain();
    driver.give(&[range(0x2_0200, 324)], false);
    driver.finish_discards();
    assert_eq!(driver.actual(), RAM_PAGES + 700);
    driver
}

fn confirmation_awaited() -> Driver {
    let mut driver = grown();
    driver.handle(Event::ChannelClosed);
    driver.shake_hands_as(0, CAN_GROW);
    driver
}

fn unconfirmed() -> Driver {
    let mut driver = confirmation_awaited();
    driver.wait(CONFIRMATION_WAIT);
    driver
}

fn huge_pages_held() -> Driver {
    let mut driver = huge();
    driver.set_target(RAM_PAGES - 2 * HUGE);
    driver.give(&[range(HUGE, HUGE), range(2 * HUGE, 100)], false);
    driver.finish_discards();
    driver
}

fn huge_pages_returning() -> Driver {
    let mut driver = huge_pages_held();
    driver.set_target(RAM_PAGES);
    driver.drain();
    driver.unballooned();
    assert_eq!(driver.state(), StateName::Preparing);
    driver
}

fn huge_pages_closing() -> Driver {
    let mut driver = huge_pages_held();
    driver.handle(Event::ChannelClosed);
    assert_eq!(driver.state(), StateName::Closing);
    driver
}

fn foreign_and_failed() -> Driver {
    let mut driver = Driver::ready();
    driver.set_target(4096);
    driver.give(&[range(0x5000, 3), range(0x7000, 1), range(10, 10), range(15, 10)], true);
    driver.finish_discard(false);
    driver
}

fn target_refused() -> Driver {
    let mut driver = Driver::ready();
    assert!(driver.try_target(RAM_PAGES + 1).is_err());
    driver
}

fn restore(driver: &Driver, bytes: &[u8]) -> Option<Device> {
    let saved = SavedDevice::from_bytes(bytes).ok()?;
    Device::restore(driver.config.clone(), &saved, driver.now).ok()
}

fn save(driver: &Driver) -> Vec<u8> {
    driver.device.save(driver.now).to_bytes()
}

/// The state with a changed payload and the right checksum.
fn reframed(saved: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut payload = saved[FRAME.0..saved.len() - FRAME.1].to_vec();
    change(&mut payload);
    FORMAT.frame(1, &payload)
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v1/{name}.bin"))
}

#[test]
fn a_close_that_the_driver_has_not_heard_of_is_reported_after_the_restore() {
    let mut driver = Driver::ready();
    driver.device.handle(driver.now, Event::ChannelClosed);
    driver.save_and_restore();
    assert_eq!(driver.closes_finished, 1);
}

#[test]
#[ignore = "writes the golden files of the newest version, which may change only before a release"]
fn write_golden_files() {
    fs::create_dir_all(golden("x").parent().unwrap()).unwrap();
    for (name, driver) in tour() {
        fs::write(golden(name), save(&driver)).unwrap();
    }
}

#[test]
fn version_1_is_written_as_ever() {
    for (name, driver) in tour() {
        let expected = fs::read(golden(name)).unwrap();
        assert!(save(&driver) == expected, "{name}: the form of version 1 changed");
    }
}

#[test]
fn version_1_is_restored_as_ever() {
    for (name, driver) in tour() {
        let device = restore(&driver, &fs::read(golden(name)).unwrap()).unwrap();
        assert_eq!(device.snapshot(), driver.device.snapshot(), "{name}");
        assert_eq!(device.next_deadline(), driver.device.next_deadline(), "{name}");
    }
}

#[test]
fn every_state_is_on_the_tour() {
    let states: Vec<_> = tour().iter().map(|(_, driver)| driver.state()).collect();
    for state in StateName::ALL {
        assert!(states.contains(&state), "{state}");
    }
}

#[test]
fn cut_off_anywhere_or_with_any_bit_flipped_it_is_refused() {
    for (name, driver) in tour() {
        let saved = save(&driver);
        for len in 0..saved.len() {
            assert!(restore(&driver, &saved[..len]).is_none(), "{name}: {len}");
        }
        for bit in 0..saved.len() * 8 {
            let mut saved = saved.clone();
            saved[bit / 8] ^= 1 << (bit % 8);
            assert!(restore(&driver, &saved).is_none(), "{name}: bit {bit}");
        }
    }
}

#[test]
fn a_newer_version_is_named() {
    let error = SavedDevice::from_bytes(&FORMAT.frame(2, &[])).unwrap_err();
    assert_eq!(error, FormatError::Version { found: 2, newest: 1 });
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[test]
fn another_configuration_is_refused_by_name() {
    let driver = preparing();
    let saved = driver.device.save(driver.now);
    let config = || driver.config.clone();
    let hot_add = config().hot_add.unwrap();
    let less = HotAdd { capacity: pages(4095), ..hot_add };
    let aligned = HotAdd { least_alignment: pages(256), ..hot_add };
    let elsewhere = HotAdd { window: range(0x3_0000, 1 << 20), ..hot_add };
    for (other, word) in [
        (Config { boot_ram: [range(0, 1)].into_iter().collect(), ..config() }, "boot RAM"),
        (Config { boot_ram: [range(0, RAM_PAGES)].into_iter().collect(), ..config() }, "boot RAM"),
        (Config { hot_add: None, ..config() }, "hot-add memory"),
        (Config { hot_add: Some(less), ..config() }, "hot-add memory"),
        (Config { hot_add: Some(elsewhere), ..config() }, "hot-add memory"),
        (Config { discard_unit: pages(256), hot_add: Some(aligned), ..config() }, "discard unit"),
    ] {
        let error = Device::restore(other, &saved, driver.now).unwrap_err();
        assert!(matches!(error, RestoreError::OtherConfig { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let other_policy = Config { settle: Settle::Auto, status_reports: true, ..config() };
    assert!(Device::restore(other_policy, &saved, driver.now).is_ok());
}

/// Payloads are small, so every value of every byte is tried.
#[test]
fn a_payload_altered_in_any_byte_makes_a_sound_device_or_none() {
    for (_, driver) in tour() {
        let saved = save(&driver);
        for at in 0..saved.len() - FRAME.0 - FRAME.1 {
            for value in 0..=u8::MAX {
                let altered = reframed(&saved, |payload| payload[at] = value);
                if let Some(device) = restore(&driver, &altered) {
                    go_on(device, driver.now);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_payload_altered_anyhow_makes_a_sound_device_or_none(
        which: prop::sample::Index,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..8),
    ) {
        let mut tour = tour();
        let (_, driver) = tour.swap_remove(which.index(tour.len()));
        let altered = reframed(&save(&driver), |payload| {
            for (at, value, kind) in changes {
                let at = at.index(payload.len());
                match kind {
                    0 => payload.insert(at, value),
                    1 if payload.len() > 1 => drop(payload.remove(at)),
                    2 => payload[at] ^= 1 << (value % 8),
                    _ => payload[at] = value,
                }
            }
        });
        if let Some(device) = restore(&driver, &altered) {
            go_on(device, driver.now);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let driver = preparing();
        prop_assert!(restore(&driver, &bytes).is_none());
        if let Some(device) = restore(&driver, &FORMAT.frame(1, &bytes)) {
            go_on(device, driver.now);
        }
    }
}

/// Runs the device on. It checks its own invariants after each event.
fn go_on(mut device: Device, mut now: Duration) {
    let mut jobs = Vec::new();
    for step in 0..12 {
        while let Some(action) = device.poll_action() {
            match action {
                Action::Send => device.handle(now, Event::Sent),
                Action::Work(job) => jobs.push(job.id),
                _ => {}
            }
        }
        match step {
            1 => device.handle(now, Event::Packet(&UnballoonResponse.emit(0))),
            2 => {
                let given = list(&[range(5, 600), range(0x1_0000, 513), range(0x2_0200, 9)]);
                device.handle(now, Event::Packet(&BalloonResponse::emit(0, false, &given)));
            }
            4 => {
                let added = HotAddResponse { pages: pages(512), result: HotAddResult::SUCCESS };
                device.handle(now, Event::Packet(&added.emit(0)));
            }
            5 | 7 => {
                let target = if step == 5 { RAM_PAGES + 100 } else { RAM_PAGES - 1000 };
                let _ = device.set_target(now, pages(target));
            }
            9 => device.handle(now, Event::ChannelClosed),
            11 => device.handle(now, Event::SystemReset),
            _ => {
                now += Duration::from_secs(100);
                device.handle(now, Event::Deadline);
            }
        }
        if step % 3 == 0 {
            for id in jobs.drain(..) {
                device.handle(now, Event::JobDone { id, ok: step % 2 == 0 });
            }
        }
    }
}

#[test]
fn what_was_begun_is_asked_for_again() {
    let mut driver = ballooning();
    let discards = driver.discards.clone();
    assert_eq!(discards.len(), 2);
    driver.save_and_restore();
    assert_eq!(driver.discards, discards);
    driver.finish_discards();
    assert_eq!(driver.actual(), RAM_PAGES - 3 * 51);

    let mut driver = preparing();
    let preparing = driver.preparing.clone();
    driver.save_and_restore();
    assert_eq!(driver.preparing, preparing);
    driver.prepared(true);
    assert_eq!(driver.offered(), range(0x2_0200, 1024));
}

#[test]
fn a_message_that_is_not_in_the_ring_is_sent_and_one_that_is_is_not() {
    let mut driver = unballooning();
    let unsent = driver.stuck.clone().unwrap();
    driver.ring_is_full = false;
    driver.save_and_restore();
    assert_eq!(driver.ring, [unsent]);
    driver.save_and_restore();
    assert_eq!(driver.ring.len(), 1);
    driver.unballooned();
    assert_eq!((driver.state(), driver.actual()), (StateName::Idle, RAM_PAGES));
}

#[test]
fn time_that_passed_while_it_was_saved_does_not_count() {
    for (name, driver) in tour() {
        let left = |device: &Device, now| device.next_deadline().map(|at| at - now);
        let expected = left(&driver.device, driver.now);
        for now in [Duration::ZERO, Duration::from_secs(1_000_000)] {
            let saved = driver.device.save(driver.now);
            let device = Device::restore(driver.config.clone(), &saved, now).unwrap();
            assert_eq!(left(&device, now), expected, "{name}");
        }
    }
}

#[test]
fn pages_that_need_not_be_saved_are_those_whose_discard_ended() {
    let driver = Driver::with_ballooned(1000);
    assert_eq!(driver.device.ballooned().collect::<Vec<_>>(), [range(0x1_1000 - 1000, 1000)]);
    assert_eq!(ballooning().device.ballooned().next(), None);
}

#[test]
fn a_late_answer_counts_after_a_restore_too() {
    let mut driver = late_hot_add();
    driver.save_and_restore();
    driver.added(1024, HotAddResult::SUCCESS);
    assert_eq!(driver.device.snapshot().hot_added, pages(1024));
}

#[test]
fn what_a_report_says_of_new_memory_is_known_after_a_restore() {
    let mut driver = Driver::with(Config { settle: Settle::Auto, ..preparing().config });
    driver.shake_hands_as(0x8100_0601_0000_0000, CAN_GROW);
    let status = |available, committed| {
        let (available, committed) = (pages(available), pages(committed));
        StatusReport { available, committed, ..StatusReport::default() }.emit(99)
    };
    driver.packet(&status(5000, 2000));
    driver.set_target(RAM_PAGES + 1024);
    driver.prepared(true);
    driver.now += Duration::from_secs(3);
    driver.save_and_restore();
    driver.now += Duration::from_secs(2);
    driver.added(1024, HotAddResult::SUCCESS);
    driver.save_and_restore();
    driver.packet(&status(5000, 3024));
    assert_eq!(driver.device.snapshot().last_stop, Some(StopReason::NotOnlined));
    driver.save_and_restore();
    driver.packet(&status(6000, 2000));
    assert_eq!(driver.device.snapshot().last_stop, None);
}

#[test]
fn a_close_ends_after_a_restore_without_the_discards_of_the_session() {
    let mut driver = ballooning();
    driver.handle(Event::ChannelClosed);
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closing, 0));
    driver.save_and_restore();
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
    assert!(driver.discards.is_empty());
}

#[test]
fn a_close_goes_on_to_provide_huge_pages() {
    let mut driver = huge_pages_closing();
    driver.save_and_restore();
    let Prepare::Return(ranges) = driver.prepared(true) else { panic!("pages to add") };
    assert_eq!(ranges, [range(HUGE, HUGE)]);
    assert_eq!((driver.state(), driver.closes_finished), (StateName::Closed, 1));
}

#[test]
fn memory_prepared_for_a_guest_that_left_is_removed() {
    let mut driver = preparing();
    driver.handle(Event::ChannelClosed);
    driver.save_and_restore();
    assert_eq!(
        (driver.state(), &driver.removed[..]),
        (StateName::Closed, &[range(0x2_0200, 1024)][..])
    );
}

#[test]
fn actions_that_nobody_took_are_saved() {
    let mut driver = grown();
    driver.device.handle(driver.now, Event::SystemReset);
    driver.save_and_restore();
    assert_eq!(driver.removed, [range(0x2_0200, 1024)]);
    assert_eq!((driver.closes_finished, driver.actual()), (1, RAM_PAGES));
}
