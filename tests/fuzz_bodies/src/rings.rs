//! A channel's rings on memory that another processor of the guest writes at the same time.
//!
//! Every access of the host may find that something was written just before it: control words,
//! descriptors, data. What must hold: no panic, an end to every call, and no write outside what the
//! host's end of the rings may write.

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;

use arbitrary::{Arbitrary, Unstructured};
use page_range::{Gpa, Gpfn};
use vmbus::ring::{ChannelRings, RingLayout};
use vmbus::{AccessError, GuestMemory};

const PAGES: usize = 8;
const PAGE: usize = 4096;
const MAX_STEPS: usize = 200;
/// Packets taken at one step; a guest that writes all the time has always one more.
const MAX_PACKETS: usize = 600;

/// Words of a control page.
const WRITE_INDEX: usize = 0;
const READ_INDEX: usize = 4;
const INTERRUPT_MASK: usize = 8;
const PENDING_SEND_SIZE: usize = 12;
const FEATURE_BITS: usize = 64;
const WORDS: [usize; 5] =
    [WRITE_INDEX, READ_INDEX, INTERRUPT_MASK, PENDING_SEND_SIZE, FEATURE_BITS];

/// What the guest writes.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Write {
    /// An index or a length, in units of 8 bytes.
    Units { incoming: bool, word: u8, units: u16 },
    /// Any word.
    Word { incoming: bool, word: u8, value: u32 },
    /// A descriptor: kind, offset, length, flags.
    Descriptor { at: u16, fields: (u8, u8, u16, u8) },
    /// Eight bytes, anywhere.
    Bytes { at: u16, value: u64 },
}

#[derive(Arbitrary, Debug)]
enum Step {
    Write(Write),
    /// A packet as it should be, where the ring goes on, and the write index after it.
    Packet {
        len: u16,
        completion: bool,
    },
    Receive,
    ReceiveOne,
    Send(u16),
    Complete(u64),
    /// The other side of the host's ring reads all there is.
    ReadAll,
    Reopen,
}

/// The bytes are the rings' pages, steps, and what is written between two accesses.
pub(crate) fn run(data: &[u8]) {
    go_on(data, None, false);
}

/// The same from saved rings, if there are any; saved and restored between all steps, if so wanted.
pub(crate) fn go_on(data: &[u8], saved: Option<&[u8]>, restores: bool) {
    let (layout_bytes, rest) = data.split_at(data.len().min(PAGES + 2));
    let Some(layout) = layout(layout_bytes) else { return };
    // Steps first, as many bytes as the next byte says of 256.
    let Some((&share, rest)) = rest.split_first() else { return };
    let (steps, races) = rest.split_at(rest.len() * usize::from(share) / 255);
    let mem = Memory::new(&layout, races);
    let mut rings = match saved {
        None => ChannelRings::open(&mem, &layout).ok(),
        Some(saved) => match ChannelRings::restore(&mem, &layout, saved) {
            Ok(rings) => Some(rings),
            Err(error) => return assert!(!error.to_string().is_empty()),
        },
    };
    let mut input = Unstructured::new(steps);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        mem.accesses.set(0);
        if !act(&mem, &layout, &mut rings, step) {
            // A broken ring stops the channel.
            rings = None;
        }
        if restores && let Some(live) = &rings {
            let saved = live.save();
            let again = ChannelRings::restore(&mem, &layout, &saved).unwrap();
            assert!(again.save() == saved, "saved differently when restored");
            rings = Some(again);
        }
    }
}

/// Which pages the rings have; the same page may be there twice, or not be memory.
fn layout(bytes: &[u8]) -> Option<RingLayout> {
    let (&at, pages) = bytes.split_first()?;
    let pages: Vec<_> =
        pages.iter().filter_map(|page| Gpfn::new(u64::from(*page) % (PAGES as u64 + 1))).collect();
    RingLayout::new(&pages, usize::from(at) % PAGES).ok()
}

