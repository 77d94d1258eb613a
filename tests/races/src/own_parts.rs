//! Guest memory that detects writes of the host outside its own parts.

use std::sync::atomic::{AtomicUsize, Ordering};

use page_range::{Gpa, Gpfn};
use vmbus::protocol::ring::{
    FEATURE_BITS, INTERRUPT_MASK, PENDING_SEND_SIZE, READ_INDEX, WRITE_INDEX,
};
use vmbus::ring::RingLayout;
use vmbus::{AccessError, GuestMemory};

/// The host's access to memory with rings: a write outside the host's own parts of them panics.
#[derive(Debug)]
pub struct OwnParts<M> {
    memory: M,
    /// The host's own words.
    words: Vec<Gpa>,
    /// The host's own data pages.
    pages: Vec<Gpfn>,
    accesses: AtomicUsize,
}

impl<M: GuestMemory> OwnParts<M> {
    /// Allows the host's indices, its requests for signals, and the packets that it sends.
    ///
    /// # Panics
    /// If a ring has no pages, which no layout allows.
    pub fn new(memory: M, layout: &RingLayout) -> Self {
        let word = |pages: &[Gpfn], word| {
            pages.first().and_then(|page| page.gpa().checked_add(word)).expect("a control page")
        };
        let words = [READ_INDEX, INTERRUPT_MASK].map(|offset| word(layout.incoming(), offset));
        let sending = [WRITE_INDEX, PENDING_SEND_SIZE, FEATURE_BITS];
        let words = words.into_iter().chain(sending.map(|offset| word(layout.outgoing(), offset)));
        let pages = layout.outgoing().iter().skip(1).copied().collect();
        Self { memory, words: words.collect(), pages, accesses: AtomicUsize::new(0) }
    }

    /// Accesses since the last call.
    pub fn take_accesses(&self) -> usize {
        self.accesses.swap(0, Ordering::Relaxed)
    }

    fn count(&self) {
        self.accesses.fetch_add(1, Ordering::Relaxed);
    }
}

impl<M: GuestMemory> GuestMemory for OwnParts<M> {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        self.count();
        self.memory.read(gpa, buf)
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        self.count();
        let end = gpa.get() + buf.len() as u64;
        let mut pages = (gpa.get() >> 12..end.div_ceil(4096)).map(Gpfn::new);
        let is_own = |page: Option<Gpfn>| page.is_some_and(|page| self.pages.contains(&page));
        assert!(pages.all(is_own), "the host wrote {} bytes at {gpa}", buf.len());
        self.memory.write(gpa, buf)
    }

    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        self.count();
        self.memory.load_u32(gpa, order)
    }

    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        self.count();
        assert!(self.words.contains(&gpa), "the host stored {value:#x} at {gpa}");
        self.memory.store_u32(gpa, value, order)
    }
}
