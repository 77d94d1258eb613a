//! Guest memory that another vCPU of the guest writes while the host uses it.
//!
//! Just before any access of the host, something may be written: control words, descriptors, data.
//! The host may write only the parts of the rings that it owns.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::atomic::Ordering;

use arbitrary::{Arbitrary, Unstructured};
use page_range::{Gpa, Gpfn, PageRange};
use vmbus::protocol::ring::{PacketDescriptor, PacketKind};
use vmbus::ring::RingLayout;
use vmbus::{AccessError, GuestMemory};

pub(crate) const PAGES: usize = 8;
pub(crate) const PAGE: usize = 4096;

/// The filler byte of packets: their transaction ID, their padding and, in `rings`, their payload.
pub(crate) const FILL: u8 = 0x5a;

/// Words of a control page.
const WRITE_INDEX: usize = 0;
const READ_INDEX: usize = 4;
const INTERRUPT_MASK: usize = 8;
const PENDING_SEND_SIZE: usize = 12;
const FEATURE_BITS: usize = 64;
const WORDS: [usize; 5] =
    [WRITE_INDEX, READ_INDEX, INTERRUPT_MASK, PENDING_SEND_SIZE, FEATURE_BITS];

/// A write by the guest.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Write {
    /// An index or a length, in units of 8 bytes.
    Units { incoming: bool, word: u8, units: u16 },
    /// Any word.
    Word { incoming: bool, word: u8, value: u32 },
    /// A descriptor: kind, offset, length, flags.
    Descriptor { at: u16, fields: (u8, u8, u16, u8) },
    /// Eight bytes, anywhere.
    Bytes { at: u16, value: u64 },
}

/// Guest memory from address 0 up.
pub(crate) struct Memory {
    bytes: RefCell<Vec<u8>>,
    /// The rings that the host may use.
    rings: RefCell<Option<Rings>>,
    races: RefCell<Vec<Option<Write>>>,
    pub(crate) accesses: Cell<usize>,
}

struct Rings {
    /// The bytes that the host may write.
    writable: Vec<bool>,
    control: [Gpfn; 2],
}

impl Rings {
    fn new(layout: &RingLayout) -> Self {
        let mut writable = vec![false; PAGES * PAGE];
        let mut allow = |page: Gpfn, bytes: Range<usize>| {
            let start = offset(page);
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
        Self { writable, control: [incoming[0], outgoing[0]] }
    }
}

/// The offset of a page in the memory's bytes; beyond their end if it is not memory.
fn offset(page: Gpfn) -> usize {
    usize::try_from(page.get()).unwrap() * PAGE
}

/// Decodes the pages of the rings; a page may occur twice, or not be memory.
pub(crate) fn layout(bytes: &[u8]) -> Option<RingLayout> {
    let (&at, pages) = bytes.split_first()?;
    let pages: Vec<_> =
        pages.iter().filter_map(|page| Gpfn::new(u64::from(*page) % (PAGES as u64 + 1))).collect();
    RingLayout::new(&pages, usize::from(at) % PAGES).ok()
}

impl Memory {
    /// Memory without rings; `races` encodes the writes between accesses.
    pub(crate) fn new(races: &[u8]) -> Self {
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
            rings: RefCell::new(None),
            races: RefCell::new(script),
            accesses: Cell::new(0),
        }
    }

    /// Lets the host use these rings; with `None`, it may access nothing.
    pub(crate) fn lend(&self, layout: Option<&RingLayout>) {
        *self.rings.borrow_mut() = layout.map(Rings::new);
    }

    /// Ends the writes between accesses.
    pub(crate) fn stop_races(&self) {
        self.races.borrow_mut().clear();
    }

    /// Asserts that a call took few accesses, whatever the guest wrote meanwhile: those to control
    /// words, and a few for each page that is copied.
    pub(crate) fn assert_few(&self) {
        let accesses = self.accesses.take();
        assert!(accesses <= 24 + 4 * PAGES, "{accesses} accesses");
    }

    fn get(&self, page: Gpfn, word: usize) -> u32 {
        let start = offset(page) + word;
        let bytes = self.bytes.borrow();
        bytes.get(start..start + 4).map_or(0, |word| u32::from_le_bytes(word.try_into().unwrap()))
    }

