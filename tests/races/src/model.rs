//! Rings in memory that `loom` observes.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, fence};
use loom::sync::{Condvar, Mutex as LoomMutex};
use page_range::Gpa;
use vmbus::protocol::ring::{
    FEATURE_BITS, INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, WRITE_INDEX,
};
use vmbus::{AccessError, GuestMemory};

/// The rings' pages: a control page and one page of data, to the host and to the guest.
pub const RING_PAGES: [u64; 4] = [0, 1, 2, 3];
/// Bytes of a ring's data.
pub const RING: usize = PAGE;
/// Packets that start and end at multiples of this share none of the observed pieces.
pub const CELL: usize = 512;

const PAGE: usize = 4096;
const WORDS: [u64; 5] = [WRITE_INDEX, READ_INDEX, INTERRUPT_MASK, PENDING_SEND_SIZE, FEATURE_BITS];
/// The control pages among [`RING_PAGES`].
const CONTROL: [usize; 2] = [0, 2];

/// One side's access to the memory of two rings.
#[derive(Clone, Debug)]
pub struct ModelMemory {
    /// All threads of a model run on one system thread.
    shared: Rc<Shared>,
    /// What this side omits, to show that the test notices.
    mistake: Option<Mistake>,
}

/// The mistakes that a side can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// It has no barrier between its store and its load.
    NoFences,
    /// Its words impose no order.
    NoOrder,
}

#[derive(Debug)]
struct Shared {
    words: [[AtomicU32; WORDS.len()]; CONTROL.len()],
    /// A witness for each piece of the data pages: two accesses, one of them a write, of which
    /// neither is known to come first are a race, and `loom` fails.
    cells: Vec<UnsafeCell<()>>,
    /// The content of the data pages. `loom` runs one thread at a time, so nothing ever waits for
    /// this lock.
    bytes: Mutex<Vec<u8>>,
}

impl ModelMemory {
    /// Zeroed memory; works only inside a model.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it works inside a model only")]
    pub fn new() -> Self {
        let words = || std::array::from_fn(|_| AtomicU32::new(0));
        let shared = Shared {
            words: std::array::from_fn(|_| words()),
            cells: (0..RING_PAGES.len() * PAGE / CELL).map(|_| UnsafeCell::new(())).collect(),
            bytes: Mutex::new(vec![0; RING_PAGES.len() * PAGE]),
        };
        Self { shared: Rc::new(shared), mistake: None }
    }

    /// The same memory for a side that makes a mistake.
    #[must_use]
    pub fn with_mistake(&self, mistake: Option<Mistake>) -> Self {
        Self { shared: Rc::clone(&self.shared), mistake }
    }

    fn order(&self, order: Ordering) -> Ordering {
        if self.mistake == Some(Mistake::NoOrder) { Ordering::Relaxed } else { order }
    }

    fn word(&self, gpa: Gpa) -> Result<&AtomicU32, AccessError> {
        let (page, offset) = (gpa.get() / PAGE as u64, gpa.get() % PAGE as u64);
        let ring = CONTROL.iter().position(|control| *control as u64 == page);
        let word = WORDS.iter().position(|word| *word == offset);
        let found = ring.zip(word).map(|(ring, word)| &self.shared.words[ring][word]);
        found.ok_or(AccessError { gpa, len: size_of::<u32>() })
    }

    /// Records an access to data and returns the bytes accessed.
    fn bytes(
        &self,
        gpa: Gpa,
        len: usize,
        note: impl Fn(&UnsafeCell<()>),
    ) -> Result<std::ops::Range<usize>, AccessError> {
        let start = usize::try_from(gpa.get()).map_err(|_| AccessError { gpa, len })?;
        let page = start / PAGE;
        if len == 0 || CONTROL.contains(&page) || start % PAGE + len > PAGE {
            return Err(AccessError { gpa, len });
        }
        let cells = self.shared.cells.get(start / CELL..(start + len).div_ceil(CELL));
        cells.ok_or(AccessError { gpa, len })?.iter().for_each(note);
        Ok(start..start + len)
    }
}

impl GuestMemory for ModelMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let range = self.bytes(gpa, buf.len(), |cell| cell.with(|_| ()))?;
        let bytes = self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        buf.copy_from_slice(&bytes[range]);
        Ok(())
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        if buf == [0; PAGE] && self.word(gpa).is_ok() {
            // The guest clears its control pages before any other thread exists.
            return Ok(());
        }
        let range = self.bytes(gpa, buf.len(), |cell| cell.with_mut(|_| ()))?;
        let mut bytes = self.shared.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes[range].copy_from_slice(buf);
        Ok(())
    }

    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        Ok(self.word(gpa)?.load(self.order(order)))
    }

    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        self.word(gpa)?.store(value, self.order(order));
        Ok(())
    }

    fn fence(&self) {
        if self.mistake != Some(Mistake::NoFences) {
            fence(Ordering::SeqCst);
        }
    }
}

/// The target of one side's signals. Signals do not add up, as with an eventfd or an interrupt.
#[derive(Debug)]
pub struct Bell {
    rung: LoomMutex<bool>,
    heard: Condvar,
    /// How often it was rung; not part of the model.
    count: AtomicUsize,
}

impl Bell {
    /// A bell that has not been rung; works only inside a model.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it works inside a model only")]
    pub fn new() -> Self {
        let count = AtomicUsize::new(0);
        Self { rung: LoomMutex::new(false), heard: Condvar::new(), count }
    }

    /// Signals, if the ring says so.
    pub fn ring(&self, signal: bool) {
        if signal {
            self.count.fetch_add(1, Ordering::Relaxed);
            *self.rung.lock().expect("no thread panics in a model that goes on") = true;
            self.heard.notify_one();
        }
    }

    /// Sleeps until there is a signal. `loom` fails if there never is one.
    pub fn sleep(&self) {
        let mut rung = self.rung.lock().expect("no thread panics in a model that goes on");
        while !*rung {
            rung = self.heard.wait(rung).expect("no thread panics in a model that goes on");
        }
        *rung = false;
    }

    /// How often it was rung.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}
