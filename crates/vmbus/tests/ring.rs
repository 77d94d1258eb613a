//! The rings against the simplest correct model, and against a guest that keeps no rule.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    sync::atomic::{AtomicU32, Ordering},
};

use page_range::{Gpa, Gpfn};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{select, subsequence},
};
use vmbus::{
    AccessError, GuestMemory,
    protocol::ring::PacketKind,
    ring::{ChannelRings, Packet, RingError, RingLayout, Sent},
};

const PAGES: usize = 16;
const WRITE_INDEX: u64 = 0;
const READ_INDEX: u64 = 4;
const MASK: u64 = 8;
const PENDING: u64 = 12;
const FEATURES: u64 = 64;

/// Guest memory from address 0 up, as bytes; counts the accesses.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    accesses: Cell<usize>,
    /// Without control words.
    bytes_read: Cell<usize>,
}

impl Memory {
    fn new() -> Self {
        Self::with_pages(PAGES)
    }

    fn with_pages(pages: usize) -> Self {
        let bytes = RefCell::new(vec![0; pages << 12]);
        Self { bytes, accesses: Cell::new(0), bytes_read: Cell::new(0) }
    }

    fn range(&self, gpa: Gpa, len: usize) -> Result<std::ops::Range<usize>, AccessError> {
        self.accesses.update(|accesses| accesses + 1);
        let start = usize::try_from(gpa.get()).unwrap();
        if start + len > self.bytes.borrow().len() {
            Err(AccessError { gpa, len })
        } else {
            Ok(start..start + len)
        }
    }
}

impl GuestMemory for Memory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let range = self.range(gpa, buf.len())?;
        self.bytes_read.update(|bytes| bytes + range.len());
        buf.copy_from_slice(&self.bytes.borrow()[range]);
        Ok(())
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        let range = self.range(gpa, buf.len())?;
        self.bytes.borrow_mut()[range].copy_from_slice(buf);
        Ok(())
    }

    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        AtomicU32::new(0).load(order);
        let range = self.range(gpa, 4)?;
        Ok(u32::from_le_bytes(self.bytes.borrow()[range].try_into().unwrap()))
    }

    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        AtomicU32::new(0).store(value, order);
        self.write(gpa, &value.to_le_bytes())
    }
}

/// One ring from the guest's side, byte by byte.
struct GuestRing<'m> {
    mem: &'m Memory,
    pages: Vec<Gpfn>,
}

impl GuestRing<'_> {
    fn size(&self) -> u32 {
        u32::try_from((self.pages.len() - 1) << 12).unwrap()
    }

    fn get(&self, word: u64) -> u32 {
        self.mem
            .load_u32(self.pages[0].gpa().checked_add(word).unwrap(), Ordering::Relaxed)
            .unwrap()
    }

    fn set(&self, word: u64, value: u32) {
        let gpa = self.pages[0].gpa().checked_add(word).unwrap();
        self.mem.store_u32(gpa, value, Ordering::Relaxed).unwrap();
    }

    fn byte(&self, position: u32) -> Gpa {
        let position = position % self.size();
        let page = self.pages[1 + (position >> 12) as usize];
        page.gpa().checked_add(u64::from(position & 0xfff)).unwrap()
    }

    fn put(&self, bytes: &[u8]) {
        let mut position = self.get(WRITE_INDEX);
        for byte in bytes {
            self.mem.write(self.byte(position), &[*byte]).unwrap();
            position = (position + 1) % self.size();
        }
        self.set(WRITE_INDEX, position);
    }

    fn take(&self, len: u32) -> Vec<u8> {
        let start = self.get(READ_INDEX);
        let mut bytes = vec![0; len as usize];
        for (byte, position) in bytes.iter_mut().zip(start..) {
            self.mem.read(self.byte(position), std::slice::from_mut(byte)).unwrap();
        }
        self.set(READ_INDEX, (start + len) % self.size());
        bytes
    }

    fn used(&self) -> u32 {
        (self.get(WRITE_INDEX) + self.size() - self.get(READ_INDEX)) % self.size()
    }
}

fn padded(payload: &[u8]) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    bytes.resize(payload.len().next_multiple_of(8), 0);
    bytes
}

fn packet(payload: &[u8], transaction: u64, start: u32, flags: u16) -> Vec<u8> {
    let body = padded(payload);
    let len8 = u16::try_from(2 + body.len() / 8).unwrap();
    let mut bytes = Vec::new();
    for half in [6, 2, len8, flags] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(transaction.to_le_bytes());
    bytes.extend(body);
    bytes.extend((u64::from(start) << 32).to_le_bytes());
    bytes
}

