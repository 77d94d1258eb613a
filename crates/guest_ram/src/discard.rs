//! Errors of discarding pages and of providing them again.

use std::io;

use page_range::{PageCount, PageRange};
use thiserror::Error;

use crate::PoolError;

/// Pages could not be given back to the host.
#[derive(Debug, Error)]
pub enum DiscardError {
    /// The range holds a page that is not guest RAM.
    #[error("pages {0} are not all guest RAM")]
    NotRam(PageRange),
    /// The pages are mapped read-only, so their content must not change.
    #[error("pages {0} are read-only memory")]
    ReadOnly(PageRange),
    /// The range begins or ends inside a huge page.
    #[error("pages {range} are not whole huge pages of {unit} pages")]
    Unaligned {
        /// The pages.
        range: PageRange,
        /// Pages of 4 KiB in a huge page.
        unit: PageCount,
    },
    /// The system call failed.
    #[error("cannot give pages {range} back to the host")]
    System {
        /// The pages.
        range: PageRange,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Discarded pages could not be allocated again. None were.
#[derive(Debug, Error)]
pub enum ProvideError {
    /// The range holds a page that is not guest RAM.
    #[error("pages {0} are not all guest RAM")]
    NotRam(PageRange),
    /// The range begins or ends inside a huge page.
    #[error("pages {range} are not whole huge pages of {unit} pages")]
    Unaligned {
        /// The pages.
        range: PageRange,
        /// Pages of 4 KiB in a huge page.
        unit: PageCount,
    },
    /// The host's pool has too few pages.
    #[error("cannot get memory for pages {range}")]
    Pool {
        /// The pages.
        range: PageRange,
        /// What the pool lacks.
        #[source]
        source: PoolError,
    },
    /// The system call failed.
    #[error("cannot get memory for pages {range}")]
    System {
        /// The pages.
        range: PageRange,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use page_range::{Gpfn, PageCount};
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::{GuestRam, HugePages, MemoryKind, RamConfig};

    fn ram(kind: MemoryKind) -> GuestRam {
        let size = PageCount::from_bytes(16 << 20);
        let huge_pages = HugePages::Off;
        GuestRam::new(&RamConfig { size, kind, huge_pages, ..Default::default() }).unwrap()
    }

    fn pages(start: u64, count: u64) -> PageRange {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    }

    fn fill(ram: &GuestRam) {
        ram.memory().write_slice(&vec![0xa5; 16 << 20], GuestAddress(0)).unwrap();
    }

    fn byte(ram: &GuestRam, page: u64) -> u8 {
        ram.memory().read_obj(GuestAddress(page * 4096)).unwrap()
    }

    #[test]
    fn discarded_pages_read_as_zeros_and_their_neighbours_stay() {
        for kind in [MemoryKind::Anonymous, MemoryKind::Memfd] {
            let ram = ram(kind);
            fill(&ram);
            ram.discard(&[pages(20, 5), pages(10, 10), pages(100, 1)]).unwrap();
            let zeros: Vec<u64> = (0..4096).filter(|page| byte(&ram, *page) == 0).collect();
            assert_eq!(zeros, (10..25).chain(100..101).collect::<Vec<_>>());
        }
    }

    #[test]
    fn free_pages_go_like_others_in_any_order_and_twice() {
        for kind in [MemoryKind::Anonymous, MemoryKind::Memfd] {
            let ram = ram(kind);
            fill(&ram);
            assert!(ram.can_discard_free());
            ram.discard_free(&[pages(1024, 512), pages(8, 2), pages(9, 3), pages(1024, 512)])
                .unwrap();
            ram.discard_free(&[pages(8, 1)]).unwrap();
            let zeros: Vec<u64> = (0..4096).filter(|page| byte(&ram, *page) == 0).collect();
            assert_eq!(zeros, (8..12).chain(1024..1536).collect::<Vec<_>>());
            // They are the guest's, and hold what it writes next.
            ram.memory().write_obj(7_u8, GuestAddress(8 * 4096)).unwrap();
            assert_eq!(byte(&ram, 8), 7);
        }
    }

    #[test]
    fn pages_outside_ram_are_refused_and_the_others_still_go() {
        let ram = ram(MemoryKind::Anonymous);
        fill(&ram);
        let result = ram.discard(&[pages(4095, 2), pages(7, 1)]);
        assert!(matches!(result, Err(DiscardError::NotRam(_))));
        assert_eq!(byte(&ram, 7), 0);
    }
}
