//! Huge pages of the host's pool. Needs root, or a pool that somebody filled; by its name it runs
//! where both can be had.

use std::fs;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_ram::{
    AddError, BorrowError, BorrowedRam, DiscardError, GuestRam, HugePages, PoolError, ProvideError,
    RamConfig, RamError,
};
use host_faults::Refusal;
use page_range::{Gpfn, PageCount, PageRange};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// Pages in a huge page of 2 MiB.
const HUGE: u64 = 512;
const HUGE_BYTES: u64 = 2 << 20;
/// Huge pages that the tests want in the pool.
const POOL: u64 = 64;
/// Where added memory begins: 4 GiB.
const BASE: u64 = 1 << 20;

/// There is one pool for all tests.
static TURN: Mutex<()> = Mutex::new(());

/// The pool while one test has it; as large as before afterwards.
struct Pool {
    size: HugePages,
    before: u64,
    _turn: MutexGuard<'static, ()>,
}

impl Pool {
    /// `None`, with a word why, where there is no pool and we may not make one.
    fn take() -> Option<Self> {
        let pool = Self::of(HugePages::Pool2M, POOL);
        match pool {
            Ok(pool) => Some(pool),
            Err(error) => {
                assert!(!is_root(), "root cannot get {POOL} huge pages of 2 MiB: {error}");
                println!("NOT TESTED: no {POOL} huge pages of 2 MiB here: {error}");
                None
            }
        }
    }

    fn of(size: HugePages, pages: u64) -> io::Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = Self { size, before: read(size, "nr_hugepages")?, _turn: turn };
        if pool.free() < pages {
            fs::write(file(size, "nr_hugepages"), (pool.before + pages).to_string())?;
        }
        if pool.free() < pages {
            return Err(io::Error::other("the host has too little memory in one piece"));
        }
        Ok(pool)
    }

    /// Huge pages that nobody has or has reserved.
    fn free(&self) -> u64 {
        let read = |name| read(self.size, name).unwrap();
        read("free_hugepages") - read("resv_hugepages")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(file(self.size, "nr_hugepages"), self.before.to_string());
    }
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    uid.split_whitespace().nth(1) == Some("0")
}

fn file(size: HugePages, name: &str) -> String {
    let kib = size.page_size().bytes() / 1024;
    format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/{name}")
}

fn read(size: HugePages, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(file(size, name))?;
    text.trim().parse().map_err(io::Error::other)
}

fn config(boot: u64, hot_add: u64) -> RamConfig {
    RamConfig {
        size: PageCount::new(boot * HUGE),
        hot_add: PageCount::new(hot_add * HUGE),
        huge_pages: HugePages::Pool2M,
        max_pieces: 500,
        ..Default::default()
    }
}

fn ram(boot: u64, hot_add: u64) -> GuestRam {
    GuestRam::new(&config(boot, hot_add)).unwrap()
}