    fn set(&self, page: Gpfn, word: usize, value: u32) {
        self.put(offset(page) + word, &value.to_le_bytes());
    }

    /// Writes as the guest, which may write anywhere.
    fn put(&self, at: usize, value: &[u8]) {
        if let Some(bytes) = self.bytes.borrow_mut().get_mut(at..at + value.len()) {
            bytes.copy_from_slice(value);
        }
    }

    /// The host discards pages, some of which may be beyond this memory.
    pub(crate) fn discard(&self, range: PageRange) {
        let pages = range.start().get()..range.end().get().min(PAGES as u64);
        for page in pages {
            self.put(usize::try_from(page).unwrap() * PAGE, &[0; PAGE]);
        }
    }

    pub(crate) fn guest_writes(&self, write: Write) {
        match write {
            Write::Units { incoming, word, units } => {
                self.guest_writes(Write::Word { incoming, word, value: u32::from(units) * 8 });
            }
            Write::Word { incoming, word, value } => {
                let control = self.rings.borrow().as_ref().map(|rings| rings.control);
                if let Some(control) = control {
                    let word = WORDS[usize::from(word) % WORDS.len()];
                    self.set(control[usize::from(!incoming)], word, value);
                }
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

    /// Writes a packet after the last one, whether or not there is room.
    pub(crate) fn packet(&self, ring: &[Gpfn], payload: &[u8], completion: bool) {
        let data = &ring[1..];
        let size = data.len() * PAGE;
        let mut position = (self.get(ring[0], WRITE_INDEX) as usize % size) & !7;
        let len8 = u16::try_from(2 + payload.len().div_ceil(8)).unwrap();
        let flags = if completion { PacketDescriptor::COMPLETION_REQUESTED } else { 0 };
        let mut bytes: Vec<u8> = [PacketKind::DATA_IN_BAND.0, 2, len8, flags]
            .into_iter()
            .flat_map(|field: u16| field.to_le_bytes())
            .chain([FILL; 8])
            .chain(payload.iter().copied())
            .collect();
        bytes.resize(usize::from(len8) * 8 + 8, FILL);
        for eight in bytes.chunks(8) {
            self.put(offset(data[position / PAGE]) + position % PAGE, eight);
            position = (position + 8) % size;
        }
        self.set(ring[0], WRITE_INDEX, u32::try_from(position).unwrap());
    }

    /// The guest reads everything that the host has sent.
    pub(crate) fn read_all(&self, ring: &[Gpfn]) {
        let write = self.get(ring[0], WRITE_INDEX);
        self.set(ring[0], READ_INDEX, write);
    }

    /// Clears the control pages, as a driver does before it opens its channel.
    pub(crate) fn clear(&self, layout: &RingLayout) {
        for page in [layout.incoming()[0], layout.outgoing()[0]] {
            self.put(offset(page), &[0; PAGE]);
        }
    }

    /// Begins an access of the host, before which something may be written.
    fn access(&self, gpa: Gpa, len: usize) -> Result<Range<usize>, AccessError> {
        assert!(self.rings.borrow().is_some(), "the host uses rings that it gave back");
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
        let rings = self.rings.borrow();
        let writable = rings.as_ref().map_or(&[][..], |rings| &rings.writable[range.clone()]);
        let allowed = writable.iter().all(|writable| *writable);
        assert!(allowed, "{} bytes written at {gpa}", buf.len());
        self.bytes.borrow_mut()[range].copy_from_slice(buf);
        Ok(())
    }

    fn load_u32(&self, gpa: Gpa, _: Ordering) -> Result<u32, AccessError> {
        assert!(gpa.get().is_multiple_of(4), "word at {gpa} is not aligned");
        let range = self.access(gpa, 4)?;
        Ok(u32::from_le_bytes(self.bytes.borrow()[range].try_into().unwrap()))
    }

    fn store_u32(&self, gpa: Gpa, value: u32, _: Ordering) -> Result<(), AccessError> {
        assert!(gpa.get().is_multiple_of(4), "word at {gpa} is not aligned");
        self.write(gpa, &value.to_le_bytes())
    }
}
