//! The guest's end of a channel's rings (Linux `drivers/hv/ring_buffer.c`).

use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Release};

use page_range::{Gpa, Gpfn, PageCount};
use vmbus::{
    GuestMemory,
    protocol::ring::{
        FEATURE_BITS, FEATURE_PENDING_SEND_SIZE, INTERRUPT_MASK, PENDING_SEND_SIZE,
        PacketDescriptor, PacketKind, READ_INDEX, WRITE_INDEX,
    },
};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of a descriptor.
const DESCRIPTOR: u32 = 16;
/// Bytes of a footer.
const FOOTER: u32 = 8;

/// Both rings of a channel. The memory is the guest's own, so a failed access is a bug in the test
/// and panics.
#[derive(Debug)]
pub struct GuestRings<M> {
    mem: M,
    to_host: Ring,
    to_guest: Ring,
}

/// A packet from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The packet type.
    pub kind: PacketKind,
    /// The host's transaction ID.
    pub transaction_id: u64,
    /// The payload, with padding.
    pub payload: Vec<u8>,
    /// Whether the host was waiting for this room and must be signalled.
    pub signal: bool,
}

impl Received {
    /// An empty packet to pass to [`GuestRings::receive_into`].
    #[must_use]
    pub const fn new() -> Self {
        Self { kind: PacketKind(0), transaction_id: 0, payload: Vec::new(), signal: false }
    }
}

impl Default for Received {
    fn default() -> Self {
        Self::new()
    }
}

/// The ring has no room for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFull;

impl<M: GuestMemory> GuestRings<M> {
    /// Clears the control pages of the rings in `pages`, as a guest does before OPEN. The
    /// host-to-guest ring starts at `downstream_offset`.
    pub fn new(mem: M, pages: &[Gpfn], downstream_offset: usize) -> Self {
        let (to_host, to_guest) = pages.split_at(downstream_offset);
        let (to_host, to_guest) = (Ring::new(to_host), Ring::new(to_guest));
        for ring in [&to_host, &to_guest] {
            mem.write(ring.control, &[0; 4096]).unwrap();
            ring.store(&mem, FEATURE_BITS, FEATURE_PENDING_SEND_SIZE);
        }
        Self { mem, to_host, to_guest }
    }

    /// Writes a packet and returns whether the host must be signalled.
    ///
    /// # Errors
    /// [`RingFull`], also if the packet can never fit.
    pub fn send(&mut self, payload: &[u8], transaction_id: u64) -> Result<bool, RingFull> {
        self.write_packet(PacketKind::DATA_IN_BAND, payload, transaction_id, 0)
    }

    /// Like [`send`](Self::send), but also asks the host for a completion.
    ///
    /// # Errors
    /// [`RingFull`], also if the packet can never fit.
    pub fn send_for_completion(&mut self, payload: &[u8], id: u64) -> Result<bool, RingFull> {
        self.send_of_kind(PacketKind::DATA_IN_BAND, payload, id)
    }

    /// Writes a packet of any kind that asks the host for a completion.
    ///
    /// # Errors
    /// [`RingFull`], also if the packet can never fit.
    pub fn send_of_kind(
        &mut self,
        kind: PacketKind,
        payload: &[u8],
        id: u64,
    ) -> Result<bool, RingFull> {
        self.write_packet(kind, payload, id, PacketDescriptor::COMPLETION_REQUESTED)
    }

    /// Writes a packet of any kind with any flags.
    ///
    /// # Errors
    /// [`RingFull`], also if the packet can never fit.
    pub fn write_packet(
        &mut self,
        kind: PacketKind,
        payload: &[u8],
        transaction_id: u64,
        flags: u16,
    ) -> Result<bool, RingFull> {
        let (mem, ring) = (&self.mem, &self.to_host);
        let (read, start) = ring.indices(mem);
        let padded = payload.len().next_multiple_of(8);
        let len = u32::try_from(padded).map_err(|_| RingFull)?;
        let len8 = u16::try_from((DESCRIPTOR + len) / 8).map_err(|_| RingFull)?;
        if ring.free(read, start) <= DESCRIPTOR + len + FOOTER {
            return Err(RingFull);
        }
        let descriptor = PacketDescriptor {
            kind: kind.0.into(),
            data_offset8: 2.into(),
            len8: len8.into(),
            flags: flags.into(),
            transaction_id: transaction_id.into(),
        };
        ring.write(mem, start, descriptor.as_bytes());
        ring.write(mem, ring.add(start, DESCRIPTOR), payload);
        let mut tail = [0; 16];
        tail[8..].copy_from_slice(&(u64::from(start) << 32).to_le_bytes());
        let padding = padded - payload.len();
        let padding_at = ring.add(start, DESCRIPTOR + len - u32::try_from(padding).unwrap_or(0));
        ring.write(mem, padding_at, &tail[8 - padding..]);
        ring.store(mem, WRITE_INDEX, ring.add(start, DESCRIPTOR + len + FOOTER));
        mem.fence();
        let masked = ring.load(mem, INTERRUPT_MASK) != 0;
        Ok(!masked && ring.load(mem, READ_INDEX) == start)
    }

