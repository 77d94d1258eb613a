//! Guest memory is left out of core dumps, whatever it is made of.

use std::fs;

use guest_ram::{GuestRam, HugePages, MemoryKind, RamConfig};
use page_range::{Gpfn, PageCount, PageRange};
use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};

const BOOT: PageCount = PageCount::new(2048);
const BLOCK: PageCount = PageCount::new(512);
const BASE: u64 = 1 << 20;

/// Whether `/proc/self/smaps` says of the mapping around `address` that it is not dumped
/// (proc_pid_smaps(5): `dd`).
fn is_left_out(address: u64) -> bool {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines().skip_while(|line| !begins_mapping_of(line, address));
    lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap().split(' ').any(|f| f == "dd")
}

fn begins_mapping_of(line: &str, address: u64) -> bool {
    let number = |text| u64::from_str_radix(text, 16).ok();
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    range.is_some_and(|(start, end)| {
        number(start).is_some_and(|start| start <= address)
            && number(end).is_some_and(|end| address < end)
    })
}

fn all_is_left_out(ram: &GuestRam) -> bool {
    let range = PageRange::new(Gpfn::new(BASE).unwrap(), BLOCK).unwrap();
    ram.add(range, PageCount::ZERO, BLOCK).unwrap();
    let regions = ram.regions();
    assert!(regions.len() >= 2, "boot RAM and what was added");
    regions.iter().all(|region| {
        let at = |offset| region.get_host_address(MemoryRegionAddress(offset)).unwrap() as u64;
        is_left_out(at(0)) && is_left_out(at(region.len() - 1))
    })
}

#[test]
fn no_core_dump_holds_guest_memory() {
    for kind in [MemoryKind::Anonymous, MemoryKind::Memfd] {
        for huge_pages in [HugePages::Off, HugePages::Transparent] {
            let config = RamConfig { size: BOOT, kind, huge_pages, hot_add: BLOCK, max_pieces: 4 };
            let ram = GuestRam::new(&config).unwrap();
            assert!(all_is_left_out(&ram), "{kind:?}, {huge_pages:?}");
        }
    }
    // What the test looks for is not there by itself.
    let own = vec![1_u8; 1 << 20];
    assert!(!is_left_out(own.as_ptr() as u64));
}
