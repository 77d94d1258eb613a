//! The place of boot RAM in the guest's physical address space.

use page_range::{Gpa, PageCount, PageRange};

/// First address of the hole below 4 GiB that holds the local APICs and the I/O APIC.
pub const LOW_RAM_LIMIT: Gpa = Gpa::new(3 << 30);

/// Where RAM continues above the hole.
pub const HIGH_RAM_START: Gpa = Gpa::new(4 << 30);

/// The ranges of `size` pages of boot RAM: from address 0 up to the hole, and the rest from 4 GiB
/// up. Omits the upper range if it would leave the address space.
#[must_use]
pub fn boot_ram_ranges(size: PageCount) -> Vec<PageRange> {
    let low = size.get().min(LOW_RAM_LIMIT.get() / page_range::PAGE_SIZE);
    let high = size.saturating_sub(PageCount::new(low));
    [(Gpa::new(0), PageCount::new(low)), (HIGH_RAM_START, high)]
        .into_iter()
        .filter(|(_, count)| !count.is_zero())
        .filter_map(|(start, count)| PageRange::new(start.gpfn()?, count).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_mib(size_mib: u64) -> Vec<(u64, u64)> {
        boot_ram_ranges(PageCount::from_bytes(size_mib << 20))
            .iter()
            .map(|range| (range.start().gpa().get() >> 20, range.count().bytes() >> 20))
            .collect()
    }

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(in_mib(512), [(0, 512)]);
        assert_eq!(in_mib(3072), [(0, 3072)]);
        assert_eq!(in_mib(4096), [(0, 3072), (4096, 1024)]);
        assert_eq!(in_mib(0), []);
    }
}
