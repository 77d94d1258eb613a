//! Host and guest on two threads, in real guest memory, asleep until they are signalled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use guest_model::vmbus::GuestRings;
use guest_ram::{GuestRam, RamConfig, RamRegion};
use kvm_hyperv::memory::GuestBusMemory;
use page_range::{Gpa, Gpfn, PageCount};
use races::own_parts::OwnParts;
use races::packets::{Bound, Packets, Pauses};
use races::wake::Wake;
use vm_memory::GuestRegionCollection;
use vmbus::GuestMemory;
use vmbus::protocol::ring::{
    DESCRIPTOR_LEN, INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, WRITE_INDEX,
};
use vmbus::ring::{ChannelRings, RingError, RingLayout, Sent};

const PACKETS: u64 = 1_000_000;
const SECONDS: u64 = 6;
/// The transaction id that ends a run.
const LAST: u64 = u64::MAX;

/// Where the guest-to-host ring ends.
const SPLIT: usize = 9;
/// Pages of each side's data.
const DATA_PAGES: u32 = 8;

/// Guest memory as the rings see it.
type Ram = GuestBusMemory<Arc<GuestRegionCollection<RamRegion>>>;

fn ram() -> Ram {
    let config = RamConfig { size: PageCount::from_bytes(1 << 20), ..RamConfig::default() };
    GuestBusMemory::new(GuestRam::new(&config).unwrap().snapshot())
}

/// Two rings of eight pages each, some of them adjacent and some not.
fn pages() -> Vec<Gpfn> {
    let to_host = [40, 51, 52, 53, 50, 60, 61, 70, 71];
    let to_guest = [41, 90, 89, 91, 92, 93, 94, 99, 97];
    to_host.into_iter().chain(to_guest).map(|page| Gpfn::new(page).unwrap()).collect()
}

struct Ends {
    host: ChannelRings<Ram>,
    guest: GuestRings<Ram>,
    wake_host: Wake,
    wake_guest: Wake,
    packets: Packets,
}

impl Ends {
    fn new() -> Self {
        let (ram, pages) = (ram(), pages());
        let guest = GuestRings::new(ram.clone(), &pages, SPLIT);
        let host = ChannelRings::open(ram, &RingLayout::new(&pages, SPLIT).unwrap()).unwrap();
        let (wake_host, wake_guest) = (Wake::new(), Wake::new());
        Self { host, guest, wake_host, wake_guest, packets: Packets::new() }
    }
}

/// The packets that a sender sends: by number, then the last one.
fn ids() -> impl Iterator<Item = u64> {
    let bound = Bound::new(PACKETS, SECONDS);
    (0..).take_while(move |id| bound.allows(*id)).chain([LAST])
}

/// Checks a received packet; true for the last one.
fn is_last(packets: &Packets, next: &mut u64, id: u64, payload: &[u8]) -> bool {
    if id != LAST {
        let sent = packets.payload(id);
        let (received, padding) = payload.split_at(sent.len());
        assert!((id, received) == (*next, sent), "packet {id} for {next}");
        assert!(padding.len() < 8 && padding.iter().all(|byte| *byte == 0), "padding of {id}");
        *next += 1;
    }
    id == LAST
}

/// `most` is the highest possible number of signals to the receiver: two each time that it unmasks,
/// since one may race with its masking, and one for each packet that it takes unmasked.
fn report(packets: u64, receiver: &Wake, sender: &Wake, most: usize) {
    let ((told, slept), (room, waited)) = (receiver.counts(), sender.counts());
    println!("{packets} packets, {told} signals for {slept} sleeps, {room} of room for {waited}");
    assert!(told <= most, "{told} signals, where {most} are the most");
    assert!(room as u64 <= packets, "{room} signals of room for {packets} packets");
}

