//! A kernel that refuses. The system calls fail for real, by a filter; see `host_faults`.

use std::error::Error;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use guest_ram::{DiscardError, GuestRam, MemoryKind, RamConfig, RamError, RamPart};
use host_faults::Refusal;
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

const MIB: u64 = 1 << 20;
const BOOT: u64 = 64 * MIB;

/// Descriptors and mappings are the process's, and a test counts them.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(kind: MemoryKind) -> RamConfig {
    RamConfig {
        size: PageCount::from_bytes(BOOT),
        kind,
        hot_add: PageCount::from_bytes(1 << 40),
        max_pieces: 8,
        ..Default::default()
    }
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

fn flag(flag: libc::c_int) -> u64 {
    u64::try_from(flag).unwrap()
}

/// A mapping that guest memory is made by, but not one that an allocator or a thread needs.
fn of_guest_memory(errno: libc::c_int) -> Refusal {
    Refusal::of(libc::SYS_mmap, errno).with_flag(3, flag(libc::MAP_NORESERVE))
}

fn discards(errno: libc::c_int) -> [Refusal; 3] {
    [
        Refusal::of(libc::SYS_madvise, errno),
        Refusal::of(libc::SYS_process_madvise, errno),
        Refusal::of(libc::SYS_fallocate, errno),
    ]
}

fn refused(refusals: &[Refusal], kind: MemoryKind) -> RamError {
    host_faults::with(refusals, || GuestRam::new(&config(kind)).unwrap_err())
}

fn cause(error: &dyn Error) -> Option<i32> {
    error.source()?.downcast_ref::<io::Error>()?.raw_os_error()
}

/// What this process has mapped and opened.
fn holdings() -> (u64, usize) {
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    let mapped = status.split(' ').next().unwrap().parse().unwrap();
    (mapped, fs::read_dir("/proc/self/fd").unwrap().count())
}

fn mark(ram: &GuestRam) {
    for page in 0..BOOT >> 12 {
        ram.memory().write_obj(0xa5_u8, GuestAddress(page << 12)).unwrap();
    }
}

fn marked(ram: &GuestRam) -> Vec<u64> {
    let is_marked =
        |page: &u64| ram.memory().read_obj::<u8>(GuestAddress(page << 12)).unwrap() != 0;
    (0..BOOT >> 12).filter(is_marked).collect()
}

#[test]
fn memory_that_cannot_be_mapped_is_told_with_its_size_and_leaves_nothing() {
    let _turn = turn();
    let fixed = of_guest_memory(libc::ENOMEM).with_flag(3, flag(libc::MAP_FIXED));
    let cases = [
        (of_guest_memory(libc::ENOMEM), MemoryKind::Anonymous, libc::ENOMEM),
        (fixed.clone(), MemoryKind::Anonymous, libc::ENOMEM),
        (fixed, MemoryKind::Memfd, libc::ENOMEM),
        (Refusal::of(libc::SYS_memfd_create, libc::EMFILE), MemoryKind::Memfd, libc::EMFILE),
        (Refusal::of(libc::SYS_ftruncate, libc::EFBIG), MemoryKind::Memfd, libc::EFBIG),
    ];
    // Whatever the first threads of a process leave behind is there by now.
    host_faults::with(&[], || ());
    let (mapped, descriptors) = holdings();
    for (refusal, kind, errno) in cases {
        let error = refused(std::slice::from_ref(&refusal), kind);
        assert_eq!(cause(&error), Some(errno), "{refusal:?}");
        let text = error.to_string();
        assert!(text.contains("67108864 bytes for the guest's boot memory"), "{text}");
    }
    // Only what can be added has this size: what boots was mapped by then, and is let go of.
    let added = of_guest_memory(libc::ENOMEM).with_argument(1, (1 << 40) + (2 << 20));
    let error = refused(&[added], MemoryKind::Anonymous);
    assert!(matches!(error, RamError::Map { part: RamPart::HotAdd, .. }), "{error}");

    let (still_mapped, still_open) = holdings();
    assert_eq!(still_open, descriptors);
    // Stacks and arenas of threads may stay; guest memory would be more than all of them.
    assert!(still_mapped < mapped + (BOOT >> 12), "{mapped} pages were mapped, now {still_mapped}");
}

