//! Measurement of the heap in use.

#![expect(unsafe_code, reason = "an allocator is called with raw pointers")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The layout of blocks in glibc's 64-bit malloc, in bytes: the header, the granularity, and the
/// smallest block.
const HEADER: usize = 8;
const STEP: usize = 16;
const LEAST: usize = 32;

/// An allocator that counts the allocations of Rust code, each with the size that glibc's `malloc`
/// takes for it. A binary makes it its `#[global_allocator]`. It is not exact if threads allocate
/// at the same time; the measured code has one thread.
pub struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Bytes in use now.
#[must_use]
pub fn used() -> usize {
    USED.load(Relaxed)
}

/// The most bytes in use since [`forget_peak`].
#[must_use]
pub fn peak() -> usize {
    PEAK.load(Relaxed)
}

/// Makes the current use the peak.
pub fn forget_peak() {
    PEAK.store(used(), Relaxed);
}

/// Bytes that glibc's `malloc` has handed out in total.
#[must_use]
pub fn malloced() -> usize {
    // SAFETY: the call only reads the allocator's own figures.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

const fn taken(size: usize) -> usize {
    let taken = (size + HEADER).next_multiple_of(STEP);
    if taken < LEAST { LEAST } else { taken }
}

fn count(more: usize, less: usize) {
    // A single atomic operation would cost more than the allocation that it counts.
    let used = USED.load(Relaxed).wrapping_add(more).wrapping_sub(less);
    USED.store(used, Relaxed);
    if used > PEAK.load(Relaxed) {
        PEAK.store(used, Relaxed);
    }
}

// SAFETY: the system's allocator does all the work, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(taken(layout.size()), 0);
        // SAFETY: the caller promises what the system's allocator requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(taken(layout.size()), 0);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(0, taken(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(taken(size), taken(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}