#[test]
fn a_million_packets_reach_the_host_in_order() {
    let Ends { mut host, mut guest, wake_host, wake_guest, packets } = Ends::new();
    let (mut next, mut unmasked) = (0, 1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pauses = Pauses::new(1);
            for id in ids() {
                loop {
                    match guest.send_or_wait(packets.payload(id), id) {
                        Ok(signal) => break wake_host.signal(signal),
                        Err(_) => wake_guest.sleep(),
                    }
                }
                pauses.pause();
            }
        });
        let mut pauses = Pauses::new(2);
        'all: loop {
            // The host may stop early; then it comes back by itself.
            let most = if pauses.one_in(4) { pauses.below(64) } else { u32::MAX };
            let mut empty = false;
            for _ in 0..most {
                let Some(packet) = host.receive().unwrap() else {
                    empty = true;
                    break;
                };
                if is_last(&packets, &mut next, packet.transaction_id, packet.payload) {
                    break 'all;
                }
                pauses.pause();
            }
            wake_guest.signal(host.end_receive());
            if empty {
                unmasked += 1;
                wake_host.sleep();
            }
        }
    });
    report(next, &wake_host, &wake_guest, 2 * unmasked);
}

#[test]
fn a_million_packets_reach_the_guest_in_order() {
    let Ends { mut host, mut guest, wake_host, wake_guest, packets } = Ends::new();
    let (mut next, mut most) = (0, 2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut pauses = Pauses::new(3);
            for id in ids() {
                loop {
                    match host.send(packets.payload(id), id).unwrap() {
                        Sent::Written { signal } => break wake_guest.signal(signal),
                        Sent::Full => wake_host.sleep(),
                    }
                }
                pauses.pause();
            }
        });
        let mut pauses = Pauses::new(4);
        'all: loop {
            // A guest that does not mask while it works is signalled more often; nothing else
            // changes.
            let masked = !pauses.one_in(4);
            guest.mask(masked);
            while let Some(packet) = guest.receive() {
                if is_last(&packets, &mut next, packet.transaction_id, &packet.payload) {
                    break 'all;
                }
                wake_host.signal(packet.signal);
                most += usize::from(!masked);
                pauses.pause();
            }
            guest.mask(false);
            most += 2;
            if guest.is_empty() {
                wake_guest.sleep();
            }
        }
    });
    report(next, &wake_guest, &wake_host, most);
}

/// The host's calls against a guest that scribbles, and their results.
#[derive(Debug, Default)]
struct Calls {
    received: u64,
    sent: u64,
    full: u64,
    errors: u64,
}

const CALLS: u64 = 1_000_000;
/// No call of the host makes more accesses to guest memory than this: some words and the runs of a
/// ring.
const ACCESSES: usize = 64;

fn call(
    rings: &mut ChannelRings<&OwnParts<Ram>>,
    pauses: &mut Pauses,
    calls: &mut Calls,
    payload: &[u8],
) -> Result<(), RingError> {
    let sent = match pauses.below(4) {
        0 => rings.send(payload, 7)?,
        1 => rings.complete(9)?,
        _ => {
            if let Some(packet) = rings.receive()? {
                assert!(packet.payload.len() < 0x1_0000 * 8);
                calls.received += 1;
            }
            let _ = rings.end_receive();
            return Ok(());
        }
    };
    match sent {
        Sent::Written { .. } => calls.sent += 1,
        Sent::Full => calls.full += 1,
    }
    Ok(())
}

fn hostile_host(ram: Ram, layout: &RingLayout) -> Calls {
    let memory = OwnParts::new(ram, layout);
    let (mut pauses, mut calls, packets) = (Pauses::new(5), Calls::default(), Packets::new());
    let bound = Bound::new(CALLS, SECONDS);
    let mut rings = None;
    for round in (0..).take_while(|round| bound.allows(*round)) {
        let result = match &mut rings {
            None => ChannelRings::open(&memory, layout).map(|open| rings = Some(open)),
            Some(rings) => call(rings, &mut pauses, &mut calls, packets.payload(round)),
        };
        if result.is_err() {
            calls.errors += 1;
            rings = None;
        }
        let accesses = memory.take_accesses();
        assert!(accesses < ACCESSES, "{accesses} accesses in one call");
        pauses.pause();
    }
    calls
}