#[derive(Clone, Debug)]
enum Op {
    HostSends(Vec<u8>),
    HostReceives(usize),
    GuestSends(Vec<u8>, bool),
    GuestReceives,
    GuestMasks(bool),
}

/// Some lengths again and again, so that packets often fit, or make room, to the byte.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let len = prop_oneof![0_usize..64, 0_usize..4200, select(vec![1000, 1024, 2024, 4064])];
    len.prop_flat_map(|len| vec(any::<u8>(), len))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        payload().prop_map(Op::HostSends),
        (1_usize..6).prop_map(Op::HostReceives),
        (payload(), any::<bool>()).prop_map(|(payload, flag)| Op::GuestSends(payload, flag)),
        Just(Op::GuestReceives),
        any::<bool>().prop_map(Op::GuestMasks),
    ]
}

/// Distinct pages in any order, and where they split.
fn geometry() -> impl Strategy<Value = (Vec<Gpfn>, usize)> {
    let pages: Vec<_> = (0..PAGES as u64).map(|n| Gpfn::new(n).unwrap()).collect();
    subsequence(pages, 4..12).prop_shuffle().prop_flat_map(split)
}

/// Any pages, also one page several times and pages that are not there, and where they split.
fn hostile_geometry() -> impl Strategy<Value = (Vec<Gpfn>, usize)> {
    let page = (0..PAGES as u64 + 1).prop_map(|n| Gpfn::new(n).unwrap());
    vec(page, 4..12).prop_flat_map(split)
}

fn split(pages: Vec<Gpfn>) -> impl Strategy<Value = (Vec<Gpfn>, usize)> {
    (2..=pages.len() - 2).prop_map(move |at| (pages.clone(), at))
}

/// Both directions as plain queues.
struct Model<'m> {
    rings: ChannelRings<&'m Memory>,
    incoming: GuestRing<'m>,
    outgoing: GuestRing<'m>,
    to_host: VecDeque<(Vec<u8>, u64, bool)>,
    /// How many of these have left the ring.
    copied: usize,
    to_guest: VecDeque<Vec<u8>>,
    transaction: u64,
}

impl<'m> Model<'m> {
    fn new(mem: &'m Memory, pages: &[Gpfn], at: usize, start: u32) -> Self {
        let layout = RingLayout::new(pages, at).unwrap();
        let incoming = GuestRing { mem, pages: layout.incoming().to_vec() };
        let outgoing = GuestRing { mem, pages: layout.outgoing().to_vec() };
        for ring in [&incoming, &outgoing] {
            let start = (start % ring.size()) & !7;
            ring.set(WRITE_INDEX, start);
            ring.set(READ_INDEX, start);
        }
        incoming.set(FEATURES, 1);
        let rings = ChannelRings::open(mem, &layout).unwrap();
        assert_eq!((outgoing.get(FEATURES), outgoing.get(PENDING)), (1, 0));
        let (to_host, to_guest) = Default::default();
        Self { rings, incoming, outgoing, to_host, copied: 0, to_guest, transaction: 0 }
    }

    fn step(&mut self, op: Op) {
        self.transaction += 1;
        match op {
            Op::HostSends(payload) => self.host_sends(&payload),
            Op::HostReceives(count) => self.host_receives(count),
            Op::GuestSends(payload, completion) => self.guest_sends(payload, completion),
            Op::GuestReceives => self.guest_receives(),
            Op::GuestMasks(mask) => self.outgoing.set(MASK, mask.into()),
        }
    }

    fn host_sends(&mut self, payload: &[u8]) {
        let start = self.outgoing.get(WRITE_INDEX);
        let bytes = packet(payload, self.transaction, start, 0);
        let total = u32::try_from(bytes.len()).unwrap();
        let free = self.outgoing.size() - self.outgoing.used();
        let expected = if total >= self.outgoing.size() {
            Err(RingError::TooLong { payload: payload.len(), ring: self.outgoing.size() })
        } else if free > total {
            let signal = self.to_guest.is_empty() && self.outgoing.get(MASK) == 0;
            self.to_guest.push_back(bytes);
            Ok(Sent::Written { signal })
        } else {
            Ok(Sent::Full)
        };
        assert_eq!(self.rings.send(payload, self.transaction), expected);
        if expected == Ok(Sent::Full) {
            assert_eq!(self.outgoing.get(PENDING), total);
        } else if expected.is_ok() {
            assert_eq!(self.outgoing.get(PENDING), 0);
        }
    }

