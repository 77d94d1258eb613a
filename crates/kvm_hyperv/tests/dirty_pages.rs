//! Every write into guest memory is marked in the memory's bitmap: a live migration that misses one
//! loses a message, a signal or a packet.

use std::sync::atomic::Ordering;

use kvm_hyperv::memory::GuestBusMemory;
use kvm_hyperv::synic::{Delivery, SavedSynic, SynicRegisters, VpSynic};
use page_range::Gpa;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmbus::GuestMemory;

type Memory = GuestMemoryMmap<AtomicBitmap>;

const PAGE: u64 = 4096;
const SIMP: u64 = 2 * PAGE;
const SIEFP: u64 = 4 * PAGE;
const REGISTERS: SynicRegisters = SynicRegisters { scontrol: 1, siefp: SIEFP | 1, simp: SIMP | 1 };

/// Two regions of eight pages that touch.
fn memory() -> Memory {
    let ranges = [0, 8 * PAGE].map(|start| (GuestAddress(start), 0x8000));
    Memory::from_ranges(&ranges).unwrap()
}

/// The numbers of the pages that are marked.
fn marked(memory: &Memory) -> Vec<u64> {
    let is_marked = |page: &u64| {
        let (region, address) = memory.to_region_addr(GuestAddress(page * PAGE)).unwrap();
        region.bitmap().dirty_at(usize::try_from(address.raw_value()).unwrap())
    };
    (0..16).filter(is_marked).collect()
}

/// A SynIC that has its pages and has written nothing yet.
fn synic(queue: Vec<Vec<u8>>) -> VpSynic {
    let synic = VpSynic::default();
    synic.restore(&SavedSynic { registers: REGISTERS, queue }).unwrap();
    synic
}

#[test]
fn pages_that_are_zeroed_are_marked() {
    let memory = memory();
    VpSynic::default().update(&memory, REGISTERS);
    assert_eq!(marked(&memory), [SIMP / PAGE, SIEFP / PAGE]);
}

#[test]
fn a_restore_writes_nothing() {
    let memory = memory();
    assert_eq!(synic(vec![]).deliver(&memory), Delivery::Idle);
    assert!(marked(&memory).is_empty());
}

#[test]
fn a_message_is_marked() {
    let memory = memory();
    assert_eq!(synic(vec![vec![1; 240]]).deliver(&memory), Delivery::Delivered);
    assert_eq!(marked(&memory), [SIMP / PAGE]);
}

#[test]
fn an_event_flag_is_marked() {
    for flag in [0, 1, 63, 64, 2047] {
        let memory = memory();
        assert!(synic(vec![]).set_event(&memory, flag));
        assert_eq!(marked(&memory), [SIEFP / PAGE], "{flag}");
    }
}

#[test]
fn each_write_of_the_bus_is_marked_and_no_read() {
    // In a page, up to its end, over it by any remainder of the copy's units, and over a region's.
    for start in [PAGE, 2 * PAGE - 40, 2 * PAGE - 1, 8 * PAGE - 33] {
        for len in [1, 7, 8, 9, 32, 40, 41, 71, 4096] {
            let memory = memory();
            let bus = GuestBusMemory::new(&memory);
            let gpa = Gpa::new(start);
            let mut bytes = vec![1; len];
            bus.read(gpa, &mut bytes).unwrap();
            assert!(marked(&memory).is_empty());
            bus.write(gpa, &bytes).unwrap();
            let last = (start + u64::try_from(len).unwrap() - 1) / PAGE;
            let pages: Vec<_> = (start / PAGE..=last).collect();
            assert_eq!(marked(&memory), pages, "{len} bytes at {start:#x}");
        }
    }
}

#[test]
fn each_word_of_the_bus_is_marked_and_no_load() {
    let memory = memory();
    let bus = GuestBusMemory::new(&memory);
    bus.load_u32(Gpa::new(9 * PAGE), Ordering::Acquire).unwrap();
    assert!(marked(&memory).is_empty());
    bus.store_u32(Gpa::new(9 * PAGE - 4), 1, Ordering::Release).unwrap();
    assert_eq!(marked(&memory), [8]);
    bus.store_u32(Gpa::new(3 * PAGE), 1, Ordering::Release).unwrap();
    assert_eq!(marked(&memory), [3, 8]);
}