/// `count` huge pages from huge page `start` on.
fn huge(start: u64, count: u64) -> PageRange {
    pages(start * HUGE, count * HUGE)
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

/// `count` huge pages of added memory, `start` huge pages behind its base.
fn added(start: u64, count: u64) -> PageRange {
    pages(BASE + start * HUGE, count * HUGE)
}

fn add(ram: &GuestRam, start: u64, count: u64) -> Result<(), AddError> {
    let offset = PageCount::new(start * HUGE);
    ram.add(added(start, count), offset, PageCount::new(HUGE)).map(|_| ())
}

/// Marks the last byte of huge page `number`.
fn mark(ram: &GuestRam, number: u64, value: u8) {
    ram.memory().write_obj(value, GuestAddress((number + 1) * HUGE_BYTES - 1)).unwrap();
}

fn marked(ram: &GuestRam, number: u64) -> u8 {
    ram.memory().read_obj(GuestAddress((number + 1) * HUGE_BYTES - 1)).unwrap()
}

/// Where huge page 0 of added memory is, counted in huge pages.
const ADDED: u64 = BASE / HUGE;

#[test]
fn boot_memory_is_reserved_at_once_and_added_memory_is_not() {
    let Some(pool) = Pool::take() else { return };
    let free = pool.free();
    let ram = ram(8, 1 << 20);
    assert_eq!(pool.free(), free - 8);
    drop(ram);
    assert_eq!(pool.free(), free);
}

#[test]
fn a_short_pool_is_told_with_what_would_do() {
    let Some(pool) = Pool::take() else { return };
    let free = pool.free();
    let all = read(pool.size, "nr_hugepages").unwrap();
    let Err(RamError::Pool(error)) = GuestRam::new(&config(free + 3, 0)) else {
        panic!("the pool has no {} huge pages", free + 3);
    };
    let PoolError::Short { needed, available, enough, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((needed, available, enough), (free + 3, free, all + 3));
    assert_eq!(pool.free(), free);
    // What the error says is true.
    fs::write(file(pool.size, "nr_hugepages"), enough.to_string()).unwrap();
    GuestRam::new(&config(free + 3, 0)).unwrap();
}

#[test]
fn discarded_pages_are_the_pools_again_and_come_back_empty() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(8, 0);
    (0..8).for_each(|page| mark(&ram, page, 0xa5));
    let free = pool.free();
    ram.discard(&[huge(2, 1), huge(5, 2)]).unwrap();
    assert_eq!(pool.free(), free + 3);
    // Also a page that nobody gave back may be among them: it keeps what it has.
    ram.provide(&[huge(0, 3), huge(5, 2)]).unwrap();
    assert_eq!(pool.free(), free);
    let content: Vec<u8> = (0..8).map(|page| marked(&ram, page)).collect();
    assert_eq!(content, [0xa5, 0xa5, 0, 0xa5, 0xa5, 0, 0, 0xa5]);
}

#[test]
fn free_pages_of_the_pool_stay() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(8, 0);
    mark(&ram, 3, 7);
    let free = pool.free();
    ram.discard_free(&[huge(0, 8), pages(HUGE + 1, 3)]).unwrap();
    assert_eq!((pool.free(), marked(&ram, 3)), (free, 7));
    assert!(!ram.can_discard_free());
}

#[test]
fn a_part_of_a_huge_page_is_refused_and_not_rounded() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(4, 0);
    (0..4).for_each(|page| mark(&ram, page, 1));
    let free = pool.free();
    for range in [pages(1, HUGE), pages(0, HUGE + 1), pages(HUGE, 1)] {
        assert!(matches!(ram.discard(&[range]), Err(DiscardError::Unaligned { .. })), "{range}");
        assert!(matches!(ram.provide(&[range]), Err(ProvideError::Unaligned { .. })), "{range}");
    }
    assert_eq!(pool.free(), free);
    assert!((0..4).all(|page| marked(&ram, page) == 1));
    // Two halves make a whole.
    ram.discard(&[pages(0, 100), pages(100, HUGE - 100)]).unwrap();
    assert_eq!(pool.free(), free + 1);
}

#[test]
fn providing_is_all_or_nothing() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(8, 0);
    (0..8).for_each(|page| mark(&ram, page, 9));
    ram.discard(&[huge(0, 2), huge(3, 4)]).unwrap();
    let other = self::ram(pool.free() - 3, 0);
    assert_eq!(pool.free(), 3);
    let error = ram.provide(&[huge(0, 7)]).unwrap_err();
    assert!(matches!(error, ProvideError::Pool { source: PoolError::Short { .. }, .. }), "{error}");
    assert_eq!(pool.free(), 3);
    assert_eq!((marked(&ram, 2), marked(&ram, 7)), (9, 9));
    drop(other);
    ram.provide(&[huge(0, 7)]).unwrap();
    assert_eq!(marked(&ram, 6), 0);
}

