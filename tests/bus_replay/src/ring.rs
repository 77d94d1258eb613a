//! The rings of a replayed guest.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use bus_recording::Packet;
use guest_model::vmbus::{GuestRings, SharedMemory};
use page_range::{Gpa, Gpfn};
use vmbus::protocol::ring::{PacketKind, WRITE_INDEX};
use vmbus::ring::RingLayout;
use vmbus::{AccessError, GuestMemory, OpenChannel};

pub(crate) type Memory = Arc<RingMemory>;

/// A guest's end of the rings of an open channel.
pub(crate) struct Rings(Memory);

impl Rings {
    /// Rings as long as those of the recorded channel, and the channel with these rings.
    ///
    /// A guest that is lazy reads only what it must for the packets to come ([`Rings::make_room`]), so
    /// that the ring is full whenever the real guest's was: the real guest had read at least as much.
    pub(crate) fn new(channel: &OpenChannel, is_lazy: bool) -> (Self, OpenChannel) {
        let (split, rest) = (channel.rings.incoming().len(), channel.rings.outgoing().len());
        let shared = Arc::new(SharedMemory::new(split + rest));
        let pages: Vec<_> = (0..).map_while(Gpfn::new).take(split + rest).collect();
        let layout = RingLayout::new(&pages, split).expect("as long as rings that were accepted");
        let rings = GuestRings::new(Arc::clone(&shared), &pages, split);
        let write_index = pages[split].gpa().checked_add(WRITE_INDEX).expect("a low address");
        let reader = Reader {
            rings,
            read: 0,
            shown: 0,
            is_lazy,
            to_come: VecDeque::new(),
            packets: VecDeque::new(),
        };
        let memory = RingMemory { shared, write_index, reader: Mutex::new(reader) };
        (Self(Arc::new(memory)), OpenChannel { rings: layout, ..channel.clone() })
    }

    /// The memory that the rings are in.
    pub(crate) fn memory(&self) -> Memory {
        Arc::clone(&self.0)
    }

    /// Writes a packet of the guest.
    pub(crate) fn write(&self, packet: &Packet) -> Result<(), String> {
        let Packet { kind, flags, transaction, bytes } = packet;
        self.0
            .reader(|reader| {
                reader.rings.write_packet(PacketKind(*kind), bytes, *transaction, *flags)
            })
            .map(drop)
            .map_err(|_| "the guest's ring has no room".to_owned())
    }

    /// Has a lazy guest make room for packets with payloads of these lengths.
    pub(crate) fn make_room(&self, payloads: impl Iterator<Item = usize>) {
        self.0.reader(|reader| {
            reader.read_all();
            // Some of them may have been written already.
            let to_come = payloads.skip(reader.packets.len());
            reader.to_come = to_come.map(GuestRings::<Arc<SharedMemory>>::packet_len).collect();
            reader.show();
        });
    }

    /// The next packet of the device.
    pub(crate) fn read(&self) -> Option<Packet> {
        self.0.reader(|reader| {
            reader.read_all();
            reader.show();
            reader.packets.pop_front()
        })
    }
}

/// The memory of the rings, in which the guest reads while the device writes.
#[derive(Debug)]
pub(crate) struct RingMemory {
    shared: Arc<SharedMemory>,
    /// Of the ring to the guest.
    write_index: Gpa,
    reader: Mutex<Reader>,
}

#[derive(Debug)]
struct Reader {
    rings: GuestRings<Arc<SharedMemory>>,
    /// Up to where the packets have been taken, whatever the host was shown.
    read: u32,
    /// Up to where the host was shown that the guest has read.
    shown: u32,
    /// The guest shows that it has read only as much as the next packet needs.
    is_lazy: bool,
    /// Lengths of the packets for which a lazy guest makes room.
    to_come: VecDeque<u32>,
    /// The packets that have been taken.
    packets: VecDeque<Packet>,
}

impl Reader {
    /// Takes all packets. [`Reader::show`] must follow.
    fn read_all(&mut self) {
        self.rings.read_from(self.read);
        while let Some(received) = self.rings.receive() {
            self.packets.push_back(Packet {
                kind: received.kind.0,
                flags: 0,
                transaction: received.transaction_id,
                bytes: received.payload,
            });
        }
        self.read = self.rings.read_index();
    }

    fn show(&mut self) {
        if !self.is_lazy {
            self.shown = self.read;
        } else if let Some(next) = self.to_come.front() {
            self.shown = self.rings.room_from(self.shown, *next);
        }
        self.rings.read_from(self.shown);
    }
}

impl RingMemory {
    fn reader<T>(&self, act: impl FnOnce(&mut Reader) -> T) -> T {
        act(&mut self.reader.lock().expect("no reader panics"))
    }
}

impl GuestMemory for RingMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        self.shared.read(gpa, buf)
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        self.shared.write(gpa, buf)
    }

    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        self.shared.load_u32(gpa, order)
    }

    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        if gpa != self.write_index {
            return self.shared.store_u32(gpa, value, order);
        }
        self.reader(|reader| {
            if !reader.is_lazy {
                // All but the packet that is now published, so that it finds an empty ring.
                reader.read_all();
                reader.show();
            }
            self.shared.store_u32(gpa, value, order)?;
            if reader.is_lazy {
                reader.read_all();
                reader.to_come.pop_front();
                reader.show();
            }
            Ok(())
        })
    }
}