#[test]
fn a_kernel_without_huge_pages_still_gives_memory() {
    let _turn = turn();
    let refusals = [libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE].map(|advice| {
        let advice = u64::try_from(advice).unwrap();
        Refusal::of(libc::SYS_madvise, libc::EINVAL).with_argument(2, advice)
    });
    let ram =
        host_faults::with(&refusals, || GuestRam::new(&config(MemoryKind::Anonymous)).unwrap());
    mark(&ram);
    assert_eq!(marked(&ram).len(), 16_384);
}

#[test]
fn pages_that_the_kernel_does_not_take_keep_their_content_and_go_later() {
    let _turn = turn();
    for kind in [MemoryKind::Anonymous, MemoryKind::Memfd] {
        let ram = GuestRam::new(&config(kind)).unwrap();
        mark(&ram);
        let ranges = [pages(10, 5), pages(100, 1), pages(300, 512)];
        for errno in [libc::ENOMEM, libc::EIO] {
            let error = host_faults::with(&discards(errno), || ram.discard(&ranges).unwrap_err());
            assert_eq!(cause(&error), Some(errno));
            assert!(matches!(error, DiscardError::System { range, .. } if range == ranges[0]));
            assert_eq!(marked(&ram).len(), 16_384);
        }
        ram.discard(&ranges).unwrap();
        assert_eq!(marked(&ram).len(), 16_384 - 518);
    }
}

#[test]
fn pages_go_where_the_kernel_takes_no_advice_on_the_rest_of_a_huge_page() {
    let _turn = turn();
    let ram = GuestRam::new(&config(MemoryKind::Anonymous)).unwrap();
    mark(&ram);
    let refusals = [libc::MADV_HUGEPAGE, libc::MADV_NOHUGEPAGE].map(|advice| {
        let advice = u64::try_from(advice).unwrap();
        Refusal::of(libc::SYS_madvise, libc::ENOMEM).with_argument(2, advice)
    });
    host_faults::with(&refusals, || {
        ram.discard(&[pages(10, 5), pages(1000, 600)]).unwrap();
        ram.settle(&PageRangeSet::new());
    });
    assert_eq!(marked(&ram).len(), 16_384 - 605);
}

#[test]
fn of_many_pages_only_those_refused_stay() {
    let _turn = turn();
    let ram = GuestRam::new(&config(MemoryKind::Memfd)).unwrap();
    mark(&ram);
    let hole = Refusal::of(libc::SYS_fallocate, libc::EIO).with_argument(2, 20 << 12);
    let ranges = [pages(10, 1), pages(20, 1), pages(30, 1)];
    let error = host_faults::with(&[hole], || ram.discard(&ranges).unwrap_err());
    assert!(error.to_string().contains(&pages(20, 1).to_string()), "{error}");
    let left = marked(&ram);
    let gone: Vec<u64> = (0..16_384).filter(|page| left.binary_search(page).is_err()).collect();
    assert_eq!(gone, [10, 30]);
}

#[test]
fn memory_is_added_without_a_system_call_that_could_fail() {
    let _turn = turn();
    let ram = GuestRam::new(&config(MemoryKind::Anonymous)).unwrap();
    let mut refusals = discards(libc::ENOMEM).to_vec();
    refusals.push(of_guest_memory(libc::ENOMEM));
    let added = pages(1 << 20, 1 << 15);
    let pieces = host_faults::with(&refusals, || {
        ram.add(added, PageCount::ZERO, PageCount::new(1 << 15)).unwrap()
    });
    assert_eq!((pieces.len(), ram.memory().num_regions()), (1, 2));

    // It is out of the guest's reach even where the host could not have it back.
    host_faults::with(&refusals, || {
        assert_eq!(ram.remove(added).unwrap().len(), 1);
        assert!(ram.discard(&[added]).is_err());
    });
    assert_eq!(ram.memory().num_regions(), 1);
}