#[test]
fn added_memory_is_allocated_whole_or_not_added() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(2, 400);
    let free = pool.free();
    let error = add(&ram, 0, free + 1).unwrap_err();
    assert!(matches!(error, AddError::Provide(ProvideError::Pool { .. })), "{error}");
    assert_eq!((pool.free(), ram.memory().num_regions()), (free, 1));
    add(&ram, 0, 4).unwrap();
    assert_eq!(pool.free(), free - 4);
    mark(&ram, ADDED + 3, 7);

    assert_eq!(ram.remove(added(2, 2)).unwrap().len(), 2);
    ram.discard(&[added(2, 2)]).unwrap();
    assert_eq!(pool.free(), free - 2);
    add(&ram, 2, 2).unwrap();
    assert_eq!((pool.free(), marked(&ram, ADDED + 3)), (free - 4, 0));
}

#[test]
fn added_memory_comes_in_whole_huge_pages() {
    let Some(_pool) = Pool::take() else { return };
    let ram = ram(2, 8);
    let unaligned = |start, offset, count| {
        let result = ram.add(pages(start, count), PageCount::new(offset), PageCount::new(1));
        matches!(result, Err(AddError::Provide(ProvideError::Unaligned { .. })))
    };
    assert!(unaligned(BASE, 0, HUGE - 1));
    assert!(unaligned(BASE + 1, 0, HUGE));
    assert!(unaligned(BASE + 1, 1, HUGE));
    assert_eq!(ram.memory().num_regions(), 1);
    let odd = RamConfig { size: PageCount::new(HUGE + 1), ..config(0, 0) };
    assert!(matches!(GuestRam::new(&odd), Err(RamError::NotWhole { .. })));
    let odd = RamConfig { hot_add: PageCount::new(HUGE + 1), ..config(2, 0) };
    assert!(matches!(GuestRam::new(&odd), Err(RamError::NotWhole { .. })));
}

#[test]
fn pages_of_1_gib_work_or_say_what_is_missing() {
    const GIB: PageCount = PageCount::new(1 << 18);
    let config = RamConfig {
        size: GIB,
        hot_add: GIB,
        huge_pages: HugePages::Pool1G,
        max_pieces: 1,
        ..Default::default()
    };
    let pool = match Pool::of(HugePages::Pool1G, 2) {
        Ok(pool) => pool,
        Err(error) => {
            println!("ONLY ITS ERROR IS TESTED: no two huge pages of 1 GiB here: {error}");
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            let two = RamConfig { size: PageCount::new(2 * GIB.get()), ..config };
            assert!(matches!(GuestRam::new(&two), Err(RamError::Pool(_))));
            return;
        }
    };
    let free = pool.free();
    let ram = GuestRam::new(&config).unwrap();
    let range = pages(BASE, GIB.get());
    ram.add(range, PageCount::ZERO, GIB).unwrap();
    ram.memory().write_obj(5_u8, GuestAddress(BASE * 4096)).unwrap();
    assert_eq!(pool.free(), free - 2);
    ram.remove(range).unwrap();
    ram.discard(&[range]).unwrap();
    assert_eq!(pool.free(), free - 1);
}

/// Refuses to give back the huge page at this number.
fn keeps(number: u64) -> Refusal {
    Refusal::of(libc::SYS_fallocate, libc::EIO)
        .with_flag(1, u64::try_from(libc::FALLOC_FL_PUNCH_HOLE).unwrap())
        .with_argument(2, number * HUGE_BYTES)
}

#[test]
fn a_discard_that_failed_half_way_leaves_no_page_that_the_guest_could_not_touch() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(8, 0);
    (0..8).for_each(|page| mark(&ram, page, 1));
    let free = pool.free();
    let ranges = [huge(1, 1), huge(3, 1), huge(5, 1)];
    let error = host_faults::with(&[keeps(3)], || ram.discard_or_undo(&ranges).unwrap_err());
    assert!(error.to_string().contains(&huge(3, 1).to_string()), "{error}");
    // All are provided, and only those that had gone are empty.
    assert_eq!(pool.free(), free);
    let other = self::ram(free, 0);
    let content: Vec<u8> = (0..8).map(|page| marked(&ram, page)).collect();
    assert_eq!(content, [1, 0, 1, 1, 1, 0, 1, 1]);
    drop(other);
}

