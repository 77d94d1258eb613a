//! The table by which the kernel finds guest memory.

use guest_ram::RamRegion;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{
    Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection, MemoryRegionAddress,
};

use crate::queue::Rings;

/// The pieces of guest memory, lowest first. Regions that are adjacent in the guest and in the host are
/// one piece, since the kernel has room for few (64, if not told otherwise).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table(Vec<Piece>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    guest: u64,
    host: u64,
    len: u64,
}

impl Table {
    pub(super) fn of(memory: &GuestRegionCollection<RamRegion>) -> Self {
        let piece = |region: &RamRegion| {
            let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
            let host = u64::try_from(host.addr()).ok()?;
            Some(Piece { guest: region.start_addr().raw_value(), host, len: region.len() })
        };
        Self::merged(memory.iter().filter_map(piece))
    }

    fn merged(pieces: impl Iterator<Item = Piece>) -> Self {
        let mut merged: Vec<Piece> = Vec::new();
        for piece in pieces {
            let follows = |last: &&mut Piece| {
                last.guest.checked_add(last.len) == Some(piece.guest)
                    && last.host.checked_add(last.len) == Some(piece.host)
            };
            match merged.last_mut().filter(follows) {
                // Two parts of the address space, which do not overlap.
                Some(last) => last.len = last.len.saturating_add(piece.len),
                None => merged.push(piece),
            }
        }
        Self(merged)
    }

    /// Whether each part of each ring (virtio 1.2, 2.7) is in one piece.
    pub(super) fn holds_all(&self, rings: &[Rings]) -> bool {
        rings.iter().all(|rings| {
            let size = u64::from(rings.size);
            self.holds(rings.descriptors, 16 * size)
                && self.holds(rings.avail, 6 + 2 * size)
                && self.holds(rings.used, 6 + 8 * size)
        })
    }

    fn holds(&self, address: u64, len: u64) -> bool {
        self.0.iter().any(|piece| {
            let offset = address.checked_sub(piece.guest);
            offset.and_then(|offset| piece.len.checked_sub(offset)).is_some_and(|left| len <= left)
        })
    }

    /// The entries as the kernel takes them.
    pub(super) fn pieces(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let entry = |piece: &Piece| VhostUserMemoryRegionInfo {
            guest_phys_addr: piece.guest,
            memory_size: piece.len,
            userspace_addr: piece.host,
            ..VhostUserMemoryRegionInfo::default()
        };
        self.0.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use guest_ram::{GuestRam, RamConfig};
    use page_range::{Gpfn, PageCount, PageRange};
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 128 << 8;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
    }

    #[test]
    fn added_blocks_side_by_side_are_one_piece_and_one_that_is_removed_cuts_it() {
        let blocks = 8;
        let ram = GuestRam::new(&RamConfig {
            size: PageCount::new(BLOCK),
            hot_add: PageCount::new(blocks * BLOCK),
            max_pieces: 64,
            ..RamConfig::default()
        })
        .unwrap();
        let table = || Table::of(&ram.memory());
        assert_eq!(table().0.len(), 1);
        let block = |number| range((1 + number) * BLOCK, BLOCK);
        for number in 0..blocks {
            let offset = PageCount::new(number * BLOCK);
            ram.add(block(number), offset, PageCount::new(BLOCK)).unwrap();
        }
        assert_eq!(ram.regions().len(), 9);
        // Boot memory is a mapping of its own; the kernel may have put both side by side.
        let whole = table().0.len();
        assert!(whole <= 2, "{:?}", table());
        let address = block(3).start().gpa().get();
        assert!(table().holds(address - 1, 2));
        ram.remove(block(3)).unwrap();
        assert_eq!(table().0.len(), whole + 1);
        assert!(!table().holds(address - 1, 2) && !table().holds(address, 1));
        assert!(table().holds(address - 1, 1));
        let total: u64 = table().pieces().iter().map(|piece| piece.memory_size).sum();
        assert_eq!(total, 8 * BLOCK * 4096);
    }

    #[test]
    fn a_ring_must_not_leave_its_piece() {
        // Side by side in the guest, and not in the host.
        let pieces = [
            Piece { guest: 0x1000, host: 0x7000_0000, len: 0x2000 },
            Piece { guest: 0x3000, host: 0x9000_0000, len: 0x2000 },
        ];
        let table = Table::merged(pieces.into_iter());
        let rings =
            |descriptors, avail, used| Rings { size: 16, descriptors, avail, used, next_avail: 0 };
        let inside = rings(0x1000, 0x3000 - 38, 0x5000 - 134);
        assert!(table.holds_all(&[inside]));
        for (ring, is_inside) in [
            (rings(0x2f10, inside.avail, inside.used), false),
            (rings(0x2f00, inside.avail, inside.used), true),
            (rings(0xfff, inside.avail, inside.used), false),
            (rings(inside.descriptors, 0x3000 - 36, inside.used), false),
            (rings(inside.descriptors, inside.avail, 0x5000 - 132), false),
            (rings(u64::MAX - 15, inside.avail, inside.used), false),
        ] {
            assert_eq!(table.holds_all(&[inside, ring]), is_inside, "{ring:x?}");
        }
    }

    proptest! {
        /// The merged table has the same bytes at the same places, and no two pieces that could be one.
        #[test]
        fn merging_changes_no_translation(
            gaps in prop::collection::vec((0_u64..3, 0_u64..3, 1_u64..4), 1..20)
        ) {
            let (mut guest, mut host) = (0, 0x1000);
            let pieces: Vec<Piece> = gaps
                .into_iter()
                .map(|(guest_gap, host_gap, len)| {
                    let piece = Piece { guest: guest + guest_gap, host: host + host_gap, len };
                    (guest, host) = (piece.guest + len, piece.host + len);
                    piece
                })
                .collect();
            let bytes = |pieces: &[Piece]| -> Vec<(u64, u64)> {
                let each = pieces.iter();
                each.flat_map(|it| (0..it.len).map(|at| (it.guest + at, it.host + at))).collect()
            };
            let Table(merged) = Table::merged(pieces.iter().copied());
            prop_assert_eq!(bytes(&merged), bytes(&pieces));
            for pair in merged.windows(2) {
                let (last, next) = (pair[0], pair[1]);
                prop_assert!(
                    last.guest + last.len != next.guest || last.host + last.len != next.host
                );
            }
        }
    }
}
