//! Memory that another VMM has mapped with `vm-memory`.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use guest_ram::{BorrowError, BorrowedRam, DiscardError, ProvideError};
use host_faults::Refusal;
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion,
};

const PAGE: u64 = 4096;
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_ANONYMOUS;

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

fn set(ranges: &[PageRange]) -> PageRangeSet {
    ranges.iter().copied().collect()
}

/// A file of so many pages, all of them filled with 0xf1, in memory as that of a VMM.
fn file(count: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.write_all_at(&vec![0xf1; bytes(count)], 0).unwrap();
    file
}

fn bytes(count: u64) -> usize {
    usize::try_from(count * PAGE).unwrap()
}

fn region(
    start: u64,
    count: u64,
    file: Option<FileOffset>,
    protection: i32,
    flags: i32,
) -> GuestRegionMmap {
    let mapping = MmapRegion::build(file, bytes(count), protection, flags).unwrap();
    GuestRegionMmap::new(mapping, GuestAddress(start * PAGE)).unwrap()
}

fn memory(regions: Vec<GuestRegionMmap>) -> GuestMemoryMmap {
    GuestMemoryMmap::from_regions(regions).unwrap()
}

fn mark(memory: &GuestMemoryMmap) {
    for page in all(memory) {
        memory.write_obj(0xa5_u8, GuestAddress(page * PAGE)).unwrap();
    }
}

fn byte(memory: &GuestMemoryMmap, page: u64) -> u8 {
    memory.read_obj(GuestAddress(page * PAGE)).unwrap()
}

/// The numbers of all pages.
fn all(memory: &GuestMemoryMmap) -> Vec<u64> {
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    let pages = ram.pages();
    pages.iter().flat_map(|range| range.start().get()..range.end().get()).collect()
}

/// The pages whose first byte is not as [`mark`] left them, with what they hold.
fn changed(memory: &GuestMemoryMmap) -> Vec<(u64, u8)> {
    let content = all(memory).into_iter().map(|page| (page, byte(memory, page)));
    content.filter(|(_, byte)| *byte != 0xa5).collect()
}

fn zeros(pages: impl IntoIterator<Item = u64>) -> Vec<(u64, u8)> {
    pages.into_iter().map(|page| (page, 0)).collect()
}

/// Kilobytes of the process in memory of this kind.
fn resident(kind: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
    line.trim_start_matches(':').trim_end_matches("kB").trim().parse().unwrap()
}

fn refusal(error: &dyn Error) -> &BorrowError {
    error.source().unwrap().downcast_ref().unwrap()
}

#[test]
fn anonymous_memory_loses_just_the_pages_given_whether_private_or_shared() {
    for sharing in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
        let memory = memory(vec![region(16, 1200, None, READ_WRITE, ANONYMOUS | sharing)]);
        let ram = BorrowedRam::new(memory.iter()).unwrap();
        assert_eq!((ram.pages(), ram.unit()), (set(&[pages(16, 1200)]), PageCount::new(1)));
        mark(&memory);
        let single: Vec<_> = (0..520).map(|index| pages(16 + 2 * index, 1)).collect();
        ram.discard(&single).unwrap();
        ram.discard(&[pages(1100, 50), pages(1090, 10)]).unwrap();
        let gone = (0..520).map(|index| 16 + 2 * index).chain(1090..1150);
        assert_eq!(changed(&memory), zeros(gone), "{sharing}");
        // There is no pool that they would have to come from.
        ram.provide(&[pages(16, 1200)]).unwrap();
    }
}

#[test]
fn discarded_memory_is_the_hosts() {
    for (sharing, kind) in [(libc::MAP_PRIVATE, "RssAnon"), (libc::MAP_SHARED, "RssShmem")] {
        // 64 MiB are more than all other tests have.
        let memory = memory(vec![region(0, 16 << 10, None, READ_WRITE, ANONYMOUS | sharing)]);
        let ram = BorrowedRam::new(memory.iter()).unwrap();
        mark(&memory);
        let before = resident(kind);
        ram.discard(&[pages(0, 16 << 10)]).unwrap();
        assert!(resident(kind) + (48 << 10) < before, "{kind}: {before}");
    }
}

