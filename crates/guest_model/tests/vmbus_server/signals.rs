//! Both ends of the rings on threads of their own that sleep until they are signalled: a signal
//! that should have been sent and was not leaves one asleep for ever.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use guest_model::vmbus::{GuestRings, SharedMemory};
use vmbus::ring::{ChannelRings, RingLayout, Sent};

use crate::pair::pages;

const PACKETS: u64 = 40_000;

/// Signals do not add up: whoever is signalled looks at everything.
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
    let mem = Arc::new(SharedMemory::new(32));
    let pages = pages(3, 5);
    let guest = GuestRings::new(mem.clone(), &pages, 3);
    (ChannelRings::open(mem, &RingLayout::new(&pages, 3).unwrap()).unwrap(), guest)
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
