//! The signalling protocol under `loom`: the real code of both sides, in every order of their
//! accesses with a bounded number of preemptions, with every stale value that a load may still see.
//!
//! A side that is not signalled sleeps for ever, which `loom` reports as a deadlock. Data that is
//! read without being known to have been written is a race, and `loom` fails as well.

use std::sync::Arc;

use guest_model::vmbus::GuestRings;
use loom::model::Builder;
use loom::thread;
use page_range::Gpfn;
use races::model::{Bell, CELL, Mistake, ModelMemory, RING, RING_PAGES};
use vmbus::ring::{ChannelRings, RingLayout, Sent};

/// Size of a packet's descriptor and footer.
const OVERHEAD: usize = 24;
/// Payload of a packet of one cell: many of them fit the ring.
const SHORT: usize = CELL - OVERHEAD;
/// Payload of a packet that fits into the ring only if it is empty.
const LONG: usize = RING / 2 - OVERHEAD;
/// Payload of a packet of which two fit into the ring; the third needs the first one's room.
const MIDDLE: usize = 3 * CELL - OVERHEAD;

/// The mistakes of each side.
#[derive(Clone, Copy, Default)]
struct Mistakes {
    host: Option<Mistake>,
    guest: Option<Mistake>,
}

/// The packets to send, and the mistakes to make.
#[derive(Clone, Copy)]
struct Case {
    packets: u64,
    payload: usize,
    preemptions: usize,
    mistakes: Mistakes,
}

struct Ends {
    host: ChannelRings<ModelMemory>,
    guest: GuestRings<ModelMemory>,
    host_bell: Arc<Bell>,
    guest_bell: Arc<Bell>,
}

impl Ends {
    fn new(mistakes: Mistakes) -> Self {
        let memory = ModelMemory::new();
        let pages: Vec<_> = RING_PAGES.iter().map(|page| Gpfn::new(*page).unwrap()).collect();
        let guest = GuestRings::new(memory.with_mistake(mistakes.guest), &pages, 2);
        let layout = RingLayout::new(&pages, 2).unwrap();
        let host = ChannelRings::open(memory.with_mistake(mistakes.host), &layout).unwrap();
        Self { host, guest, host_bell: Arc::new(Bell::new()), guest_bell: Arc::new(Bell::new()) }
    }
}

fn check(case: Case, run: fn(Case)) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(case.preemptions);
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    builder.check(move || {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        run(case);
    });
    println!("{} runs", runs.load(std::sync::atomic::Ordering::Relaxed));
}

fn payload(case: Case, id: u64) -> Vec<u8> {
    vec![u8::try_from(id).unwrap() + 1; case.payload]
}

/// The guest sends, and sleeps if there is no room; the host receives, and sleeps if there is
/// nothing to receive.
fn guest_to_host(case: Case) {
    let Ends { mut host, mut guest, host_bell, guest_bell } = Ends::new(case.mistakes);
    let bells = (Arc::clone(&host_bell), Arc::clone(&guest_bell));
    let sender = thread::spawn(move || {
        let (host_bell, guest_bell) = bells;
        for id in 0..case.packets {
            loop {
                match guest.send_or_wait(&payload(case, id), id) {
                    Ok(signal) => break host_bell.ring(signal),
                    Err(_) => guest_bell.sleep(),
                }
            }
        }
    });
    let (mut next, mut unmasked) = (0, 1);
    loop {
        while let Some(packet) = host.receive().unwrap() {
            assert_eq!(packet.transaction_id, next);
            assert_eq!(packet.payload, payload(case, next));
            next += 1;
        }
        guest_bell.ring(host.end_receive());
        if next == case.packets {
            break;
        }
        unmasked += 1;
        host_bell.sleep();
    }
    sender.join().unwrap();
    assert_few_signals(case, &host_bell, unmasked, &guest_bell);
}

