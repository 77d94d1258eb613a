//! The pages of one ring, and copies that wrap around its end.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use page_range::{Gpa, Gpfn, PAGE_SIZE, PageCount};

use super::RingError;
use crate::{
    AccessError, GuestMemory,
    protocol::ring::{PACKET_ALIGN, READ_INDEX, WRITE_INDEX},
};

const PAGE_LEN: u32 = 1 << 12;
const _: () = assert!(PAGE_LEN as u64 == PAGE_SIZE);

/// One ring in guest memory. Positions are byte offsets in the data area, below [`size`](Self::size).
#[derive(Debug)]
pub(super) struct RingPages {
    control: Gpa,
    /// The data area; the first run starts at position 0. A guest that allocates its ring
    /// contiguously, as Linux does, has one run.
    runs: Vec<Run>,
    size: u32,
}

/// Pages of the data area that are contiguous in guest memory.
#[derive(Debug)]
struct Run {
    /// Start in the data area; it ends where the next one starts.
    position: u32,
    /// Start in guest memory.
    gpa: Gpa,
}

impl RingPages {
    /// The ring in `pages`; `None` if there are fewer than two, or far too many.
    pub(super) fn new(pages: &[Gpfn]) -> Option<Self> {
        let (control, data) = pages.split_first()?;
        let size = u32::try_from(data.len()).ok()?.checked_mul(PAGE_LEN)?;
        (size > 0).then(|| Self { control: control.gpa(), runs: runs(data), size })
    }

    /// Size of the data area in bytes.
    #[inline]
    pub(super) const fn size(&self) -> u32 {
        self.size
    }

    /// Bytes written and not yet read.
    #[inline]
    pub(super) const fn used(&self, write: u32, read: u32) -> u32 {
        match write.checked_sub(read) {
            Some(used) => used,
            None => self.size.wrapping_sub(read).wrapping_add(write),
        }
    }

    /// Free bytes. A sender always leaves at least 8 of them unused.
    #[inline]
    pub(super) const fn free(&self, write: u32, read: u32) -> u32 {
        self.size.wrapping_sub(self.used(write, read))
    }

    /// The position `by` bytes further; `by` is below the size.
    #[inline]
    pub(super) const fn advance(&self, position: u32, by: u32) -> u32 {
        let sum = position.wrapping_add(by);
        if sum >= self.size { sum.wrapping_sub(self.size) } else { sum }
    }

    /// Loads a control word.
    pub(super) fn load<M: GuestMemory>(
        &self,
        mem: &M,
        word: u64,
        order: Ordering,
    ) -> Result<u32, AccessError> {
        mem.load_u32(self.word(word), order)
    }

    /// Stores a control word.
    pub(super) fn store<M: GuestMemory>(
        &self,
        mem: &M,
        word: u64,
        value: u32,
        order: Ordering,
    ) -> Result<(), AccessError> {
        mem.store_u32(self.word(word), value, order)
    }

    /// Loads the write index, once, and checks it.
    pub(super) fn load_write_index<M: GuestMemory>(&self, mem: &M) -> Result<u32, RingError> {
        let value = self.load(mem, WRITE_INDEX, Ordering::Acquire)?;
        if self.is_position(value) { Ok(value) } else { Err(RingError::WriteIndex(value)) }
    }

    /// Loads the read index, once, and checks it.
    pub(super) fn load_read_index<M: GuestMemory>(&self, mem: &M) -> Result<u32, RingError> {
        let value = self.load(mem, READ_INDEX, Ordering::Acquire)?;
        if self.is_position(value) { Ok(value) } else { Err(RingError::ReadIndex(value)) }
    }

    /// Copies the data from `position` on to `buf`.
    pub(super) fn read<M: GuestMemory>(
        &self,
        mem: &M,
        mut position: u32,
        mut buf: &mut [u8],
    ) -> Result<(), AccessError> {
        while !buf.is_empty() {
            let piece = self.piece(position, buf.len());
            let (now, rest) = buf.split_at_mut_checked(piece.len).unwrap_or_default();
            mem.read(piece.gpa, now)?;
            position = piece.next;
            buf = rest;
        }
        Ok(())
    }

