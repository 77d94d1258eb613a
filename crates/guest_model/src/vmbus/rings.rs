//! The guest's end of a channel's rings (Linux `drivers/hv/ring_buffer.c`).

use alloc::{vec, vec::Vec};
use core::sync::atomic::{Ordering::SeqCst, fence};

use page_range::{Gpa, Gpfn};
use vmbus::{
    GuestMemory,
    protocol::ring::{
        FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, INTERRUPT_MASK, PENDING_SEND_SIZE,
        PacketDescriptor, PacketKind, READ_INDEX, WRITE_INDEX,
    },
};
use zerocopy::FromBytes;

/// Both rings of a channel. The memory is the guest's own, so an access that fails is a bug of the
/// test and panics.
#[derive(Debug)]
pub struct GuestRings<M> {
    mem: M,
    to_host: Vec<Gpfn>,
    to_guest: Vec<Gpfn>,
}

/// A packet from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// What it carries.
    pub kind: PacketKind,
    /// The host's number for it.
    pub transaction_id: u64,
    /// The payload, with padding.
    pub payload: Vec<u8>,
    /// Whether the host waits for the room and must be signalled.
    pub signal: bool,
}

/// The ring has no room for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFull;

impl<M: GuestMemory> GuestRings<M> {
    /// Clears the control pages of the rings in `pages`, as a guest does before OPEN. The
    /// host-to-guest ring starts at `downstream_offset`.
    pub fn new(mem: M, pages: &[Gpfn], downstream_offset: usize) -> Self {
        let (to_host, to_guest) = pages.split_at(downstream_offset);
        let rings = Self { mem, to_host: to_host.to_vec(), to_guest: to_guest.to_vec() };
        for ring in [&rings.to_host, &rings.to_guest] {
            rings.mem.write(ring[0].gpa(), &[0; 4096]).unwrap();
            rings.store(ring, FEATURE_BITS, FEATURE_PENDING_SEND_SIZE);
        }
        rings
    }

    /// Writes a packet and returns whether the host must be signalled.
    ///
    /// # Errors
    /// [`RingFull`], also if it can never fit.
    pub fn send(&mut self, payload: &[u8], transaction_id: u64) -> Result<bool, RingFull> {
        let packet = packet(payload, transaction_id, self.load(&self.to_host, WRITE_INDEX));
        self.write(&packet)
    }

    /// Like [`send`](Self::send), but where there is no room asks the host to signal when there is;
    /// drivers other than Linux's balloon do so.
    ///
    /// # Errors
    /// [`RingFull`], also if it can never fit.
    pub fn send_or_wait(&mut self, payload: &[u8], transaction_id: u64) -> Result<bool, RingFull> {
        let packet = packet(payload, transaction_id, self.load(&self.to_host, WRITE_INDEX));
        let len = u32::try_from(packet.len()).map_err(|_| RingFull)?;
        let sent = self.write(&packet).or_else(|RingFull| {
            self.store(&self.to_host, PENDING_SEND_SIZE, len);
            fence(SeqCst);
            self.write(&packet)
        })?;
        self.store(&self.to_host, PENDING_SEND_SIZE, 0);
        Ok(sent)
    }

    /// Reads the next packet and gives its room back.
    pub fn receive(&mut self) -> Option<Received> {
        let (start, end) = self.indices(&self.to_guest);
        if start == end {
            return None;
        }
        let descriptor = PacketDescriptor::read_from_bytes(&self.bytes(start, 16)).ok()?;
        let offset = usize::from(descriptor.data_offset8.get()) * 8;
        let len = u32::from(descriptor.len8.get()) * 8;
        Some(Received {
            kind: PacketKind(descriptor.kind.get()),
            transaction_id: descriptor.transaction_id.get(),
            payload: self.bytes(start, len).split_off(offset),
            signal: self.free(start, (start + len + 8) % self.size(&self.to_guest)),
        })
    }