/// Writes invalid values to the rings, and sometimes valid ones.
fn scribble(ram: &Ram, layout: &RingLayout, pauses: &mut Pauses) {
    let incoming = pauses.one_in(2);
    let ring = if incoming { layout.incoming() } else { layout.outgoing() };
    let word = |offset| ring[0].gpa().checked_add(offset).unwrap();
    let load = |offset| ram.load_u32(word(offset), Ordering::Acquire).unwrap();
    let store = |offset, value| ram.store_u32(word(offset), value, Ordering::Release).unwrap();
    let position = pauses.below(DATA_PAGES << 12) & !7;
    match pauses.below(256) {
        // Values that the ring's rules allow the guest.
        0..200 if incoming => {
            let (start, len8) = (load(WRITE_INDEX) % (DATA_PAGES << 12), 2 + pauses.below(40));
            write_header(ram, ring, start & !7, len8);
            store(WRITE_INDEX, ((start & !7) + (len8 + 1) * 8) % (DATA_PAGES << 12));
        }
        0..200 => store(READ_INDEX, load(WRITE_INDEX)),
        // Values that they do not allow.
        200 => store(WRITE_INDEX, pauses.below(u32::MAX)),
        201 => store(READ_INDEX, pauses.below(u32::MAX)),
        202..210 => store(WRITE_INDEX, position),
        210..220 => store(READ_INDEX, position),
        220..235 => store(INTERRUPT_MASK, pauses.below(2)),
        235..240 => store(PENDING_SEND_SIZE, position),
        _ => {
            let len8 = if pauses.one_in(9) { pauses.below(0x1_0000) } else { pauses.below(8) };
            write_header(ram, ring, position, len8);
        }
    }
}

fn write_header(ram: &Ram, ring: &[Gpfn], position: u32, len8: u32) {
    let mut header = [0; DESCRIPTOR_LEN as usize];
    (header[0], header[2]) = (6, 2);
    header[4..6].copy_from_slice(&len8.to_le_bytes()[..2]);
    for (bytes, position) in header.chunks(8).zip([position, (position + 8) % (DATA_PAGES << 12)]) {
        let page = ring[1 + (position >> 12) as usize].gpa();
        ram.write(page.checked_add((position & 0xfff).into()).unwrap(), bytes).unwrap();
    }
}

#[test]
fn a_guest_that_scribbles_harms_nothing_but_its_channel() {
    let ram = ram();
    let layout = RingLayout::new(&pages(), SPLIT).unwrap();
    let outside = |ram: &Ram| {
        let mut all = vec![0; 1 << 20];
        ram.read(Gpa::new(0), &mut all).unwrap();
        for page in pages() {
            let start = usize::try_from(page.gpa().get()).unwrap();
            all[start..start + 4096].fill(0);
        }
        all
    };
    let noise: Vec<u8> = (0..1 << 20).map(|at: u32| at.to_le_bytes()[1] ^ 0x5c).collect();
    ram.write(Gpa::new(0), &noise).unwrap();
    let before = outside(&ram);

    let stop = Arc::new(AtomicBool::new(false));
    let (done, wait) = channel();
    let guest = thread::spawn({
        let (ram, stop) = (ram.clone(), Arc::clone(&stop));
        let layout = layout.clone();
        move || {
            let (mut pauses, mut count) = (Pauses::new(6), 0_u64);
            while !stop.load(Ordering::Relaxed) {
                scribble(&ram, &layout, &mut pauses);
                count += 1;
                pauses.pause();
            }
            count
        }
    });
    thread::spawn({
        let ram = ram.clone();
        move || done.send(hostile_host(ram, &layout))
    });
    let calls = match wait.recv_timeout(Duration::from_secs(60)) {
        Ok(calls) => calls,
        Err(RecvTimeoutError::Timeout) => panic!("a call of the host's does not end"),
        Err(RecvTimeoutError::Disconnected) => panic!("the host panicked"),
    };
    stop.store(true, Ordering::Relaxed);
    let scribbles = guest.join().unwrap();
    println!("{scribbles} scribbles, {calls:?}");
    assert!([calls.received, calls.sent, calls.full, calls.errors].iter().all(|count| *count > 0));
    assert!(outside(&ram) == before, "something outside the rings was written");
}
