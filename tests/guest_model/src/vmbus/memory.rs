//! Memory that guest and host share, for tests on one or several threads.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use page_range::Gpa;
use vmbus::{AccessError, GuestMemory};

/// Bytes of a word.
const WORD: usize = size_of::<u32>();

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

    /// The words that hold the `len` bytes at `gpa`, and how many bytes of the first word come
    /// before them.
    fn words(&self, gpa: Gpa, len: usize) -> Result<(&[AtomicU32], usize), AccessError> {
        let error = AccessError { gpa, len };
        let start = usize::try_from(gpa.get()).map_err(|_| error)?;
        let end = start.checked_add(len).ok_or(error)?;
        let words = self.words.get(start / WORD..end.div_ceil(WORD)).ok_or(error)?;
        Ok((words, start % WORD))
    }

    fn word(&self, gpa: Gpa) -> Result<&AtomicU32, AccessError> {
        let (words, skip) = self.words(gpa, WORD)?;
        assert!(skip == 0, "word at {gpa} is not aligned");
        Ok(&words[0])
    }
}

/// How many of `len` bytes come before the next word boundary, if the first byte is `skip` bytes
/// into a word.
fn in_first_word(len: usize, skip: usize) -> usize {
    len.min((WORD - skip) % WORD)
}

fn read_part(word: &AtomicU32, skip: usize, buf: &mut [u8]) {
    let bytes = word.load(Ordering::Relaxed).to_le_bytes();
    buf.copy_from_slice(&bytes[skip..skip + buf.len()]);
}

/// Replaces some bytes of a word. This need not be atomic: packets are aligned, so only the word's
/// owner writes to it.
fn write_part(word: &AtomicU32, skip: usize, buf: &[u8]) {
    let mut bytes = word.load(Ordering::Relaxed).to_le_bytes();
    bytes[skip..skip + buf.len()].copy_from_slice(buf);
    word.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
}

impl GuestMemory for SharedMemory {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let (mut words, skip) = self.words(gpa, buf.len())?;
        let (first, rest) = buf.split_at_mut(in_first_word(buf.len(), skip));
        if !first.is_empty() {
            read_part(&words[0], skip, first);
            words = &words[1..];
        }
        let (whole, last) = rest.as_chunks_mut::<WORD>();
        for (bytes, word) in whole.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        if !last.is_empty() {
            read_part(&words[whole.len()], 0, last);
        }
        Ok(())
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        let (mut words, skip) = self.words(gpa, buf.len())?;
        let (first, rest) = buf.split_at(in_first_word(buf.len(), skip));
        if !first.is_empty() {
            write_part(&words[0], skip, first);
            words = &words[1..];
        }
        let (whole, last) = rest.as_chunks::<WORD>();
        for (bytes, word) in whole.iter().zip(words) {
            word.store(u32::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        if !last.is_empty() {
            write_part(&words[whole.len()], 0, last);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_wherever_it_starts_and_ends() {
        let memory = SharedMemory::new(1);
        let bytes: Vec<u8> = (1..=40).collect();
        for start in 0..9 {
            for len in 0..bytes.len() {
                memory.write(Gpa::new(0), &[0xee; 64]).unwrap();
                memory.write(Gpa::new(start), &bytes[..len]).unwrap();
                let mut all = [0; 64];
                memory.read(Gpa::new(0), &mut all).unwrap();
                let at = usize::try_from(start).unwrap();
                let mut expected = [0xee; 64];
                expected[at..at + len].copy_from_slice(&bytes[..len]);
                assert_eq!(all, expected);
                let mut part = alloc::vec![0; len];
                memory.read(Gpa::new(start), &mut part).unwrap();
                assert_eq!(part, &bytes[..len]);
            }
        }
        assert!(memory.read(Gpa::new(4090), &mut [0; 7]).is_err());
        assert!(memory.write(Gpa::new(u64::MAX - 3), &[0; 7]).is_err());
    }
}