    /// Whether the host's packets are to come without signals. The guest that ends this looks at
    /// the ring once more.
    pub fn mask(&mut self, mask: bool) {
        self.store(&self.to_guest, INTERRUPT_MASK, mask.into());
        fence(SeqCst);
    }

    /// Whether the host has sent nothing more.
    pub fn is_empty(&self) -> bool {
        let (read, write) = self.indices(&self.to_guest);
        read == write
    }

    /// Moves the read index from `before` to `now`; returns whether that made the room that the
    /// host waits for.
    fn free(&self, before: u32, now: u32) -> bool {
        let size = self.size(&self.to_guest);
        self.store(&self.to_guest, READ_INDEX, now);
        fence(SeqCst);
        let pending = self.load(&self.to_guest, PENDING_SEND_SIZE);
        let asked = self.load(&self.to_guest, FEATURE_BITS) & FEATURE_PENDING_SEND_SIZE != 0;
        let write = self.load(&self.to_guest, WRITE_INDEX);
        let free = |read: u32| size - (write + size - read) % size;
        asked && pending != 0 && free(before) <= pending && free(now) > pending
    }

    fn write(&self, packet: &[u8]) -> Result<bool, RingFull> {
        let (read, write) = self.indices(&self.to_host);
        let size = self.size(&self.to_host);
        let free = size - (write + size - read) % size;
        let len = u32::try_from(packet.len()).map_err(|_| RingFull)?;
        if free <= len {
            return Err(RingFull);
        }
        for (word, at) in packet.chunks(8).zip((write..).step_by(8)) {
            self.mem.write(self.position(&self.to_host, at), word).unwrap();
        }
        self.store(&self.to_host, WRITE_INDEX, (write + len) % size);
        fence(SeqCst);
        let masked = self.load(&self.to_host, INTERRUPT_MASK) != 0;
        Ok(!masked && self.load(&self.to_host, READ_INDEX) == write)
    }

    fn bytes(&self, start: u32, len: u32) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        for (word, at) in bytes.chunks_mut(8).zip((start..).step_by(8)) {
            self.mem.read(self.position(&self.to_guest, at), word).unwrap();
        }
        bytes
    }

    /// Address of the data at `at`, which may be up to a ring's size beyond the ring's end.
    fn position(&self, ring: &[Gpfn], at: u32) -> Gpa {
        let at = at % self.size(ring);
        let page = ring[1 + (at >> 12) as usize];
        page.gpa().checked_add(u64::from(at & 0xfff)).unwrap()
    }

    /// Read and write index.
    fn indices(&self, ring: &[Gpfn]) -> (u32, u32) {
        let write = self.load(ring, WRITE_INDEX);
        (self.load(ring, READ_INDEX), write)
    }

    fn size(&self, ring: &[Gpfn]) -> u32 {
        u32::try_from((ring.len() - 1) << 12).unwrap_or(0)
    }

    fn load(&self, ring: &[Gpfn], word: u64) -> u32 {
        self.mem.load_u32(ring[0].gpa().checked_add(word).unwrap(), SeqCst).unwrap()
    }

    fn store(&self, ring: &[Gpfn], word: u64, value: u32) {
        self.mem.store_u32(ring[0].gpa().checked_add(word).unwrap(), value, SeqCst).unwrap();
    }
}

/// A packet with data in it that starts at `start`, with its footer.
fn packet(payload: &[u8], transaction_id: u64, start: u32) -> Vec<u8> {
    let padded = payload.len().next_multiple_of(8);
    let len8 = u16::try_from(2 + padded / 8).unwrap_or(u16::MAX);
    let mut packet = Vec::with_capacity(padded + 24);
    for half in [PacketKind::DATA_IN_BAND.0, 2, len8, 0] {
        packet.extend(half.to_le_bytes());
    }
    packet.extend(transaction_id.to_le_bytes());
    packet.extend(payload);
    packet.resize(16 + padded, 0);
    packet.extend((u64::from(start) << 32).to_le_bytes());
    packet
}
