//! A channel without anything behind it.

use guest_model::vmbus::{GuestRings, Received};
use page_range::Gpfn;
use vmbus::GuestMemory;
use vmbus::ring::{ChannelRings, RingLayout, Sent};

/// Bytes of a status report.
pub const STATUS_REPORT: usize = 48;
/// Bytes of the longest balloon response that Linux sends.
pub const BALLOON_RESPONSE: usize = 4096;
/// Pages of data in each ring of Linux's balloon.
pub const LINUX_RING: u64 = 4;

/// Where the rings start.
const FIRST_PAGE: u64 = 0x100;

/// The guest's end of a channel with `data_pages` pages of data in each ring, and the layout of the
/// rings.
pub(crate) fn rings<M: GuestMemory + Clone>(
    mem: &M,
    data_pages: u64,
) -> (RingLayout, GuestRings<M>) {
    let split = usize::try_from(data_pages + 1).expect("short");
    let pages: Vec<_> = (FIRST_PAGE..FIRST_PAGE + 2 * (data_pages + 1))
        .map(|page| Gpfn::new(page).expect("low"))
        .collect();
    let guest = GuestRings::new(mem.clone(), &pages, split);
    (RingLayout::new(&pages, split).expect("two rings"), guest)
}

/// Both ends of an open channel.
#[derive(Debug)]
pub struct Ends<M> {
    /// The host's end.
    pub host: ChannelRings<M>,
    /// The guest's end.
    pub guest: GuestRings<M>,
    received: Received,
}

impl<M: GuestMemory + Clone> Ends<M> {
    /// A channel with `data_pages` pages of data in each ring.
    ///
    /// # Panics
    /// If the memory has no room for them.
    pub fn open(mem: &M, data_pages: u64) -> Self {
        let (layout, guest) = rings(mem, data_pages);
        let host = ChannelRings::open(mem.clone(), &layout).expect("in memory");
        Self { host, guest, received: Received::new() }
    }

    /// The guest sends `payload` until the ring is full; returns the number of packets.
    pub fn guest_fills(&mut self, payload: &[u8]) -> u64 {
        let mut sent = 0;
        while self.guest.send(payload, 0).is_ok() {
            sent += 1;
        }
        sent
    }

    /// The host takes all packets; returns their number.
    ///
    /// # Panics
    /// If the ring is broken.
    pub fn host_drains(&mut self) -> u64 {
        let mut received = 0;
        while let Some(packet) = self.host.receive().expect("the ring is sound") {
            std::hint::black_box(packet);
            received += 1;
        }
        std::hint::black_box(self.host.end_receive());
        received
    }

    /// The host sends `payload` until the ring is full; returns the number of packets.
    ///
    /// # Panics
    /// If the ring is broken.
    pub fn host_fills(&mut self, payload: &[u8]) -> u64 {
        let mut sent = 0;
        while let Sent::Written { .. } = self.host.send(payload, 0).expect("the ring is sound") {
            sent += 1;
        }
        sent
    }

    /// The guest takes all packets; returns their number.
    pub fn guest_drains(&mut self) -> u64 {
        let mut received = 0;
        while self.guest.receive_into(&mut self.received) {
            received += 1;
        }
        received
    }
}