/// The host sends, and sleeps if there is no room; the guest masks signals while it receives,
/// unmasks, checks once more, and sleeps.
fn host_to_guest(case: Case) {
    let Ends { mut host, mut guest, host_bell, guest_bell } = Ends::new(case.mistakes);
    let bells = (Arc::clone(&host_bell), Arc::clone(&guest_bell));
    let sender = thread::spawn(move || {
        let (host_bell, guest_bell) = bells;
        for id in 0..case.packets {
            loop {
                match host.send(&payload(case, id), id).unwrap() {
                    Sent::Written { signal } => break guest_bell.ring(signal),
                    Sent::Full => host_bell.sleep(),
                }
            }
        }
    });
    let (mut next, mut unmasked) = (0, 1);
    loop {
        guest.mask(true);
        while let Some(packet) = guest.receive() {
            assert_eq!(packet.transaction_id, next);
            assert_eq!(packet.payload, payload(case, next));
            next += 1;
            host_bell.ring(packet.signal);
        }
        if next == case.packets {
            break;
        }
        guest.mask(false);
        unmasked += 1;
        if guest.is_empty() {
            guest_bell.sleep();
        }
    }
    sender.join().unwrap();
    assert_few_signals(case, &guest_bell, unmasked, &host_bell);
}

/// A receiver is signalled for the first packet after it unmasked. One more signal may come if it
/// masks at that moment: the sender saw the mask as it was before, and then that the receiver has
/// read everything. A sender is signalled about room at most once for each packet for which it
/// asked for room; the first packet needs none.
fn assert_few_signals(case: Case, receiver: &Bell, unmasked: usize, sender: &Bell) {
    assert!(receiver.count() <= 2 * unmasked, "{} signals for {unmasked}", receiver.count());
    let packets = usize::try_from(case.packets).unwrap();
    assert!(sender.count() < packets, "{} signals for {packets} packets", sender.count());
}

const SIGHTED: Case = Case {
    packets: 3,
    payload: SHORT,
    preemptions: 3,
    mistakes: Mistakes { host: None, guest: None },
};
const BLOCKED: Case = Case { payload: LONG, ..SIGHTED };
const OVERWRITING: Case = Case { payload: MIDDLE, ..SIGHTED };

#[test]
fn a_host_that_sleeps_is_told_of_packets() {
    check(SIGHTED, guest_to_host);
}

#[test]
fn a_guest_that_sleeps_is_told_of_packets() {
    check(SIGHTED, host_to_guest);
}

#[test]
fn a_guest_that_waits_for_room_is_told_of_it() {
    check(BLOCKED, guest_to_host);
}

#[test]
fn a_host_that_waits_for_room_is_told_of_it() {
    check(BLOCKED, host_to_guest);
}

#[test]
fn room_is_not_the_guests_before_the_host_has_its_copy() {
    check(OVERWRITING, guest_to_host);
}

#[test]
fn room_is_not_the_hosts_before_the_guest_gives_it() {
    check(OVERWRITING, host_to_guest);
}

/// Runs a case that must fail, and returns the reason.
fn failure(case: Case, mistakes: Mistakes, run: fn(Case)) -> String {
    let case = Case { mistakes, ..case };
    let failed = std::panic::catch_unwind(move || check(case, run)).expect_err("it went well");
    let text = failed.downcast::<String>().map(|text| *text);
    text.unwrap_or_else(|other| (*other.downcast::<&str>().unwrap_or_default()).to_owned())
}

fn host(mistake: Mistake) -> Mistakes {
    Mistakes { host: Some(mistake), guest: None }
}

fn guest(mistake: Mistake) -> Mistakes {
    Mistakes { host: None, guest: Some(mistake) }
}

#[test]
fn without_a_barrier_on_either_side_someone_sleeps_for_ever() {
    for (case, run) in [
        (SIGHTED, guest_to_host as fn(Case)),
        (SIGHTED, host_to_guest),
        (BLOCKED, guest_to_host),
        (BLOCKED, host_to_guest),
    ] {
        for mistakes in [host(Mistake::NoFences), guest(Mistake::NoFences)] {
            let failure = failure(case, mistakes, run);
            assert!(failure.contains("deadlock"), "{failure}");
        }
    }
}

#[test]
fn words_that_order_nothing_are_a_race_for_the_data() {
    for run in [guest_to_host as fn(Case), host_to_guest] {
        for mistakes in [host(Mistake::NoOrder), guest(Mistake::NoOrder)] {
            let failure = failure(BLOCKED, mistakes, run);
            assert!(failure.contains("Causality violation"), "{failure}");
        }
    }
}