#[test]
fn a_huge_page_that_went_in_two_halves_comes_back_after_a_failure_too() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(8, 0);
    (0..8).for_each(|page| mark(&ram, page, 1));
    let free = pool.free();
    let halves = [pages(HUGE, HUGE / 2), pages(HUGE + HUGE / 2, HUGE / 2), huge(3, 1)];
    let error = host_faults::with(&[keeps(3)], || ram.discard_or_undo(&halves).unwrap_err());
    assert!(matches!(error, DiscardError::System { .. }), "{error}");
    assert_eq!((pool.free(), marked(&ram, 1), marked(&ram, 3)), (free, 0, 1));
}

#[test]
fn pages_that_cannot_be_allocated_leave_the_pool_as_it_was() {
    let Some(pool) = Pool::take() else { return };
    let ram = ram(2, 400);
    let free = pool.free();
    let second = Refusal::of(libc::SYS_fallocate, libc::EIO)
        .with_argument(1, 0)
        .with_argument(2, 2 * HUGE_BYTES);
    add(&ram, 1, 1).unwrap();
    let error = host_faults::with(&[second], || add(&ram, 0, 4).unwrap_err());
    assert!(matches!(error, AddError::Provide(ProvideError::System { .. })), "{error}");
    assert_eq!((pool.free(), ram.memory().num_regions()), (free - 1, 2));
    add(&ram, 0, 4).unwrap();
    assert_eq!(pool.free(), free - 4);
}

/// A VMM's own memory in huge pages: eight of them, of which it reserves none.
fn foreign(flags: libc::c_int, file: Option<FileOffset>) -> GuestMemoryMmap {
    let flags = flags | libc::MAP_NORESERVE;
    let len = usize::try_from(8 * HUGE_BYTES).unwrap();
    let mapping = MmapRegion::build(file, len, libc::PROT_READ | libc::PROT_WRITE, flags);
    let region = GuestRegionMmap::new(mapping.unwrap(), GuestAddress(0)).unwrap();
    GuestMemoryMmap::from_regions(vec![region]).unwrap()
}

/// A file of nine huge pages, of which the first is not the guest's.
fn pool_file() -> FileOffset {
    let ram = ram(9, 0);
    // Its own mapping goes, and with it what it has reserved.
    FileOffset::from_arc(Arc::clone(ram.regions()[0].file_offset().unwrap().arc()), HUGE_BYTES)
}

#[test]
fn borrowed_huge_pages_go_whole_and_come_back_empty() {
    let Some(pool) = Pool::take() else { return };
    let anonymous = libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
    let kinds: [fn(libc::c_int) -> GuestMemoryMmap; 4] = [
        |_| foreign(libc::MAP_SHARED, Some(pool_file())),
        |_| foreign(libc::MAP_PRIVATE, Some(pool_file())),
        |anonymous| foreign(anonymous | libc::MAP_PRIVATE, None),
        |anonymous| foreign(anonymous | libc::MAP_SHARED, None),
    ];
    for (kind, make) in kinds.iter().enumerate() {
        let before = pool.free();
        let memory = make(anonymous);
        let ram = BorrowedRam::new(memory.iter()).unwrap();
        assert_eq!(ram.unit(), PageCount::new(HUGE));
        let last = |page: u64| GuestAddress((page + 1) * HUGE_BYTES - 1);
        (0..8).for_each(|page| memory.write_obj(1_u8, last(page)).unwrap());
        let free = pool.free();

        let error = ram.discard(&[pages(HUGE, HUGE - 1)]).unwrap_err();
        assert!(matches!(error, DiscardError::Unaligned { .. }), "{kind}: {error}");
        ram.discard(&[huge(1, 2), huge(5, 1)]).unwrap();
        assert_eq!(pool.free(), free + 3, "{kind}");

        let other = self::ram(pool.free() - 2, 0);
        let error = ram.provide(&[huge(0, 8)]).unwrap_err();
        assert!(matches!(error, ProvideError::Pool { .. }), "{kind}: {error}");
        assert_eq!(pool.free(), 2, "{kind}");
        drop(other);
        ram.provide(&[huge(0, 8)]).unwrap();
        assert_eq!(pool.free(), free, "{kind}");
        let content: Vec<u8> = (0..8).map(|page| memory.read_obj(last(page)).unwrap()).collect();
        assert_eq!(content, [1, 0, 0, 1, 1, 0, 1, 1], "{kind}");
        drop((memory, ram));
        assert_eq!(pool.free(), before, "{kind}");
    }
}