    /// Like [`send`](Self::send), but if there is no room, asks the host to signal once there is,
    /// as drivers other than Linux's balloon driver do.
    ///
    /// # Errors
    /// [`RingFull`], also if the packet can never fit.
    pub fn send_or_wait(&mut self, payload: &[u8], transaction_id: u64) -> Result<bool, RingFull> {
        let len = Self::packet_len(payload.len());
        let sent = self.send(payload, transaction_id).or_else(|RingFull| {
            self.to_host.store(&self.mem, PENDING_SEND_SIZE, len);
            self.mem.fence();
            self.send(payload, transaction_id)
        })?;
        self.to_host.store(&self.mem, PENDING_SEND_SIZE, 0);
        Ok(sent)
    }

    /// Reads the next packet and frees its room in the ring.
    pub fn receive(&mut self) -> Option<Received> {
        let mut received = Received::new();
        self.receive_into(&mut received).then_some(received)
    }

    /// Like [`receive`](Self::receive), but reads the packet into `received` to reuse its
    /// allocation; returns false if there is none.
    ///
    /// # Panics
    /// If the host corrupted the ring.
    pub fn receive_into(&mut self, received: &mut Received) -> bool {
        let (mem, ring) = (&self.mem, &self.to_guest);
        let (start, end) = ring.indices(mem);
        if start == end {
            return false;
        }
        let mut descriptor = PacketDescriptor::new_zeroed();
        ring.read(mem, start, descriptor.as_mut_bytes());
        let offset = u32::from(descriptor.data_offset8.get()) * 8;
        let len = u32::from(descriptor.len8.get()) * 8;
        received.kind = PacketKind(descriptor.kind.get());
        received.transaction_id = descriptor.transaction_id.get();
        received.payload.resize((len - offset) as usize, 0);
        ring.read(mem, ring.add(start, offset), &mut received.payload);
        received.signal = self.free(start, ring.add(start, len + FOOTER));
        true
    }

    /// Sets or clears the interrupt mask: while it is set, the host need not signal its packets.
    /// After clearing it, a guest must check the ring once more.
    pub fn mask(&mut self, mask: bool) {
        self.to_guest.store(&self.mem, INTERRUPT_MASK, mask.into());
        self.mem.fence();
    }

    /// The position nearest to `position` such that the host has room for `bytes` more bytes if the
    /// guest has read up to there.
    pub fn room_from(&self, position: u32, bytes: u32) -> u32 {
        let write = self.to_guest.load(&self.mem, WRITE_INDEX);
        // The last 8 bytes of a ring are never used.
        let needed = (bytes + 8).min(self.to_guest.size);
        if self.to_guest.free(position, write) >= needed {
            position
        } else {
            self.to_guest.add(write, needed)
        }
    }

    /// The position up to which the guest has read.
    pub fn read_index(&self) -> u32 {
        self.to_guest.load(&self.mem, READ_INDEX)
    }

    /// Shows the host that the guest has read up to this position, and reads on from there.
    pub fn read_from(&mut self, position: u32) {
        self.to_guest.store(&self.mem, READ_INDEX, position);
    }

    /// The bytes that a packet with a payload of `len` bytes takes in a ring.
    #[must_use]
    pub fn packet_len(len: usize) -> u32 {
        u32::try_from(len.next_multiple_of(8))
            .unwrap_or(u32::MAX)
            .saturating_add(DESCRIPTOR + FOOTER)
    }

    /// Whether the ring holds no more packets from the host.
    pub fn is_empty(&self) -> bool {
        let (read, write) = self.to_guest.indices(&self.mem);
        read == write
    }