/// Does the step; false where the rings are broken.
fn act<'m>(
    mem: &'m Memory,
    layout: &RingLayout,
    rings: &mut Option<ChannelRings<&'m Memory>>,
    step: Step,
) -> bool {
    let incoming = layout.incoming();
    match step {
        Step::Write(write) => mem.guest_writes(write),
        Step::Packet { len, completion } => mem.packet(incoming, len.into(), completion),
        Step::ReadAll => {
            let control = layout.outgoing()[0];
            let write = mem.get(control, WRITE_INDEX);
            mem.set(control, READ_INDEX, write);
        }
        Step::Reopen => *rings = ChannelRings::open(mem, layout).ok(),
        Step::Receive | Step::ReceiveOne => {
            let most = if matches!(step, Step::Receive) { MAX_PACKETS } else { 1 };
            let Some(rings) = rings else { return true };
            for _ in 0..most {
                mem.accesses.set(0);
                match rings.receive() {
                    Ok(Some(packet)) => assert!(packet.payload.len() < incoming.len() * PAGE),
                    Ok(None) => break,
                    Err(_) => return false,
                }
                mem.assert_few();
            }
            let _ = rings.end_receive();
        }
        Step::Send(len) => {
            let payload = vec![0xa5; usize::from(len)];
            let Some(rings) = rings else { return true };
            let ok = rings.send(&payload, 1).is_ok();
            mem.assert_few();
            return ok;
        }
        Step::Complete(id) => {
            let Some(rings) = rings else { return true };
            let ok = rings.complete(id).is_ok();
            mem.assert_few();
            return ok;
        }
    }
    true
}

/// Guest memory from address 0 up, of which the host may write some bytes only.
struct Memory {
    bytes: RefCell<Vec<u8>>,
    writable: Vec<bool>,
    control: [Gpfn; 2],
    races: RefCell<Vec<Option<Write>>>,
    accesses: Cell<usize>,
}

impl Memory {
    fn new(layout: &RingLayout, races: &[u8]) -> Self {
        let mut writable = vec![false; PAGES * PAGE];
        let mut allow = |page: Gpfn, bytes: std::ops::Range<usize>| {
            let start = usize::try_from(page.get()).unwrap() * PAGE;
            if let Some(part) = writable.get_mut(start + bytes.start..start + bytes.end) {
                part.fill(true);
            }
        };
        let (incoming, outgoing) = (layout.incoming(), layout.outgoing());
        for word in [READ_INDEX, INTERRUPT_MASK] {
            allow(incoming[0], word..word + 4);
        }
        for word in [WRITE_INDEX, PENDING_SEND_SIZE, FEATURE_BITS] {
            allow(outgoing[0], word..word + 4);
        }
        for page in &outgoing[1..] {
            allow(*page, 0..PAGE);
        }
        let mut input = Unstructured::new(races);
        let mut script = Vec::new();
        while !input.is_empty()
            && let Ok(write) = Option::<Write>::arbitrary(&mut input)
        {
            script.push(write);
        }
        script.reverse();
        Self {
            bytes: RefCell::new(vec![0; PAGES * PAGE]),
            writable,
            control: [incoming[0], outgoing[0]],
            races: RefCell::new(script),
            accesses: Cell::new(0),
        }
    }

    /// One call takes few accesses, whatever the guest writes meanwhile: control words, and a
    /// few for each page that is copied.
    fn assert_few(&self) {
        let accesses = self.accesses.take();
        assert!(accesses <= 24 + 4 * PAGES, "{accesses} accesses");
    }

    fn get(&self, page: Gpfn, word: usize) -> u32 {
        let start = usize::try_from(page.get()).unwrap() * PAGE + word;
        let bytes = self.bytes.borrow();
        bytes.get(start..start + 4).map_or(0, |word| u32::from_le_bytes(word.try_into().unwrap()))
    }

