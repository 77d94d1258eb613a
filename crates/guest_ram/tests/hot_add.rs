//! Memory that is added while the guest runs, and taken away again.

use std::os::unix::fs::FileExt;

use guest_ram::{AddError, DiscardError, GuestRam, MemoryKind, RamConfig};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

const BOOT: u64 = 4096;
/// Where added memory begins: 4 GiB.
const BASE: u64 = 1 << 20;
/// Pages in 2 MiB.
const BLOCK: u64 = 512;

fn ram(capacity: u64, max_pieces: u32) -> GuestRam {
    ram_of(MemoryKind::Anonymous, capacity, max_pieces)
}

fn ram_of(kind: MemoryKind, capacity: u64, max_pieces: u32) -> GuestRam {
    let (size, hot_add) = (PageCount::new(BOOT), PageCount::new(capacity));
    GuestRam::new(&RamConfig { size, kind, hot_add, max_pieces, ..Default::default() }).unwrap()
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

/// Adds pages that begin `offset` pages behind the base; returns the new regions.
fn add(
    ram: &GuestRam,
    offset: u64,
    count: u64,
    alignment: u64,
) -> Result<Vec<PageRange>, AddError> {
    let range = pages(BASE + offset, count);
    let regions = ram.add(range, PageCount::new(offset), PageCount::new(alignment))?;
    Ok(regions.iter().map(|region| region.range()).collect())
}

fn remove(ram: &GuestRam, offset: u64, count: u64) -> Vec<PageRange> {
    let gone = ram.remove(pages(BASE + offset, count)).unwrap();
    gone.iter().map(|region| region.range()).collect()
}

/// All that [`GuestRam::memory`] shows, without boot RAM.
fn visible(ram: &GuestRam) -> PageRangeSet {
    let memory = ram.memory();
    memory.iter().map(|region| region.range()).filter(|range| range.start().get() > 0).collect()
}

fn set(ranges: &[PageRange]) -> PageRangeSet {
    ranges.iter().copied().collect()
}

fn address(page: u64) -> GuestAddress {
    GuestAddress(page * 4096)
}

#[test]
fn a_region_is_one_block_where_there_are_enough_pieces() {
    let ram = ram(8 * BLOCK, 8);
    let new = add(&ram, BLOCK, 2 * BLOCK, BLOCK).unwrap();
    assert_eq!(new, [pages(BASE + BLOCK, BLOCK), pages(BASE + 2 * BLOCK, BLOCK)]);
    assert_eq!(visible(&ram), set(&new));
    assert_eq!(ram.regions().len(), 3);
    assert_eq!(ram.boot_regions().len(), 1);
}

#[test]
fn regions_grow_where_there_are_too_few_pieces_and_the_last_is_cut() {
    // Seven blocks in three pieces are three, three and one.
    let ram = ram(7 * BLOCK, 3);
    assert_eq!(add(&ram, 0, BLOCK, BLOCK).unwrap(), [pages(BASE, 3 * BLOCK)]);
    assert_eq!(add(&ram, BLOCK, BLOCK, BLOCK).unwrap(), []);
    let rest = [pages(BASE + 3 * BLOCK, 3 * BLOCK), pages(BASE + 6 * BLOCK, BLOCK)];
    assert_eq!(add(&ram, 2 * BLOCK, 5 * BLOCK, BLOCK).unwrap(), rest);
}

#[test]
fn new_readers_see_added_memory_and_old_ones_do_not() {
    let ram = ram(BLOCK, 1);
    let before = ram.memory();
    let gpa = GuestAddress(BASE * 4096 + 8);
    assert!(before.write_obj(7_u8, gpa).is_err());
    add(&ram, 0, BLOCK, BLOCK).unwrap();
    let kept = ram.snapshot();
    kept.write_obj(7_u8, gpa).unwrap();
    assert_eq!(ram.memory().read_obj::<u8>(gpa).unwrap(), 7);
    assert!(before.read_obj::<u8>(gpa).is_err());
}

#[test]
fn each_region_has_its_own_memory_at_a_fitting_host_address() {
    for kind in [MemoryKind::Anonymous, MemoryKind::Memfd] {
        let ram = ram_of(kind, 4 * BLOCK, 4);
        add(&ram, 0, 4 * BLOCK, BLOCK).unwrap();
        for block in 0..4 {
            ram.memory().write_obj(block + 1, address(BASE + block * BLOCK)).unwrap();
        }
        for (block, region) in (0..).zip(ram.regions().into_iter().skip(1)) {
            let host = region.get_host_address(MemoryRegionAddress(0)).unwrap() as u64;
            assert_eq!(host % (2 << 20), region.start_addr().0 % (2 << 20));
            assert_eq!(region.read_obj::<u64>(MemoryRegionAddress(0)).unwrap(), block + 1);
            let end = MemoryRegionAddress(region.len());
            assert!(region.get_slice(end, 1).is_err());
            assert!(region.get_host_address(end).is_err());
        }
    }
}

/// What another process that is handed the memfd finds.
#[test]
fn a_memfd_says_where_each_region_is_in_it() {
    let ram = ram_of(MemoryKind::Memfd, 4 * BLOCK, 8);
    add(&ram, BLOCK, 2 * BLOCK, BLOCK).unwrap();
    for region in ram.regions() {
        region.write_slice(b"here", MemoryRegionAddress(4096)).unwrap();
        let file = region.file_offset().unwrap();
        let mut found = [0; 4];
        file.file().read_exact_at(&mut found, file.start() + 4096).unwrap();
        assert_eq!(&found, b"here", "{}", region.range());
    }
    let anonymous = ram_of(MemoryKind::Anonymous, 0, 0);
    assert!(anonymous.regions().iter().all(|region| region.file_offset().is_none()));
}

#[test]
fn capacity_beyond_all_memory_costs_nothing() {
    let tebibyte = 1 << 28;
    let ram = ram(tebibyte, 16_384);
    let last = tebibyte - BLOCK;
    // 1 TiB in 16384 pieces is 64 MiB for each.
    let piece = 32 * BLOCK;
    assert_eq!(add(&ram, last, BLOCK, BLOCK).unwrap(), [pages(BASE + tebibyte - piece, piece)]);
    ram.memory().write_obj(1_u8, address(BASE + last)).unwrap();
}

#[test]
fn a_removed_region_leaves_and_comes_back_empty_after_its_discard() {
    for kind in [MemoryKind::Anonymous, MemoryKind::Memfd] {
        let ram = ram_of(kind, 4 * BLOCK, 4);
        add(&ram, 0, 2 * BLOCK, BLOCK).unwrap();
        ram.memory().write_obj(0xa5_u8, address(BASE + BLOCK)).unwrap();
        assert_eq!(remove(&ram, BLOCK, BLOCK), [pages(BASE + BLOCK, BLOCK)]);
        assert_eq!(visible(&ram), set(&[pages(BASE, BLOCK)]));
        assert!(ram.memory().read_obj::<u8>(address(BASE + BLOCK)).is_err());
        ram.discard(&[pages(BASE + BLOCK, BLOCK)]).unwrap();
        add(&ram, BLOCK, BLOCK, BLOCK).unwrap();
        assert_eq!(ram.memory().read_obj::<u8>(address(BASE + BLOCK)).unwrap(), 0);
    }
}

#[test]
fn a_region_stays_until_nothing_is_left_in_it() {
    let ram = ram(4 * BLOCK, 1);
    assert_eq!(add(&ram, 0, 2 * BLOCK, BLOCK).unwrap(), [pages(BASE, 4 * BLOCK)]);
    assert_eq!(remove(&ram, 0, BLOCK), []);
    assert_eq!(remove(&ram, BLOCK, BLOCK), [pages(BASE, 4 * BLOCK)]);
    assert!(visible(&ram).is_empty());
}

#[test]
fn what_was_removed_lives_while_somebody_holds_it() {
    let ram = ram(BLOCK, 1);
    let held = ram.add(pages(BASE, BLOCK), PageCount::ZERO, PageCount::new(BLOCK)).unwrap();
    remove(&ram, 0, BLOCK);
    drop(ram);
    held[0].write_obj(3_u8, MemoryRegionAddress(5)).unwrap();
    assert_eq!(held[0].read_obj::<u8>(MemoryRegionAddress(5)).unwrap(), 3);
}

#[test]
fn a_region_and_its_successor_at_the_same_place_are_the_same_memory() {
    let ram = ram(BLOCK, 1);
    let add = || ram.add(pages(BASE, BLOCK), PageCount::ZERO, PageCount::new(BLOCK)).unwrap();
    let old = add().remove(0);
    let snapshot = ram.memory();
    remove(&ram, 0, BLOCK);
    let new = add().remove(0);
    old.write_obj(3_u8, MemoryRegionAddress(5)).unwrap();
    assert_eq!(new.read_obj::<u8>(MemoryRegionAddress(5)).unwrap(), 3);
    ram.discard(&[pages(BASE, BLOCK)]).unwrap();
    assert_eq!(old.read_obj::<u8>(MemoryRegionAddress(5)).unwrap(), 0);
    // A snapshot alone keeps all of it mapped.
    drop((ram, old, new));
    snapshot.write_obj(4_u8, address(BASE)).unwrap();
    assert_eq!(snapshot.read_obj::<u8>(address(BASE)).unwrap(), 4);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let none = ram(0, 8);
    assert!(matches!(add(&none, 0, BLOCK, BLOCK), Err(AddError::Capacity { .. })));

    let ram = ram(4 * BLOCK, 4);
    let try_add = |start, offset, count| {
        let alignment = PageCount::new(BLOCK);
        ram.add(pages(start, count), PageCount::new(offset), alignment).map(|_| ())
    };
    assert!(matches!(try_add(BASE, BLOCK, 4 * BLOCK), Err(AddError::Capacity { .. })));
    assert!(matches!(try_add(BASE, u64::MAX, BLOCK), Err(AddError::Capacity { .. })));
    assert!(matches!(try_add(0, BLOCK, BLOCK), Err(AddError::AddressSpace { .. })));
    let top = Gpfn::MAX.get();
    assert!(matches!(try_add(top - BLOCK, 0, BLOCK), Err(AddError::AddressSpace { .. })));
    assert!(matches!(try_add(BOOT - BLOCK, 0, BLOCK), Err(AddError::Occupied(_))));
    assert!(visible(&ram).is_empty());
    assert!(ram.remove(pages(BASE, 1)).is_err());

    // None of these decided where added memory lies.
    try_add(BASE, 0, BLOCK).unwrap();
    assert!(matches!(try_add(BASE, BLOCK, BLOCK), Err(AddError::Elsewhere { .. })));
    assert_eq!(visible(&ram), set(&[pages(BASE, BLOCK)]));
    assert!(matches!(ram.remove(pages(BOOT - 1, 1)), Err(DiscardError::NotRam(_))));
    assert!(matches!(ram.remove(pages(BASE, 4 * BLOCK + 1)), Err(DiscardError::NotRam(_))));
}

#[test]
fn pieces_of_changed_alignments_have_their_bound() {
    let ram = ram(8 * BLOCK, 4);
    add(&ram, 0, BLOCK, BLOCK).unwrap();
    add(&ram, 4 * BLOCK, BLOCK, 4 * BLOCK).unwrap();
    // Two blocks each, and the last four are there.
    assert_eq!(add(&ram, 2 * BLOCK, BLOCK, BLOCK).unwrap(), [pages(BASE + 2 * BLOCK, 2 * BLOCK)]);
    assert_eq!(ram.regions().len(), 4);

    let none = self::ram(BLOCK, 0);
    assert!(matches!(add(&none, 0, 1, 1), Err(AddError::TooManyPieces { .. })));
    assert!(visible(&none).is_empty());
}

/// An addition, or a removal, of some of the pages that can be added.
fn operations() -> impl Strategy<Value = Vec<(bool, u64, u64)>> {
    let operation = (any::<bool>(), 0..CAPACITY, 1..200_u64)
        .prop_map(|(adds, start, count)| (adds, start, count.min(CAPACITY - start)));
    prop::collection::vec(operation, 1..30)
}

const CAPACITY: u64 = 1000;

proptest! {
    #[test]
    fn added_pages_are_there_and_regions_bounded(
        operations in operations(),
        max_pieces in 1..40_u32,
        alignment in 1..130_u64,
    ) {
        let ram = ram(CAPACITY, max_pieces);
        let mut wanted = vec![false; usize::try_from(CAPACITY).unwrap()];
        let piece = CAPACITY.div_ceil(max_pieces.into()).next_multiple_of(alignment);
        for (adds, start, count) in operations {
            let before = visible(&ram);
            let changed = if adds {
                add(&ram, start, count, alignment).unwrap()
            } else if before.is_empty() {
                continue;
            } else {
                remove(&ram, start, count)
            };
            for page in start..start + count {
                wanted[usize::try_from(page).unwrap()] = adds;
            }
            let now = visible(&ram);
            for page in 0..CAPACITY {
                let around = page / piece * piece..(page / piece * piece + piece).min(CAPACITY);
                let any = around.into_iter().any(|page| wanted[usize::try_from(page).unwrap()]);
                prop_assert_eq!(now.contains(Gpfn::new(BASE + page).unwrap()), any);
            }
            let mut expected = before;
            for range in changed {
                let pages = if adds { expected.insert(range) } else { expected.remove(range) };
                prop_assert_eq!(pages, range.count());
            }
            prop_assert_eq!(&now, &expected);
            let regions = ram.regions();
            prop_assert!(regions.len() <= max_pieces as usize + 1);
            prop_assert_eq!(regions.len(), ram.memory().num_regions());
        }
    }
}
