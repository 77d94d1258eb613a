//! The view the bus has of guest memory.
//!
//! A channel's rings are looked at several times for each packet, and they lie in boot RAM, since
//! the guest sets them up before memory is added. Boot RAM never moves, so it is reached directly;
//! only for other memory the present list of regions is taken and searched.

use std::sync::atomic::{AtomicU32, Ordering};

use page_range::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};
use vmbus::{AccessError, GuestMemory};

use crate::GuestRam;
use crate::copy::{copy_in, copy_out};

impl GuestMemory for GuestRam {
    #[inline]
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let len = buf.len();
        let copied = match self.boot_slice(gpa, len) {
            Some(slice) => copy_out(&slice, buf),
            None => self.read_pieces(gpa, buf),
        };
        copied.ok_or(AccessError { gpa, len })
    }

    #[inline]
    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        let copied = match self.boot_slice(gpa, buf.len()) {
            Some(slice) => copy_in(&slice, buf),
            None => self.write_pieces(gpa, buf),
        };
        copied.ok_or(AccessError { gpa, len: buf.len() })
    }

    #[inline]
    fn load_u32(&self, gpa: Gpa, order: Ordering) -> Result<u32, AccessError> {
        let boot = self.boot_slice(gpa, size_of::<u32>());
        let loaded = match &boot {
            Some(slice) => slice.get_atomic_ref::<AtomicU32>(0).ok().map(|word| word.load(order)),
            None => self.memory().load(GuestAddress(gpa.get()), order).ok(),
        };
        loaded.map(u32::from_le).ok_or(AccessError { gpa, len: size_of::<u32>() })
    }

    #[inline]
    fn store_u32(&self, gpa: Gpa, value: u32, order: Ordering) -> Result<(), AccessError> {
        let boot = self.boot_slice(gpa, size_of::<u32>());
        let value = value.to_le();
        let stored = match &boot {
            Some(slice) => {
                slice.get_atomic_ref::<AtomicU32>(0).ok().map(|word| word.store(value, order))
            }
            None => self.memory().store(value, GuestAddress(gpa.get()), order).ok(),
        };
        stored.ok_or(AccessError { gpa, len: size_of::<u32>() })
    }
}

/// Where memory was added, and over the borders of regions.
impl GuestRam {
    fn read_pieces(&self, gpa: Gpa, mut buf: &mut [u8]) -> Option<()> {
        for slice in self.memory().get_slices(GuestAddress(gpa.get()), buf.len()) {
            let slice = slice.ok()?;
            let (now, rest) = buf.split_at_mut_checked(slice.len())?;
            copy_out(&slice, now)?;
            buf = rest;
        }
        buf.is_empty().then_some(())
    }

    fn write_pieces(&self, gpa: Gpa, mut buf: &[u8]) -> Option<()> {
        for slice in self.memory().get_slices(GuestAddress(gpa.get()), buf.len()) {
            let slice = slice.ok()?;
            let (now, rest) = buf.split_at_checked(slice.len())?;
            copy_in(&slice, now)?;
            buf = rest;
        }
        buf.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::SeqCst;

    use page_range::{Gpfn, PageCount, PageRange};

    use super::*;
    use crate::{HIGH_RAM_START, LOW_RAM_LIMIT, RamConfig};

    const BYTES: u64 = 64 << 10;

    /// Boot RAM on both sides of the hole, with more right behind it.
    fn ram() -> GuestRam {
        let pages = |bytes| PageCount::from_bytes(bytes);
        let config = RamConfig {
            size: pages(LOW_RAM_LIMIT.get() + BYTES),
            hot_add: pages(BYTES),
            max_pieces: 4,
            ..Default::default()
        };
        let ram = GuestRam::new(&config).unwrap();
        let start = Gpa::new(HIGH_RAM_START.get() + BYTES).gpfn().unwrap();
        let added = PageRange::new(start, pages(BYTES)).unwrap();
        ram.add(added, PageCount::ZERO, PageCount::new(1)).unwrap();
        ram
    }

    #[test]
    fn all_ram_is_reached_and_nothing_else() {
        let ram = ram();
        let end = HIGH_RAM_START.get() + 2 * BYTES;
        let inside = [0, LOW_RAM_LIMIT.get() - 8, HIGH_RAM_START.get(), end - BYTES, end - 8];
        for gpa in inside.map(Gpa::new) {
            ram.write(gpa, b"12345678").unwrap();
            let mut read = [0; 8];
            ram.read(gpa, &mut read).unwrap();
            assert_eq!(&read, b"12345678", "{gpa}");
            assert_eq!(ram.load_u32(gpa, SeqCst), Ok(u32::from_le_bytes(*b"1234")), "{gpa}");
            ram.store_u32(gpa, u32::from_le_bytes(*b"abcd"), SeqCst).unwrap();
            ram.read(gpa, &mut read).unwrap();
            assert_eq!(&read, b"abcd5678", "{gpa}");
        }
        let above = [LOW_RAM_LIMIT.get(), HIGH_RAM_START.get() - 4, end, u64::MAX - 3];
        for gpa in above.map(Gpa::new) {
            assert_eq!(ram.write(gpa, &[0; 8]), Err(AccessError { gpa, len: 8 }));
            assert_eq!(ram.read(gpa, &mut [0; 8]), Err(AccessError { gpa, len: 8 }));
            assert_eq!(ram.load_u32(gpa, SeqCst), Err(AccessError { gpa, len: 4 }));
            assert_eq!(ram.store_u32(gpa, 0, SeqCst), Err(AccessError { gpa, len: 4 }));
        }
    }

    #[test]
    fn an_access_may_go_over_the_end_of_boot_ram_into_more() {
        let ram = ram();
        let border = Gpa::new(HIGH_RAM_START.get() + BYTES - 4);
        ram.write(border, b"12345678").unwrap();
        let mut read = [0; 8];
        ram.read(border, &mut read).unwrap();
        assert_eq!(&read, b"12345678");
        let hole = Gpa::new(LOW_RAM_LIMIT.get() - 4);
        assert_eq!(ram.read(hole, &mut read), Err(AccessError { gpa: hole, len: 8 }));
    }

    #[test]
    fn a_word_that_is_not_aligned_is_refused() {
        let gpa = Gpfn::new(1).unwrap().gpa().checked_add(2).unwrap();
        assert_eq!(ram().load_u32(gpa, SeqCst), Err(AccessError { gpa, len: 4 }));
    }
}