    fn set(&self, page: Gpfn, word: usize, value: u32) {
        self.put(usize::try_from(page.get()).unwrap() * PAGE + word, &value.to_le_bytes());
    }

    /// The guest writes, without looking where.
    fn put(&self, at: usize, value: &[u8]) {
        if let Some(bytes) = self.bytes.borrow_mut().get_mut(at..at + value.len()) {
            bytes.copy_from_slice(value);
        }
    }

    fn guest_writes(&self, write: Write) {
        match write {
            Write::Units { incoming, word, units } => {
                self.guest_writes(Write::Word { incoming, word, value: u32::from(units) * 8 });
            }
            Write::Word { incoming, word, value } => {
                let word = WORDS[usize::from(word) % WORDS.len()];
                self.set(self.control[usize::from(!incoming)], word, value);
            }
            Write::Descriptor { at, fields: (kind, offset, len, flags) } => {
                let fields = [kind.into(), offset.into(), len, flags.into()];
                let bytes: Vec<u8> =
                    fields.into_iter().flat_map(|field: u16| field.to_le_bytes()).collect();
                self.put(usize::from(at) & !7, &bytes);
            }
            Write::Bytes { at, value } => self.put(at.into(), &value.to_le_bytes()),
        }
    }

    /// Writes a packet behind the last one.
    fn packet(&self, ring: &[Gpfn], len: usize, completion: bool) {
        let data = &ring[1..];
        let size = data.len() * PAGE;
        let mut position = (self.get(ring[0], WRITE_INDEX) as usize % size) & !7;
        let len8 = u16::try_from(2 + len.div_ceil(8)).unwrap();
        let mut bytes: Vec<u8> = [6, 2, len8, completion.into()]
            .into_iter()
            .flat_map(|field: u16| field.to_le_bytes())
            .collect();
        bytes.resize(usize::from(len8) * 8 + 8, 0x5a);
        for eight in bytes.chunks(8) {
            let page = usize::try_from(data[position / PAGE].get()).unwrap();
            self.put(page * PAGE + position % PAGE, eight);
            position = (position + 8) % size;
        }
        self.set(ring[0], WRITE_INDEX, u32::try_from(position).unwrap());
    }

    /// An access of the host: something may be written first.
    fn access(&self, gpa: Gpa, len: usize) -> Result<std::ops::Range<usize>, AccessError> {
        self.accesses.update(|accesses| accesses + 1);
        let write = self.races.borrow_mut().pop().flatten();
        if let Some(write) = write {
            self.guest_writes(write);
        }
        let start = usize::try_from(gpa.get()).unwrap();
        let end = start.checked_add(len).filter(|end| *end <= PAGES * PAGE);
        end.map(|end| start..end).ok_or(AccessError { gpa, len })
    }
}

impl GuestMemory for Memory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let range = self.access(gpa, buf.len())?;
        buf.copy_from_slice(&self.bytes.borrow()[range]);
        Ok(())
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        let range = self.access(gpa, buf.len())?;
        let allowed = self.writable[range.clone()].iter().all(|writable| *writable);
        assert!(allowed, "{} bytes written at {gpa}", buf.len());
        self.bytes.borrow_mut()[range].copy_from_slice(buf);
        Ok(())
    }

    fn load_u32(&self, gpa: Gpa, _: Ordering) -> Result<u32, AccessError> {
        assert!(gpa.get().is_multiple_of(4), "word at {gpa}");
        let range = self.access(gpa, 4)?;
        Ok(u32::from_le_bytes(self.bytes.borrow()[range].try_into().unwrap()))
    }

    fn store_u32(&self, gpa: Gpa, value: u32, _: Ordering) -> Result<(), AccessError> {
        assert!(gpa.get().is_multiple_of(4), "word at {gpa}");
        self.write(gpa, &value.to_le_bytes())
    }
}
