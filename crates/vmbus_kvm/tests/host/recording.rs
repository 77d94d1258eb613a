//! What the supervisor is told of the conversation can be replayed, and a replay notices a change.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use bus_replay::{Difference, ReplayError, replay};
use page_range::PageCount;
use vmbus::protocol::ring::PacketKind;
use vmbus_kvm::bus_recording::{
    self, Event, FromBus, FromDevice, Header, Line, Recording, ToBus, ToDevice,
};
use vmbus_kvm::{Inhibit, MachineMemory};

use crate::dynmem::{BOOT, Driver, HALF, MemoryHost, boot_ram, hot_add, memory_config};
use crate::echo::config;
use crate::platform::{FakePlatform, Quirks, Seen};

/// A whole conversation, as the bytes of a recording: a guest shrinks, grows past its boot size,
/// lets its ring fill up, reloads its driver, and is reset.
fn session() -> Vec<u8> {
    let seen = Seen { recorded: Some(Mutex::default()), ..Seen::default() };
    let host = MemoryHost::start_seen(memory_config(), seen).unwrap();
    let start = MachineMemory { boot_ram: boot_ram(), hot_add: Some(hot_add()), target: None };
    host.memory.next_machine(start.clone()).unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));

    host.memory.set_target(PageCount::new(1 << 30)).unwrap_err();
    let inhibitor = host.memory.inhibit(Inhibit::Snapshot);
    host.memory.set_target(HALF).unwrap();
    drop(inhibitor);
    driver.until("the shrink", |_| host.is_at_target());
    let larger = BOOT.saturating_add(HALF);
    host.memory.set_target(larger).unwrap();
    driver.until("the growth", |driver| {
        host.is_at_target() && driver.driver.memory().managed() == larger
    });
    fill_the_ring(&host, &mut driver);

    let (guest, client) = driver.unload();
    let mut driver = Driver::load(guest, client);
    host.memory.set_target(BOOT).unwrap();
    driver.until("the shrink", |_| host.is_at_target());

    host.memory.announce_reset();
    host.memory.set_target(HALF).unwrap();
    drop(driver);
    host.host.reset().unwrap();
    let target = host.memory.take_kept().set_since;
    host.memory.next_machine(MachineMemory { target, ..start }).unwrap();
    let mut driver = Driver::boot(&host, FakePlatform::new(Quirks::default()));
    driver.until("the shrink", |_| host.is_at_target());
    let (mut guest, _) = driver.unload();
    guest.bus.unload();
    guest.wait(|event| matches!(event, guest_model::vmbus::Event::Unloaded).then_some(()));
    drop(guest);

    let MemoryHost { memory, host, seen, .. } = host;
    drop((memory, host));
    let mut text = Vec::new();
    bus_recording::write(&mut text, &Header::new((&config()).into(), (&memory_config()).into()));
    for line in &*seen.recorded.as_ref().unwrap().lock().unwrap() {
        bus_recording::write(&mut text, line);
    }
    bus_recording::write(&mut text, &Line { t: 0, device: 0, event: Event::End });
    text
}

/// Asks for completions until the ring to the guest is full and some must wait, then reads them all.
fn fill_the_ring(host: &MemoryHost, driver: &mut Driver) {
    // The ring has 16 KiB, and a completion takes 24 bytes.
    let asked = 16384 / 24 + 10;
    let connection = driver.channel.connection;
    for id in 0..asked {
        let rings = &mut driver.channel.rings;
        while rings.send_of_kind(PacketKind(7), &[], id).is_err() {
            driver.guest.signal(connection);
            std::thread::yield_now();
        }
        driver.guest.signal(connection);
    }
    let start = Instant::now();
    while !host.seen.recorded.as_ref().unwrap().lock().unwrap().iter().any(waits_for_room) {
        assert!(start.elapsed().as_secs() < 20, "the ring never fills");
        std::thread::yield_now();
    }
    let mut heard = 0;
    // Until the last: the host drops none as long as no more than 16 wait.
    while heard < asked {
        while let Some(packet) = driver.channel.rings.receive() {
            assert_eq!((packet.kind, packet.transaction_id), (PacketKind::COMPLETION, heard));
            heard += 1;
        }
        std::thread::yield_now();
    }
}

