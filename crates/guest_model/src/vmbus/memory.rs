//! Memory that guest and host share, for tests on one or several threads.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use page_range::{Gpa, PAGE_SIZE};
use vmbus::{AccessError, GuestMemory};

/// Guest memory from address 0 up, zeroed.
#[derive(Debug)]
pub struct SharedMemory {
    words: Vec<AtomicU32>,
}

impl SharedMemory {
    /// Memory of `pages` pages.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let words = (0..pages << 10).map(|_| AtomicU32::new(0)).collect();
        Self { words }
    }

    fn check(&self, gpa: Gpa, len: usize) -> Result<usize, AccessError> {
        let error = AccessError { gpa, len };
        let start = usize::try_from(gpa.get()).map_err(|_| error)?;
        let end = start.checked_add(len).ok_or(error)?;
        let in_page = gpa.page_offset().saturating_add(len as u64);
        assert!(in_page <= PAGE_SIZE, "{len} bytes at {gpa} cross a page");
        if end > self.words.len() << 2 { Err(error) } else { Ok(start) }
    }

    fn word(&self, gpa: Gpa) -> Result<&AtomicU32, AccessError> {
        let start = self.check(gpa, 4)?;
        assert!(start.is_multiple_of(4), "word at {gpa} is not aligned");
        Ok(&self.words[start >> 2])
    }
}

impl GuestMemory for SharedMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let start = self.check(gpa, buf.len())?;
        for (byte, at) in buf.iter_mut().zip(start..) {
            *byte = self.words[at >> 2].load(Ordering::Relaxed).to_le_bytes()[at & 3];
        }
        Ok(())
    }

    /// Bytes that share a word with others are written by whoever owns the word: packets are
    /// aligned.
    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        let start = self.check(gpa, buf.len())?;
        for (byte, at) in buf.iter().zip(start..) {
            let word = &self.words[at >> 2];
            let mut bytes = word.load(Ordering::Relaxed).to_le_bytes();
            bytes[at & 3] = *byte;
            word.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
        Ok(())
    }

    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        Ok(self.word(gpa)?.load(order))
    }

    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        self.word(gpa)?.store(value, order);
        Ok(())
    }
}