    /// Copies `buf` to the data area at `position` and returns the position after it.
    pub(super) fn write<M: GuestMemory>(
        &self,
        mem: &M,
        mut position: u32,
        mut buf: &[u8],
    ) -> Result<u32, AccessError> {
        while !buf.is_empty() {
            let piece = self.piece(position, buf.len());
            let (now, rest) = buf.split_at_checked(piece.len).unwrap_or_default();
            mem.write(piece.gpa, now)?;
            position = piece.next;
            buf = rest;
        }
        Ok(position)
    }

    #[inline]
    const fn word(&self, offset: u64) -> Gpa {
        Gpa::new(self.control.get() | offset)
    }

    #[inline]
    pub(super) const fn is_position(&self, value: u32) -> bool {
        value < self.size && value.is_multiple_of(PACKET_ALIGN)
    }

    /// The part of the `wanted` bytes at `position` that lies in one run.
    #[inline]
    fn piece(&self, position: u32, wanted: usize) -> Piece {
        let behind = self.runs.partition_point(|run| run.position <= position);
        let run = behind.checked_sub(1).and_then(|at| self.runs.get(at));
        let (gpa, start) = run.map_or((self.control, position), |run| (run.gpa, run.position));
        let end = self.runs.get(behind).map_or(self.size, |next| next.position);
        let left = end.saturating_sub(position);
        let len = u32::try_from(wanted).map_or(left, |wanted| wanted.min(left));
        let offset = u64::from(position.saturating_sub(start));
        Piece {
            // Page numbers are far below the end of the address space, so this cannot wrap.
            gpa: Gpa::new(gpa.get().wrapping_add(offset)),
            len: len as usize,
            next: self.advance(position, len),
        }
    }
}

fn runs(pages: &[Gpfn]) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut before = None;
    for (page, position) in pages.iter().zip((0..).step_by(PAGE_LEN as usize)) {
        if before.and_then(|before: Gpfn| before.checked_add(PageCount::new(1))) != Some(*page) {
            runs.push(Run { position, gpa: page.gpa() });
        }
        before = Some(*page);
    }
    runs
}

#[derive(Debug, PartialEq, Eq)]
struct Piece {
    gpa: Gpa,
    len: usize,
    /// The position after it.
    next: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring_of(pages: &[u64]) -> RingPages {
        let pages: Vec<_> = pages.iter().map(|n| Gpfn::new(*n).unwrap()).collect();
        RingPages::new(&pages).unwrap()
    }

    fn ring() -> RingPages {
        ring_of(&[7, 9, 8])
    }

    #[test]
    fn pieces_end_where_the_next_page_is_no_neighbour() {
        let piece = |gpa, len, next| Piece { gpa: Gpa::new(gpa), len, next };
        assert_eq!(ring().piece(0, 10_000), piece(9 << 12, 4096, 4096));
        assert_eq!(ring().piece(4088, 16), piece((9 << 12) + 4088, 8, 4096));
        assert_eq!(ring().piece(8184, 16), piece((8 << 12) + 4088, 8, 0));
        let ring = ring_of(&[7, 8, 9, 11, 12]);
        assert_eq!(ring.piece(4080, 10_000), piece((8 << 12) + 4080, 4112, 8192));
        assert_eq!(ring.piece(4080, 100), piece((8 << 12) + 4080, 100, 4180));
        assert_eq!(ring.piece(8200, 10_000), piece((11 << 12) + 8, 8184, 0));
    }

    #[test]
    fn an_empty_ring_is_all_free_and_wraps() {
        let ring = ring();
        assert_eq!((ring.used(64, 64), ring.free(64, 64)), (0, 8192));
        assert_eq!((ring.used(8, 8184), ring.free(8, 8184)), (16, 8176));
        assert_eq!(ring.advance(8184, 16), 8);
        assert_eq!(ring.advance(8184, 8), 0);
    }

    #[test]
    fn indices_outside_the_ring_or_between_packets_are_no_positions() {
        for (value, good) in [(0, true), (8184, true), (8192, false), (4, false), (!7, false)] {
            assert_eq!(ring().is_position(value), good, "{value}");
        }
    }
}
