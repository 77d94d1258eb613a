//! Where QEMU's PC machines put memory that is added, and what `maxmem` that takes.
//!
//! From QEMU's `hw/i386/pc.c`, `pc_q35.c`, `pc_piix.c` and `hw/mem/memory-device.c`: the region for
//! memory devices begins at the first GiB above the boot memory and has `maxmem` less that memory, and
//! a GiB for each slot. `hw/hyperv/hv-balloon.c` wants its memory at a multiple of 32 GiB, since a
//! guest may ask for such an alignment later.

use crate::description::Chipset;
use crate::size::GIB;

/// What hv-balloon wants its memory aligned to, in bytes.
const ALIGNMENT: u64 = 32 * GIB;

/// The smallest `maxmem`, in whole GiB, in which hv-balloon finds a place for `added` bytes; `None`
/// for machines whose layout is not known, and sizes beyond all measure.
pub(crate) fn least_maxmem(chipset: &Chipset, boot: u64, slots: u64, added: u64) -> Option<u64> {
    // The boot memory that is below 4 GiB: all, or what is left if it does not fit.
    let (fits, left) = match chipset {
        Chipset::Q35 => (0xb000_0000, 2 * GIB),
        Chipset::I440fx => (0xe000_0000, 3 * GIB),
        Chipset::Other(_) | Chipset::Unknown => return None,
    };
    let low = if boot < fits { boot } else { left };
    let base = (4 * GIB).checked_add(boot - low)?.checked_next_multiple_of(GIB)?;
    let place = base.checked_next_multiple_of(ALIGNMENT)?;
    let region = place.checked_add(added)? - base;
    // The slots' GiBs are part of the region, and no memory for devices.
    let beyond = region.saturating_sub(slots.checked_mul(GIB)?).max(added);
    boot.checked_add(beyond)?.checked_next_multiple_of(GIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alignment_decides_for_small_machines() {
        // Debian's QEMU 10.0.2 accepts these, with a warning of the alignment, and refuses a GiB less.
        let q35 = |boot, slots, added| least_maxmem(&Chipset::Q35, boot * GIB, slots, added * GIB);
        assert_eq!(q35(1, 2, 2), Some(29 * GIB));
        assert_eq!(q35(1, 0, 2), Some(31 * GIB));
        assert_eq!(q35(4, 0, 4), Some(34 * GIB));
        let pc =
            |boot, slots, added| least_maxmem(&Chipset::I440fx, boot * GIB, slots, added * GIB);
        assert_eq!(pc(4, 0, 4), Some(35 * GIB));
        // Not tried, for want of such a host.
        assert_eq!(pc(1, 255, 200), Some(201 * GIB), "the memory must fit as well");
    }

    #[test]
    fn sizes_beyond_measure_are_no_panic() {
        for boot in [0, 1, u64::MAX] {
            for (slots, added) in [(0, u64::MAX), (u64::MAX, 0), (u64::MAX, u64::MAX)] {
                let _ = least_maxmem(&Chipset::Q35, boot, slots, added);
            }
        }
        assert_eq!(least_maxmem(&Chipset::Unknown, GIB, 0, GIB), None);
    }
}