    fn guest_receives(&mut self) {
        let Some(expected) = self.to_guest.pop_front() else {
            return assert_eq!(self.outgoing.used(), 0);
        };
        assert_eq!(self.outgoing.take(u32::try_from(expected.len()).unwrap()), expected);
    }

    fn guest_sends(&mut self, payload: Vec<u8>, completion: bool) {
        let start = self.incoming.get(WRITE_INDEX);
        let bytes = packet(&payload, self.transaction, start, completion.into());
        let total = u32::try_from(bytes.len()).unwrap();
        if self.incoming.size() - self.incoming.used() > total {
            self.incoming.put(&bytes);
            self.incoming.set(PENDING, 0);
            self.to_host.push_back((padded(&payload), self.transaction, completion));
        } else {
            self.incoming.set(PENDING, total);
        }
    }

    fn host_receives(&mut self, count: usize) {
        let pending = self.incoming.get(PENDING);
        let free = self.incoming.size() - self.incoming.used();
        let mut expected_signal = false;
        for _ in 0..count {
            let packet = self.rings.receive().unwrap();
            let Some((payload, transaction, completion)) = self.to_host.pop_front() else {
                assert_eq!((packet, self.incoming.get(MASK)), (None, 0));
                break;
            };
            if self.copied == 0 {
                self.copied = self.to_host.len() + 1;
                let all = self.incoming.size();
                expected_signal = pending != 0 && free <= pending && pending < all;
                assert_eq!((self.incoming.used(), self.incoming.get(MASK)), (0, 1));
            }
            self.copied -= 1;
            let kind = PacketKind::DATA_IN_BAND;
            let (transaction_id, completion_requested) = (transaction, completion);
            let payload = &payload[..];
            let expected = Packet { kind, transaction_id, completion_requested, payload };
            assert_eq!(packet, Some(expected));
        }
        let in_ring = self.to_host.iter().skip(self.copied).map(|(payload, ..)| payload.len() + 24);
        assert_eq!(self.incoming.used() as usize, in_ring.sum::<usize>());
        assert_eq!(self.rings.end_receive(), expected_signal);
    }
}

proptest! {
    #[test]
    fn rings_carry_packets_and_signal_like_the_model(
        (pages, at) in geometry(),
        start in any::<u32>(),
        ops in vec(op(), 1..80),
    ) {
        let mem = Memory::new();
        let mut model = Model::new(&mem, &pages, at, start);
        for op in ops {
            model.step(op);
        }
    }
}

#[derive(Clone, Debug)]
enum Attack {
    Word { ring: bool, word: u64, value: u32 },
    Bytes { at: u64, bytes: Vec<u8> },
    Receive,
    Send(usize),
}

fn attack() -> impl Strategy<Value = Attack> {
    let word = prop_oneof![0_u64..4, Just(16)].prop_map(|n| n * 4);
    let index = (0_u32..0x1000).prop_map(|n| n * 8);
    let value = prop_oneof![any::<u32>(), index];
    let small = vec(prop_oneof![Just(0_u8), 0_u8..8, any::<u8>()], 1..64);
    prop_oneof![
        (any::<bool>(), word, value).prop_map(|(ring, word, value)| Attack::Word {
            ring,
            word,
            value
        }),
        (0..(PAGES as u64) << 12, small).prop_map(|(at, bytes)| Attack::Bytes { at, bytes }),
        Just(Attack::Receive),
        (0_usize..20_000).prop_map(Attack::Send),
    ]
}

proptest! {
    #[test]
    fn no_guest_can_make_the_rings_panic_or_go_on_for_ever(
        (pages, at) in hostile_geometry(),
        attacks in vec(attack(), 1..200),
    ) {
        let mem = Memory::new();
        let layout = RingLayout::new(&pages, at).unwrap();
        let mut rings = ChannelRings::open(&mem, &layout);
        for attack in attacks {
            match attack {
                Attack::Word { ring, word, value } => {
                    let pages = if ring { layout.incoming() } else { layout.outgoing() };
                    let _ = mem.store_u32(Gpa::new(pages[0].gpa().get() + word), value, Ordering::Relaxed);
                }
                Attack::Bytes { at, bytes } => {
                    for (gpa, byte) in (at..(PAGES as u64) << 12).zip(bytes) {
                        mem.write(Gpa::new(gpa), &[byte]).unwrap();
                    }
                }
                Attack::Receive => {
                    let most = layout.incoming().len() * 4096 / 24 + 1;
                    let Ok(rings) = &mut rings else { continue };
                    let packets = (0..=most).take_while(|_| matches!(rings.receive(), Ok(Some(_))));
                    prop_assert!(packets.count() <= most);
                    let _ = rings.end_receive();
                }
                Attack::Send(len) => {
                    let Ok(rings) = &mut rings else { continue };
                    let _ = rings.send(&vec![0; len], 0);
                }
            }
        }
    }
}