fn waits_for_room(line: &Line) -> bool {
    line.event == Event::FromDevice(FromDevice::Idle { waits_for_room: true })
}

fn recorded() -> Recording {
    let text = session();
    // `cargo xtask record-bus` makes those of real guests. This one is made here.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("model.jsonl");
    std::fs::write(kept, &text).unwrap();
    let recording = bus_recording::read(&text).unwrap();
    assert!(!recording.is_cut_off);
    recording
}

#[test]
fn a_recorded_guest_hears_the_same_again() {
    let recording = recorded();
    let compared = replay(&recording).unwrap_or_else(|error| panic!("{error}"));
    // Three connections with version, offer and open results; a request for each target.
    assert!(compared.messages >= 12, "{compared:?}");
    assert!(compared.packets > 600, "{compared:?}");
    assert!(compared.jobs >= 4 && compared.added >= 1, "{compared:?}");
    let refusal = Event::ToDevice(ToDevice::SetTarget { pages: 1 << 30, taken: None });
    assert!(recording.lines.iter().any(|read| read.line.event == refusal));
}

/// The difference after a change of the first line for which `change` returns true.
fn noticed(recording: &Recording, mut change: impl FnMut(&mut Event) -> bool) -> Difference {
    let mut recording = recording.clone();
    let changed = recording
        .lines
        .iter_mut()
        .find_map(|read| change(&mut read.line.event).then_some(read.number));
    let changed = changed.expect("there is such a line");
    match replay(&recording) {
        Err(ReplayError::Difference(difference)) => {
            assert_eq!(difference.line, changed, "{difference}");
            difference
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_replay_notices_every_kind_of_change_and_says_in_words_what_it_was() {
    let recording = recorded();

    // The first message of the device answers the guest's version.
    let difference = noticed(&recording, |event| match event {
        Event::FromDevice(FromDevice::Packet(packet)) => {
            packet.bytes[4] ^= 1;
            true
        }
        _ => false,
    });
    let text = difference.to_string();
    assert!(text.starts_with(&format!("line {} differs\n  expected: ", difference.line)), "{text}");
    for said in [&difference.expected, &difference.actual] {
        assert!(said.contains("VersionResponse { is_accepted: true }"), "{text}");
    }
    assert_ne!(difference.expected, difference.actual);

    let difference = noticed(&recording, |event| match event {
        Event::FromBus(FromBus::Message { bytes, .. }) => {
            *bytes.last_mut().unwrap() ^= 1;
            true
        }
        _ => false,
    });
    assert!(difference.actual.contains("VersionResponse"), "{difference}");

    let difference = noticed(&recording, |event| match event {
        Event::ToBus(ToBus::Message { status, .. }) => {
            *status = 18;
            true
        }
        _ => false,
    });
    assert!(difference.expected.contains("status 18"), "{difference}");

    let difference = noticed(&recording, |event| match event {
        Event::ToDevice(ToDevice::SetTarget { taken: taken @ Some(_), .. }) => {
            *taken = None;
            true
        }
        _ => false,
    });
    assert!(difference.actual.contains("Some"), "{difference}");
    let waits = |event: &mut Event| match event {
        Event::FromDevice(FromDevice::Job { id, .. }) => {
            *id += 1;
            true
        }
        _ => false,
    };
    noticed(&recording, waits);
}

#[test]
fn a_replay_notices_what_is_said_too_much_and_to_the_wrong_vp() {
    let recording = recorded();
    for is_it in [
        |event: &Event| matches!(event, Event::FromBus(FromBus::Message { .. })),
        |event: &Event| matches!(event, Event::FromDevice(FromDevice::Packet(_))),
    ] {
        let mut shorter = recording.clone();
        let index = shorter.lines.iter().position(|read| is_it(&read.line.event)).unwrap();
        shorter.lines.remove(index);
        let error = replay(&shorter).unwrap_err();
        assert!(matches!(error, ReplayError::Difference(_)), "{error}");
    }
    let mut misdirected = recording;
    for read in &mut misdirected.lines {
        if let Event::FromDevice(FromDevice::Signal { vp, .. }) = &mut read.line.event {
            *vp = 0;
        }
    }
    let error = replay(&misdirected).unwrap_err().to_string();
    assert!(error.contains("signal to VP 0"), "{error}");
}
