//! The bare system calls, without anything around them.

// UNSAFETY: the calls take raw addresses, and have no safe form.
#![expect(unsafe_code, reason = "madvise, process_madvise and fallocate on raw addresses")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use page_range::PageRange;
use serde::Serialize;
use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};

use crate::cpu;
use crate::memory::GuestMemory;
use crate::report::nanoseconds;

/// The most ranges and bytes in one call, as in this project's discard; these limits proved best.
const MAX_RANGES: usize = 512;
const MAX_BYTES: usize = 64 << 20;

/// Linux `include/uapi/linux/pidfd.h`.
const PIDFD_SELF_THREAD: libc::c_int = -10_000;

/// The cost of the calls.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Floor {
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) wall: Duration,
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) cpu: Duration,
    pub(crate) calls: u64,
}

/// One call for each piece, as in a host that passes on the guest's ranges unchanged.
pub(crate) fn one_call_each(memory: &GuestMemory) -> Result<Floor> {
    let target = Target::new(memory)?;
    let ranges = target.iovecs(&memory.pieces);
    target.time(|target| {
        ranges.iter().try_for_each(|range| target.discard(range))?;
        Ok(ranges.len())
    })
}

/// The best known calls: adjacent ranges merged, and many ranges in one call if the kernel supports
/// it.
pub(crate) fn best_calls(memory: &GuestMemory) -> Result<Floor> {
    let target = Target::new(memory)?;
    let ranges = merge(target.iovecs(&memory.pieces));
    target.time(|target| match target.file {
        Some(_) => {
            ranges.iter().try_for_each(|range| target.discard(range))?;
            Ok(ranges.len())
        }
        None => {
            let calls = batches(&ranges);
            calls.iter().try_for_each(|call| discard_many(call))?;
            Ok(calls.len())
        }
    })
}

/// The guest's memory as the system calls see it.
struct Target<'a> {
    start: *mut u8,
    /// The memfd, and the offset at which the memory begins.
    file: Option<(&'a File, u64)>,
    first: PageRange,
}

impl Target<'_> {
    fn new(memory: &GuestMemory) -> Result<Target<'_>> {
        let region = memory.regions.first().context("no memory")?;
        let start = region.get_host_address(MemoryRegionAddress(0))?;
        let file = region.file_offset().map(|file| (file.file(), file.start()));
        Ok(Target { start, file, first: region.range() })
    }

    fn iovecs(&self, ranges: &[PageRange]) -> Vec<libc::iovec> {
        let bytes = |range: &PageRange| {
            let offset = range.start().distance_from(self.first.start()).bytes();
            libc::iovec {
                iov_base: self.start.wrapping_add(usize(offset)).cast(),
                iov_len: usize(range.count().bytes()),
            }
        };
        ranges.iter().map(bytes).collect()
    }

    fn time(&self, work: impl FnOnce(&Self) -> io::Result<usize>) -> Result<Floor> {
        let (start, cpu) = (Instant::now(), cpu::thread());
        let calls = work(self).context("the bare call fails")? as u64;
        let (wall, cpu) = (start.elapsed(), cpu::thread().saturating_sub(cpu));
        Ok(Floor { wall, cpu, calls })
    }

    fn discard(&self, range: &libc::iovec) -> io::Result<()> {
        let result = match self.file {
            Some((file, start)) => {
                let offset = start + (range.iov_base as usize - self.start as usize) as u64;
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                let (offset, len) = (offset.cast_signed(), (range.iov_len as u64).cast_signed());
                // SAFETY: the call works on an open descriptor, and on no memory directly.
                unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }
            }
            // SAFETY: the range is guest memory, whose content nobody relies on.
            None => unsafe { libc::madvise(range.iov_base, range.iov_len, libc::MADV_DONTNEED) },
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn discard_many(ranges: &[libc::iovec]) -> io::Result<()> {
    let (advice, flags) = (libc::MADV_DONTNEED, 0_u32);
    let (vector, count) = (ranges.as_ptr(), ranges.len());
    // SAFETY: the vector has `count` entries, all of them guest memory, whose content nobody relies
    // on.
    let done = unsafe {
        let call = libc::SYS_process_madvise;
        libc::syscall(call, PIDFD_SELF_THREAD, vector, count, advice, flags)
    };
    let wanted: usize = ranges.iter().map(|range| range.iov_len).sum();
    match usize::try_from(done) {
        Ok(done) if done == wanted => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        // The kernel does not support it: one call for each range is the best available.
        Err(_) => ranges.iter().try_for_each(|range| {
            // SAFETY: as above.
            let result = unsafe { libc::madvise(range.iov_base, range.iov_len, advice) };
            if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
        }),
    }
}

/// The ranges in ascending order, with adjacent ones merged.
fn merge(ranges: Vec<libc::iovec>) -> Vec<libc::iovec> {
    let mut merged: Vec<libc::iovec> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.iov_base as usize + last.iov_len == range.iov_base as usize => {
                last.iov_len += range.iov_len;
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The ranges of each call; none exceeds the limit of a call.
fn batches(ranges: &[libc::iovec]) -> Vec<Vec<libc::iovec>> {
    let pieces = ranges.iter().flat_map(|range| {
        (0..range.iov_len).step_by(MAX_BYTES).map(|offset| libc::iovec {
            iov_base: range.iov_base.wrapping_byte_add(offset),
            iov_len: (range.iov_len - offset).min(MAX_BYTES),
        })
    });
    let mut calls: Vec<Vec<libc::iovec>> = Vec::new();
    let mut bytes = 0;
    for piece in pieces {
        bytes += piece.iov_len;
        match calls.last_mut() {
            Some(call) if call.len() < MAX_RANGES && bytes <= MAX_BYTES => call.push(piece),
            _ => {
                bytes = piece.iov_len;
                calls.push(vec![piece]);
            }
        }
    }
    calls
}

fn usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