#[test]
fn a_borrowed_discard_that_failed_is_undone() {
    let Some(pool) = Pool::take() else { return };
    let memory = foreign(libc::MAP_SHARED, Some(pool_file()));
    let ram = BorrowedRam::new(memory.iter()).unwrap();
    (0..8).for_each(|page| memory.write_obj(1_u8, GuestAddress(page * HUGE_BYTES)).unwrap());
    let free = pool.free();
    // Huge page 3 of the guest is number 4 of the file.
    let ranges = [huge(1, 1), huge(3, 1)];
    host_faults::with(&[keeps(4)], || ram.discard_or_undo(&ranges).unwrap_err());
    assert_eq!(pool.free(), free);
    let read = |page: u64| memory.read_obj::<u8>(GuestAddress(page * HUGE_BYTES)).unwrap();
    assert_eq!([read(1), read(3)], [0, 1]);
}

#[test]
fn borrowed_huge_pages_of_unknown_size_or_place_are_refused() {
    let Some(_pool) = Pool::take() else { return };
    let default_size = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_HUGETLB;
    let memory = foreign(default_size, None);
    let error = BorrowedRam::new(memory.iter()).unwrap_err();
    assert!(matches!(error.source, BorrowError::PageSize), "{error}");

    let flags = default_size | libc::MAP_HUGE_2MB | libc::MAP_NORESERVE;
    let mapping = MmapRegion::<()>::build(None, 4 << 20, libc::PROT_READ, flags).unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(1 << 20)).unwrap();
    let error = BorrowedRam::new([&region]).unwrap_err();
    assert!(matches!(error.source, BorrowError::NotWhole { .. }), "{error}");
}

#[test]
fn a_device_cannot_touch_pages_that_are_back_in_the_pool() {
    let Some(_pool) = Pool::take() else { return };
    let size = PageCount::new(4 * HUGE);
    let config = RamConfig { size, huge_pages: HugePages::Pool2M, ..RamConfig::default() };
    let ram = GuestRam::new(&config).unwrap();
    let second = PageRange::new(Gpfn::new(HUGE).unwrap(), PageCount::new(HUGE)).unwrap();
    let write = |address| ram.device_memory().write_slice(&[1; 16], GuestAddress(address));
    write(HUGE_BYTES).unwrap();
    ram.discard(&[second]).unwrap();
    for address in [HUGE_BYTES, 2 * HUGE_BYTES - 8, HUGE_BYTES - 8] {
        write(address).unwrap_err();
    }
    write(2 * HUGE_BYTES).unwrap();
    ram.provide(&[second]).unwrap();
    write(HUGE_BYTES - 8).unwrap();
    // A discard waits for a device that works on the memory.
    let memory = ram.device_memory();
    std::thread::scope(|scope| {
        let discard = scope.spawn(|| ram.discard(&[second]));
        memory.write_slice(&[1; 16], GuestAddress(HUGE_BYTES)).unwrap();
        assert!(!discard.is_finished());
        drop(memory);
        discard.join().unwrap().unwrap();
    });
    write(HUGE_BYTES).unwrap_err();
}