    /// Moves the read index from `before` to `now`; returns whether that frees the room that the
    /// host is waiting for.
    fn free(&self, before: u32, now: u32) -> bool {
        let (mem, ring) = (&self.mem, &self.to_guest);
        ring.store(mem, READ_INDEX, now);
        mem.fence();
        let pending = ring.load(mem, PENDING_SEND_SIZE);
        if pending == 0 || ring.load(mem, FEATURE_BITS) & FEATURE_PENDING_SEND_SIZE == 0 {
            return false;
        }
        let write = ring.load(mem, WRITE_INDEX);
        ring.free(before, write) <= pending && ring.free(now, write) > pending
    }
}

/// One ring.
#[derive(Debug)]
struct Ring {
    control: Gpa,
    data: Vec<Gpfn>,
    size: u32,
    /// The data pages are contiguous and in order.
    is_one_piece: bool,
}

impl Ring {
    fn new(pages: &[Gpfn]) -> Self {
        let size = u32::try_from((pages.len() - 1) << 12).expect("rings are shorter than 4 GiB");
        let data = pages[1..].to_vec();
        let is_one_piece = data.is_sorted_by(|page, next| page.get() + 1 == next.get());
        Self { control: pages[0].gpa(), data, size, is_one_piece }
    }

    /// The number of free bytes.
    const fn free(&self, read: u32, write: u32) -> u32 {
        if write < read { read - write } else { self.size - (write - read) }
    }

    /// The position `by` bytes on; `by` is at most the size.
    const fn add(&self, position: u32, by: u32) -> u32 {
        let sum = position + by;
        if sum < self.size { sum } else { sum - self.size }
    }

    /// The read and write indices.
    fn indices<M: GuestMemory>(&self, mem: &M) -> (u32, u32) {
        let write = self.load(mem, WRITE_INDEX);
        (self.load(mem, READ_INDEX), write)
    }

    fn load<M: GuestMemory>(&self, mem: &M, word: u64) -> u32 {
        mem.load_u32(self.control.checked_add(word).unwrap(), Acquire).unwrap()
    }

    fn store<M: GuestMemory>(&self, mem: &M, word: u64, value: u32) {
        mem.store_u32(self.control.checked_add(word).unwrap(), value, Release).unwrap();
    }

    fn read<M: GuestMemory>(&self, mem: &M, position: u32, buf: &mut [u8]) {
        for (gpa, part) in self.pieces(position, buf.len()) {
            mem.read(gpa, &mut buf[part]).unwrap();
        }
    }

    fn write<M: GuestMemory>(&self, mem: &M, position: u32, buf: &[u8]) {
        for (gpa, part) in self.pieces(position, buf.len()) {
            mem.write(gpa, &buf[part]).unwrap();
        }
    }

    /// Where in memory the `len` bytes from `position` lie, piece by piece.
    fn pieces(&self, position: u32, len: usize) -> impl Iterator<Item = (Gpa, Range<usize>)> + '_ {
        let mut done = 0;
        core::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = self.add(position, u32::try_from(done).unwrap_or(0)) as usize;
            let page = self.data[at >> 12];
            let all = self.is_one_piece.then_some(self.size as usize);
            let mut end = all.unwrap_or((at | 0xfff) + 1);
            // Access contiguous pages as one piece.
            while end - at < len - done
                && let Some(next) = self.data.get(end >> 12)
                && page.checked_add(PageCount::new((end >> 12) as u64 - (at >> 12) as u64))
                    == Some(*next)
            {
                end += 0x1000;
            }
            let part = done..len.min(done + end - at);
            done = part.end;
            let gpa = page.gpa().checked_add((at & 0xfff) as u64).unwrap();
            Some((gpa, part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_where_the_next_page_is_no_neighbour() {
        let pages: Vec<_> = [1, 7, 8, 3].into_iter().map(|n| Gpfn::new(n).unwrap()).collect();
        let ring = Ring::new(&pages);
        let pieces: Vec<_> =
            ring.pieces(4000, 10_000).map(|(gpa, part)| (gpa.get(), part)).collect();
        let expected =
            [((7 << 12) + 4000, 0..4192), (3 << 12, 4192..8288), (7 << 12, 8288..10_000)];
        assert_eq!(pieces, expected);
        assert_eq!(ring.pieces(8, 0).count(), 0);
    }
}