fn five_and_five() -> (Vec<Gpfn>, RingLayout) {
    let pages: Vec<_> = (0..10).map(|n| Gpfn::new(n).unwrap()).collect();
    let layout = RingLayout::new(&pages, 5).unwrap();
    (pages, layout)
}

#[test]
fn impossible_indices_are_refused_at_open() {
    let (pages, layout) = five_and_five();
    for page in [pages[0], pages[5]] {
        for word in [WRITE_INDEX, READ_INDEX] {
            for value in [4, 16384, u32::MAX] {
                let mem = Memory::new();
                let gpa = page.gpa().checked_add(word).unwrap();
                mem.store_u32(gpa, value, Ordering::Relaxed).unwrap();
                assert!(ChannelRings::open(&mem, &layout).is_err());
            }
        }
    }
}

#[test]
fn rings_outside_memory_are_refused_at_open() {
    let pages: Vec<_> = (100..110).map(|n| Gpfn::new(n).unwrap()).collect();
    let layout = RingLayout::new(&pages, 5).unwrap();
    let mem = Memory::new();
    assert!(matches!(ChannelRings::open(&mem, &layout), Err(RingError::Access(_))));
}

#[test]
fn a_read_index_ahead_of_the_host_is_refused() {
    let (pages, layout) = five_and_five();
    let mem = Memory::new();
    let mut rings = ChannelRings::open(&mem, &layout).unwrap();
    rings.send(&[0; 8], 0).unwrap();
    mem.store_u32(pages[5].gpa().checked_add(READ_INDEX).unwrap(), 40, Ordering::Relaxed).unwrap();
    assert_eq!(rings.send(&[0; 8], 0), Err(RingError::ReadIndex(40)));
}

#[test]
fn own_indices_are_never_read_back() {
    let (pages, layout) = five_and_five();
    let mem = Memory::new();
    let mut rings = ChannelRings::open(&mem, &layout).unwrap();
    rings.send(&[0; 8], 0).unwrap();
    mem.store_u32(pages[5].gpa(), 0x1000, Ordering::Relaxed).unwrap();
    assert_eq!(rings.send(&[0; 8], 0), Ok(Sent::Written { signal: false }));
    assert_eq!(mem.load_u32(pages[5].gpa(), Ordering::Relaxed), Ok(64));
}

#[test]
fn a_packet_without_length_stops_the_channel() {
    let (_, layout) = five_and_five();
    let mem = Memory::new();
    let mut rings = ChannelRings::open(&mem, &layout).unwrap();
    mem.store_u32(Gpa::new(WRITE_INDEX), 64, Ordering::Relaxed).unwrap();
    assert_eq!(rings.receive(), Err(RingError::PacketLength { len: 0, used: 64 }));
}