#[test]
fn a_hole_is_punched_at_the_place_of_the_page_in_the_file() {
    let file = file(64);
    let allocated = |file: &File| file.metadata().unwrap().blocks() * 512 / PAGE;
    assert_eq!(allocated(&file), 64);
    let shared = FileOffset::new(file.try_clone().unwrap(), 16 * PAGE);
    let memory = memory(vec![region(256, 32, Some(shared), READ_WRITE, libc::MAP_SHARED)]);
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    mark(&memory);
    ram.discard(&[pages(256, 2), pages(280, 8)]).unwrap();
    // First, since looking at the pages allocates them again.
    assert_eq!(allocated(&file), 54);
    assert_eq!(changed(&memory), zeros((256..258).chain(280..288)));
    assert_eq!(file.metadata().unwrap().len(), 64 * PAGE);
    let first_bytes: Vec<u8> = (0..64)
        .map(|page| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, page * PAGE).unwrap();
            byte[0]
        })
        .collect();
    let expected = [vec![0xf1; 16], vec![0; 2], vec![0xa5; 22], vec![0; 8], vec![0xf1; 16]];
    assert_eq!(first_bytes, expected.concat());
}

#[test]
fn the_file_behind_a_private_mapping_stays_as_it_is() {
    let file = file(8);
    let private = FileOffset::new(file.try_clone().unwrap(), 0);
    let memory = memory(vec![region(0, 8, Some(private), READ_WRITE, libc::MAP_PRIVATE)]);
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    mark(&memory);
    ram.discard(&[pages(2, 3)]).unwrap();
    assert_eq!(changed(&memory), [(2, 0xf1), (3, 0xf1), (4, 0xf1)]);
    let mut content = vec![0; bytes(8)];
    file.read_exact_at(&mut content, 0).unwrap();
    assert!(content.iter().all(|byte| *byte == 0xf1));
}

/// `vm-memory` keeps a file that `mmap` was told to ignore.
#[test]
fn a_file_that_does_not_back_the_memory_is_not_touched() {
    for sharing in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
        let file = file(8);
        let unused = FileOffset::new(file.try_clone().unwrap(), 0);
        let flags = ANONYMOUS | sharing;
        let memory = memory(vec![region(0, 8, Some(unused), READ_WRITE, flags)]);
        mark(&memory);
        BorrowedRam::new(memory.iter()).unwrap().discard(&[pages(0, 8)]).unwrap();
        assert_eq!(changed(&memory), zeros(0..8));
        let mut content = vec![0; bytes(8)];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content.iter().all(|byte| *byte == 0xf1));
    }
}

#[test]
fn a_range_may_cross_from_one_region_to_the_next_of_another_kind() {
    let shared = Some(FileOffset::new(file(32), 0));
    let memory = memory(vec![
        region(0, 16, None, READ_WRITE, ANONYMOUS | libc::MAP_PRIVATE),
        region(16, 32, shared, READ_WRITE, libc::MAP_SHARED),
        region(48, 16, None, READ_WRITE, ANONYMOUS | libc::MAP_SHARED),
    ]);
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    mark(&memory);
    ram.discard(&[pages(14, 4), pages(40, 16)]).unwrap();
    assert_eq!(changed(&memory), zeros((14..18).chain(40..56)));
}

#[test]
fn pages_outside_are_named_and_the_others_go() {
    let anonymous = ANONYMOUS | libc::MAP_PRIVATE;
    let memory = memory(vec![
        region(0, 16, None, READ_WRITE, anonymous),
        region(32, 16, None, READ_WRITE, anonymous),
    ]);
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    mark(&memory);
    for outside in [pages(12, 24), pages(20, 2), pages(44, 8), pages(1 << 30, 1)] {
        let ranges = [pages(2, 1), outside];
        let error = ram.discard(&ranges).unwrap_err();
        assert!(matches!(error, DiscardError::NotRam(range) if range == outside), "{error}");
        assert!(error.to_string().contains(&outside.to_string()), "{error}");
        let error = ram.provide(&ranges).unwrap_err();
        assert!(matches!(error, ProvideError::NotRam(range) if range == outside), "{error}");
    }
    assert_eq!(changed(&memory), zeros([2]));
    ram.discard(&[]).unwrap();
}

#[test]
fn read_only_memory_keeps_its_content() {
    let rom = FileOffset::new(file(16), 0);
    let memory = memory(vec![
        region(0, 16, None, READ_WRITE, ANONYMOUS | libc::MAP_PRIVATE),
        region(16, 16, Some(rom), libc::PROT_READ, libc::MAP_SHARED),
    ]);
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    memory.write_obj(7_u8, GuestAddress(15 * PAGE)).unwrap();
    let error = ram.discard(&[pages(15, 2)]).unwrap_err();
    assert!(matches!(error, DiscardError::ReadOnly(range) if range == pages(16, 1)), "{error}");
    assert_eq!([15, 16].map(|page| byte(&memory, page)), [0, 0xf1]);
}

