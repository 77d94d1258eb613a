//! Ballooned pages stay with the host, also in memory with transparent huge pages.

// UNSAFETY: the tests make the kernel put huge pages together, as khugepaged does in its own time.
#![expect(unsafe_code, reason = "MADV_COLLAPSE takes a raw address")]

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guest_ram::{BorrowedRam, GuestRam, HugePages, MemoryKind, RamConfig, RamRegion};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    MemoryRegionAddress,
};

const HUGE: usize = 2 << 20;
const BOOT: usize = 64 << 20;
const PAGES: u64 = BOOT as u64 >> 12;
const KINDS: [MemoryKind; 2] = [MemoryKind::Anonymous, MemoryKind::Memfd];
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

fn ram(kind: MemoryKind) -> (GuestRam, Arc<RamRegion>) {
    let (size, huge_pages) = (PageCount::from_bytes(BOOT as u64), HugePages::Transparent);
    let config = RamConfig { size, kind, huge_pages, ..Default::default() };
    let ram = GuestRam::new(&config).unwrap();
    let region = ram.boot_regions().remove(0);
    ram.memory().write_slice(&vec![0xa5; BOOT], GuestAddress(0)).unwrap();
    (ram, region)
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

/// Seven pages of every eight.
fn most_pages() -> Vec<PageRange> {
    (0..PAGES).step_by(8).map(|page| pages(page, 7)).collect()
}

fn address(region: &impl GuestMemoryRegion) -> usize {
    region.get_host_address(MemoryRegionAddress(0)).unwrap() as usize
}

/// The pages that the host provides: those of the memfd, or those that are mapped.
fn resident(region: &impl GuestMemoryRegion) -> u64 {
    match region.file_offset() {
        Some(file) => file.file().metadata().unwrap().blocks() / 8,
        None => {
            // One word for each page, whose highest bit says whether it is there (proc_pid_pagemap(5)).
            let mut map = vec![0; BOOT >> 9];
            let file = File::open("/proc/self/pagemap").unwrap();
            file.read_exact_at(&mut map, address(region) as u64 >> 9).unwrap();
            map.iter().skip(7).step_by(8).map(|byte| u64::from(byte >> 7)).sum()
        }
    }
}

/// Puts a huge page together now, if its memory may have one.
fn collapse(address: usize) -> io::Result<()> {
    let address = ptr::with_exposed_provenance_mut(address);
    // SAFETY: the call changes no content, and maps nothing where nothing was mapped.
    let result = unsafe { libc::madvise(address, HUGE, libc::MADV_COLLAPSE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Puts together as many huge pages as the kernel will.
fn collapse_all(region: &impl GuestMemoryRegion) -> usize {
    let start = address(region);
    (start..start + BOOT).step_by(HUGE).filter(|huge| collapse(*huge).is_ok()).count()
}

/// Whether huge pages can be put together on demand (since Linux 6.1).
fn can_collapse(kind: MemoryKind) -> bool {
    let (_ram, region) = ram(kind);
    let result = collapse(address(&*region));
    if let Err(error) = &result {
        println!("NOT TESTED: no huge pages on demand for {kind:?} here: {error}");
    }
    result.is_ok()
}

#[test]
fn pages_that_went_do_not_come_back_with_a_huge_page() {
    for kind in KINDS.into_iter().filter(|kind| can_collapse(*kind)) {
        let (ram, region) = ram(kind);
        ram.discard(&most_pages()).unwrap();
        assert_eq!(resident(&*region), PAGES / 8, "{kind:?}");
        assert_eq!((collapse_all(&*region), resident(&*region)), (0, PAGES / 8), "{kind:?}");
    }
}

#[test]
fn memory_that_is_whole_again_may_have_huge_pages() {
    for kind in KINDS.into_iter().filter(|kind| can_collapse(*kind)) {
        let (ram, region) = ram(kind);
        ram.discard(&most_pages()).unwrap();
        // All are back but for one huge page's, and the guest touches them.
        let out: PageRangeSet = most_pages().into_iter().take(64).collect();
        ram.settle(&out);
        ram.memory().write_slice(&vec![1; BOOT - HUGE], GuestAddress(HUGE as u64)).unwrap();
        assert_eq!(collapse_all(&*region), BOOT / HUGE - 1, "{kind:?}");
        assert_eq!(resident(&*region), PAGES - 7 * 64, "{kind:?}");
    }
}

#[test]
fn the_first_touch_of_a_page_that_is_back_does_not_bring_its_neighbours() {
    let (ram, region) = ram(MemoryKind::Anonymous);
    let huge = pages(512, 512);
    ram.discard(&[huge]).unwrap();
    // All but one page of it is still out.
    ram.settle(&[pages(512, 511)].into_iter().collect());
    ram.memory().write_obj(1_u8, GuestAddress(1023 << 12)).unwrap();
    assert_eq!(resident(&*region), PAGES - 511);
}

#[test]
fn borrowed_memory_gets_back_the_advice_it_had() {
    if !can_collapse(MemoryKind::Anonymous) {
        return;
    }
    for (advice, back) in [(libc::MADV_HUGEPAGE, BOOT / HUGE), (libc::MADV_NOHUGEPAGE, 0)] {
        // With room for a huge page to begin in.
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), BOOT)]).unwrap();
        let region = memory.iter().next().unwrap();
        let start = ptr::with_exposed_provenance_mut(address(region));
        // SAFETY: the range is the region's, and its content stays.
        assert_eq!(unsafe { libc::madvise(start, BOOT, advice) }, 0);
        let ram = BorrowedRam::new(memory.iter()).unwrap();
        memory.write_slice(&vec![1; BOOT], GuestAddress(0)).unwrap();
        ram.discard(&most_pages()).unwrap();
        let first = address(region).next_multiple_of(HUGE);
        let whole = (first..address(region) + BOOT + 1 - HUGE).step_by(HUGE);
        assert!(whole.clone().all(|huge| collapse(huge).is_err()));
        assert_eq!(resident(region), PAGES / 8);
        ram.settle(&PageRangeSet::new());
        let count = whole.filter(|huge| collapse(*huge).is_ok()).count();
        assert!(count == back || count + 1 == back, "{count} of {back}");
    }
}