#[test]
fn a_completion_repeats_the_transaction() {
    let (_, layout) = five_and_five();
    let mem = Memory::new();
    let mut rings = ChannelRings::open(&mem, &layout).unwrap();
    assert_eq!(rings.complete(7), Ok(Sent::Written { signal: true }));
    let mut bytes = [0; 24];
    mem.read(Gpa::new(6 << 12), &mut bytes).unwrap();
    let mut expected = [0; 24];
    expected[..16].copy_from_slice(&[11, 0, 2, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes, expected);
}

#[test]
fn a_packet_of_half_a_descriptor_stops_the_channel() {
    let (_, layout) = five_and_five();
    let mem = Memory::new();
    let mut rings = ChannelRings::open(&mem, &layout).unwrap();
    mem.store_u32(Gpa::new(WRITE_INDEX), 8, Ordering::Relaxed).unwrap();
    assert_eq!(rings.receive(), Err(RingError::PacketLength { len: 16, used: 8 }));
}

#[test]
fn half_a_descriptor_behind_a_packet_stops_the_channel_too() {
    let (pages, _) = five_and_five();
    let mem = Memory::new();
    let mut model = Model::new(&mem, &pages, 5, 0);
    model.step(Op::GuestSends(vec![1; 8], false));
    model.incoming.put(&[0; 8]);
    assert_eq!(model.rings.receive().unwrap().unwrap().payload, [1; 8]);
    assert_eq!(model.rings.receive(), Err(RingError::PacketLength { len: 16, used: 8 }));
}

/// The last byte of a ring stays free, so such a packet would wait for room without end.
#[test]
fn a_packet_as_long_as_the_ring_is_refused() {
    let (_, layout) = five_and_five();
    let mem = Memory::new();
    let mut rings = ChannelRings::open(&mem, &layout).unwrap();
    let (ring, payload) = (4 << 12, (4 << 12) - 24);
    let refused = Err(RingError::TooLong { payload, ring });
    assert_eq!(rings.send(&vec![0; payload], 0), refused);
    assert_eq!(rings.send(&vec![0; payload - 8], 0), Ok(Sent::Written { signal: true }));
}

#[test]
fn packets_are_unread_until_the_guest_has_taken_them_unless_it_wants_no_signal() {
    let (pages, _) = five_and_five();
    let mem = Memory::new();
    let mut model = Model::new(&mem, &pages, 5, 0);
    assert_eq!(model.rings.is_unread(), Ok(false));
    model.step(Op::HostSends(vec![0; 8]));
    assert_eq!(model.rings.is_unread(), Ok(true));
    model.step(Op::GuestMasks(true));
    assert_eq!(model.rings.is_unread(), Ok(false));
    model.step(Op::GuestMasks(false));
    model.step(Op::GuestReceives);
    assert_eq!(model.rings.is_unread(), Ok(false));
}

#[test]
fn the_features_of_a_ring_that_was_open_before_stay() {
    let (pages, layout) = five_and_five();
    let mem = Memory::new();
    let outgoing = GuestRing { mem: &mem, pages: pages[5..].to_vec() };
    outgoing.set(FEATURES, 0b101);
    ChannelRings::open(&mem, &layout).unwrap();
    assert_eq!(outgoing.get(FEATURES), 0b101);
}

#[test]
fn a_sender_that_waits_for_exactly_the_room_there_is_is_signalled_and_no_other() {
    let (pages, _) = five_and_five();
    // No room is ever more than all: whoever waits for that is not waiting for a packet.
    for (pending, signal) in [(1024, true), (1016, false), (4 << 12, false)] {
        let mem = Memory::new();
        let mut model = Model::new(&mem, &pages, 5, 0);
        for _ in 0..15 {
            model.step(Op::GuestSends(vec![0; 1000], false));
        }
        model.incoming.set(PENDING, pending);
        let mut receive_one = || {
            model.rings.receive().unwrap();
            model.rings.end_receive()
        };
        assert_eq!([receive_one(), receive_one()], [signal, false]);
    }
}

#[test]
fn many_packets_are_copied_once_and_with_as_few_accesses_as_one() {
    let (pages, _) = five_and_five();
    let cost_of = |packets: usize| {
        let mem = Memory::new();
        let mut model = Model::new(&mem, &pages, 5, 0);
        for _ in 0..packets {
            model.step(Op::GuestSends(vec![1; 48], false));
        }
        let before = (mem.accesses.get(), mem.bytes_read.get());
        while model.rings.receive().unwrap().is_some() {}
        assert!(!model.rings.end_receive());
        (mem.accesses.get() - before.0, mem.bytes_read.get() - before.1)
    };
    assert_eq!([cost_of(1), cost_of(200)], [(8, 72), (8, 200 * 72)]);
}

#[test]
fn a_ring_longer_than_the_copy_is_read_to_its_end() {
    let pages: Vec<_> = (0..300).map(|n| Gpfn::new(n).unwrap()).collect();
    let mem = Memory::with_pages(pages.len());
    let mut model = Model::new(&mem, &pages, 290, 0x12_0000);
    for round in 0..3 {
        let packets = 280;
        for n in 0..packets {
            model.step(Op::GuestSends(vec![round; 3000 + 8 * n], false));
        }
        for (payload, ..) in std::mem::take(&mut model.to_host) {
            assert_eq!(model.rings.receive().unwrap().unwrap().payload, payload);
        }
        assert_eq!((model.rings.receive(), model.incoming.used()), (Ok(None), 0));
    }
}