#[test]
fn memory_stays_mapped_until_it_is_removed_here() {
    let mapping = Arc::new(MmapRegion::<()>::new(bytes(16)).unwrap());
    let weak = Arc::downgrade(&mapping);
    let region = GuestRegionMmap::with_arc(mapping, GuestAddress(0)).unwrap();
    let mut ram = BorrowedRam::new([&region]).unwrap();
    drop(region);
    ram.discard(&[pages(0, 16)]).unwrap();
    assert!(weak.upgrade().is_some());

    assert!(!ram.remove(pages(0, 8)));
    assert!(ram.remove(pages(0, 16)));
    assert!(weak.upgrade().is_none());
    assert!(matches!(ram.discard(&[pages(0, 1)]), Err(DiscardError::NotRam(_))));
}

#[test]
fn regions_come_and_go_in_any_order_and_do_not_overlap() {
    let anonymous = ANONYMOUS | libc::MAP_PRIVATE;
    let [high, low, across] = [(64, 16), (0, 16), (8, 60)]
        .map(|(start, count)| region(start, count, None, READ_WRITE, anonymous));
    let mut ram = BorrowedRam::default();
    ram.insert(&high).unwrap();
    ram.insert(&low).unwrap();
    let error = ram.insert(&across).unwrap_err();
    assert!(matches!(refusal(&error), BorrowError::Overlap), "{error}");
    assert_eq!(error.start.get(), 8 * PAGE);
    assert_eq!(ram.pages(), set(&[pages(0, 16), pages(64, 16)]));
    ram.discard(&[pages(64, 1), pages(0, 1)]).unwrap();
    assert!(ram.remove(pages(0, 16)) && ram.remove(pages(64, 16)));
    ram.insert(&across).unwrap();
}

#[test]
fn what_is_not_whole_pages_or_not_addressable_is_refused() {
    let at = |start, size| {
        let mapping = MmapRegion::<()>::new(size).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(start)).unwrap();
        BorrowedRam::new([&region]).map(|_| ())
    };
    for (start, size) in [(0x400, 0x1000), (0, 0x1400), (0x800, 0x800)] {
        let error = at(start, size).unwrap_err();
        assert!(matches!(refusal(&error), BorrowError::NotWhole { .. }), "{error}");
    }
    for start in [Gpfn::MAX.get() - 1, Gpfn::MAX.get(), 1 << 50] {
        let error = at(start * PAGE, 0x2000).unwrap_err();
        assert!(matches!(refusal(&error), BorrowError::AddressSpace), "{error}");
    }
    at((Gpfn::MAX.get() - 2) * PAGE, 0x2000).unwrap();
}

#[test]
fn a_bitmap_of_dirty_pages_is_no_hindrance() {
    let ranges = [(GuestAddress(0), bytes(16))];
    let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&ranges).unwrap();
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    memory.write_obj(1_u8, GuestAddress(0)).unwrap();
    ram.discard(&[pages(0, 1)]).unwrap();
    assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
}

#[test]
fn what_the_kernel_refuses_is_told_by_its_pages() {
    let shared = Some(FileOffset::new(file(16), 0));
    let memory = memory(vec![
        region(0, 16, None, READ_WRITE, ANONYMOUS | libc::MAP_PRIVATE),
        region(16, 16, shared, READ_WRITE, libc::MAP_SHARED),
    ]);
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    mark(&memory);
    let hole = Refusal::of(libc::SYS_fallocate, libc::EOPNOTSUPP);
    let ranges = [pages(3, 1), pages(20, 2)];
    let error = host_faults::with(&[hole], || ram.discard_or_undo(&ranges).unwrap_err());
    assert!(matches!(error, DiscardError::System { range, .. } if range == ranges[1]), "{error}");
    let source: &io::Error = error.source().unwrap().downcast_ref().unwrap();
    assert_eq!(source.raw_os_error(), Some(libc::EOPNOTSUPP));
    assert_eq!(changed(&memory), zeros([3]));
}

/// Its memory belongs to whoever made the pointer, who may unmap it at any time.
#[test]
#[expect(unsafe_code, reason = "makes what has to be refused")]
fn memory_that_nobody_keeps_mapped_is_refused() {
    let owner = MmapRegion::<()>::new(bytes(4)).unwrap();
    let flags = ANONYMOUS | libc::MAP_PRIVATE;
    // SAFETY: `owner` has this memory mapped until the end of the test.
    let raw = unsafe { MmapRegion::<()>::build_raw(owner.as_ptr(), bytes(4), READ_WRITE, flags) };
    let region = GuestRegionMmap::new(raw.unwrap(), GuestAddress(PAGE)).unwrap();
    let error = BorrowedRam::new([&region]).unwrap_err();
    assert!(matches!(refusal(&error), BorrowError::RawAddress), "{error}");
    assert_eq!(error.start.get(), PAGE);
}