/// A setting of khugepaged that is put back at the end.
struct Setting {
    path: String,
    before: String,
}

impl Setting {
    fn change(name: &str, value: &str) -> io::Result<Self> {
        let path = format!("{SETTINGS}/khugepaged/{name}");
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value)?;
        Ok(Self { path, before })
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, self.before.trim());
    }
}

/// The kernel's own thread, in a hurry. Other memory shows when it has been round.
#[test]
#[ignore = "changes settings of the host for some seconds; needs root"]
fn khugepaged_leaves_pages_out_that_went() {
    let settings = [
        ("scan_sleep_millisecs", "10"),
        ("alloc_sleep_millisecs", "10"),
        ("pages_to_scan", "65536"),
    ]
    .map(|(name, value)| Setting::change(name, value));
    if let Some(Err(error)) = settings.iter().find(|setting| setting.is_err()) {
        println!("NOT TESTED: khugepaged cannot be hurried here: {error}");
        return;
    }
    let (ram, region) = ram(MemoryKind::Anonymous);
    ram.discard(&most_pages()).unwrap();
    // The same holes, but nothing says that they are to stay.
    let (other, filled) = self::ram(MemoryKind::Anonymous);
    other.discard(&most_pages()).unwrap();
    other.settle(&PageRangeSet::new());
    let patience = Instant::now();
    while resident(&*filled) < PAGES {
        if patience.elapsed() > Duration::from_secs(60) {
            println!("NOT TESTED: khugepaged does nothing here");
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    thread::sleep(Duration::from_secs(2));
    assert_eq!(resident(&*region), PAGES / 8);
}
