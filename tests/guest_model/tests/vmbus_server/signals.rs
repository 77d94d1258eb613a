//! Signals: as few as the rules of the rings allow, and none missing.
//!
//! To count signals, the tests run both ends in turn. To find missing ones, they run each end on
//! its own thread, which sleeps until it is signalled: a missing signal leaves it asleep for ever.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use guest_model::vmbus::{GuestRings, SharedMemory};
use page_range::Gpa;
use vmbus::{
    GuestMemory,
    protocol::ring::{FEATURE_BITS, FEATURE_PENDING_SEND_SIZE},
    ring::{ChannelRings, RingLayout, Sent},
};

use crate::pair::pages;

const PACKETS: u64 = 40_000;

/// A signal to the other end. Signals do not accumulate: whoever is signalled looks at everything.
struct Bell(SyncSender<()>);

impl Bell {
    fn new() -> (Self, Receiver<()>) {
        let (ring, heard) = sync_channel(1);
        (Self(ring), heard)
    }

    fn ring(&self, signal: bool) {
        if signal {
            let _ = self.0.try_send(());
        }
    }
}

fn sleep(heard: &Receiver<()>) {
    heard.recv_timeout(Duration::from_secs(60)).expect("a signal was lost");
}

fn payload(id: u64) -> Vec<u8> {
    vec![id.to_le_bytes()[0]; usize::try_from(id * 7919 % 1500).unwrap()]
}

fn rings() -> (ChannelRings<Arc<SharedMemory>>, GuestRings<Arc<SharedMemory>>) {
    rings_of_a_guest_with(FEATURE_PENDING_SEND_SIZE)
}

/// The rings of a guest that sets these feature bits in the ring it sends on.
fn rings_of_a_guest_with(
    features: u32,
) -> (ChannelRings<Arc<SharedMemory>>, GuestRings<Arc<SharedMemory>>) {
    let mem = Arc::new(SharedMemory::new(32));
    let pages = pages(3, 5);
    let guest = GuestRings::new(mem.clone(), &pages, 3);
    let at = Gpa::new(pages[0].gpa().get() + FEATURE_BITS);
    mem.write(at, &features.to_le_bytes()).unwrap();
    (ChannelRings::open(mem, &RingLayout::new(&pages, 3).unwrap()).unwrap(), guest)
}

/// Sends packets to the host; returns how many signals that takes.
fn guest_sends(guest: &mut GuestRings<Arc<SharedMemory>>, packets: usize) -> usize {
    (0..packets).filter(|_| guest.send(&[0; 48], 0).unwrap()).count()
}

#[test]
fn a_batch_to_the_host_takes_one_signal_and_none_while_the_host_is_awake() {
    let (mut host, mut guest) = rings();
    assert_eq!(guest_sends(&mut guest, 50), 1);
    // The host needs no other signal until it has found the ring empty.
    for _ in 0..25 {
        assert!(host.receive().unwrap().is_some());
    }
    assert_eq!((guest_sends(&mut guest, 50), host.end_receive()), (0, false));
    for _ in 0..75 {
        assert!(host.receive().unwrap().is_some());
    }
    assert_eq!(guest_sends(&mut guest, 10), 0);
    while host.receive().unwrap().is_some() {}
    assert!(!host.end_receive());
    assert_eq!(guest_sends(&mut guest, 50), 1);
}

#[test]
fn a_batch_to_the_guest_takes_one_signal_and_none_while_the_guest_is_awake() {
    let (mut host, mut guest) = rings();
    let host_sends = |host: &mut ChannelRings<_>| {
        let signals = (0..50)
            .filter(|id| host.send(&[0; 48], *id).unwrap() == Sent::Written { signal: true });
        signals.count()
    };
    assert_eq!(host_sends(&mut host), 1);
    guest.mask(true);
    while guest.receive().is_some() {}
    assert_eq!(host_sends(&mut host), 0);
    while guest.receive().is_some() {}
    guest.mask(false);
    assert_eq!(host_sends(&mut host), 1);
}

#[test]
fn room_is_signalled_once_and_only_to_a_side_that_waits_for_it() {
    let (mut host, mut guest) = rings();
    while guest.send_or_wait(&[0; 1000], 0).is_ok() {}
    assert!(host.receive().unwrap().is_some());
    assert_eq!([host.end_receive(), host.end_receive()], [true, false]);
    while host.receive().unwrap().is_some() {}
    assert!(!host.end_receive());
    while let Sent::Written { .. } = host.send(&[0; 1000], 0).unwrap() {}
    let signals = core::iter::from_fn(|| guest.receive()).filter(|packet| packet.signal).count();
    assert_eq!(signals, 1);
}

#[test]
fn a_pending_size_asks_for_the_signal_whatever_the_feature_bits_say() {
    for features in [0, FEATURE_PENDING_SEND_SIZE] {
        let (mut host, mut guest) = rings_of_a_guest_with(features);
        while guest.send_or_wait(&[0; 112], 0).is_ok() {}
        while host.receive().unwrap().is_some() {}
        assert!(host.end_receive(), "{features:#x}");
    }
}

#[test]
fn no_signal_is_lost_from_guest_to_host() {
    let (mut host, mut guest) = rings();
    let (to_host, host_hears) = Bell::new();
    let (to_guest, guest_hears) = Bell::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            for id in 0..PACKETS {
                loop {
                    match guest.send_or_wait(&payload(id), id) {
                        Ok(signal) => break to_host.ring(signal),
                        Err(_) => sleep(&guest_hears),
                    }
                }
            }
        });
        let mut next = 0;
        while next < PACKETS {
            while let Some(packet) = host.receive().unwrap() {
                assert_eq!(packet.transaction_id, next);
                assert_eq!(packet.payload[..payload(next).len()], payload(next));
                next += 1;
            }
            to_guest.ring(host.end_receive());
            if next < PACKETS {
                sleep(&host_hears);
            }
        }
    });
}

#[test]
fn no_signal_is_lost_from_host_to_guest() {
    let (mut host, mut guest) = rings();
    let (to_host, host_hears) = Bell::new();
    let (to_guest, guest_hears) = Bell::new();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = 0;
            while next < PACKETS {
                guest.mask(true);
                while let Some(packet) = guest.receive() {
                    assert_eq!(packet.transaction_id, next);
                    assert_eq!(packet.payload[..payload(next).len()], payload(next));
                    next += 1;
                    to_host.ring(packet.signal);
                }
                guest.mask(false);
                if next < PACKETS && guest.is_empty() {
                    sleep(&guest_hears);
                }
            }
        });
        for id in 0..PACKETS {
            loop {
                match host.send(&payload(id), id).unwrap() {
                    Sent::Written { signal } => break to_guest.ring(signal),
                    Sent::Full => sleep(&host_hears),
                }
            }
        }
    });
}
