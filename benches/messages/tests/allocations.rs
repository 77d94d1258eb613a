//! A packet causes no allocation once the buffers have their final size.
//!
//! Two things may allocate and are counted separately: the device's accounting, whose sets of pages
//! grow with what the guest gives up, and the list of ranges that is passed to a discard.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use dynmem_protocol::{
    BalloonRequest, GuestBody, GuestMessage, MAX_RANGES, RangeList, StatusReport, UnballoonRequest,
};
use guest_model::vmbus::Received;
use messages::{BALLOON_RESPONSE, Ends, LINUX_RING, Machine, STATUS_REPORT, Workload, real_memory};
use page_range::{Gpfn, PageCount, PageRange};

/// The system's allocator, with a count of the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending may allocate after its counter is gone.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: The system's allocator does all the work; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: The caller keeps the rules of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: The caller keeps the rules of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: The caller keeps the rules of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: The caller keeps the rules of `GlobalAlloc::realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often this thread has allocated.
fn allocated() -> u64 {
    ALLOCATIONS.get()
}

/// How often `run` allocates.
fn allocations(run: impl FnOnce()) -> u64 {
    let before = allocated();
    run();
    allocated() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0_u8; 10]))), 1);
}

#[test]
fn rings_allocate_nothing_after_open() {
    let mem = real_memory();
    for size in [STATUS_REPORT, BALLOON_RESPONSE] {
        let payload = vec![0; size];
        let mut ends = Ends::open(&mem, LINUX_RING);
        let mut packets = 0;
        let to_host = || {
            for _ in 0..100 {
                packets += ends.guest_fills(&payload);
                ends.host_drains();
            }
        };
        assert_eq!(allocations(to_host), 0);
        let to_guest = || {
            for _ in 0..100 {
                packets += ends.host_fills(&payload);
                // The model guest allocates its only buffer for the first packet.
                ends.guest_drains();
            }
        };
        assert!(allocations(to_guest) <= 1);
        assert!(packets >= 600, "{packets} of {size} bytes");
    }
    assert!(Received::new().payload.is_empty());
}

#[test]
fn parsing_and_emitting_allocate_nothing_into_buffers_that_have_their_size() {
    let mut ranges = RangeList::new();
    let mut message = Vec::new();
    let mut turn = |id: u32| {
        ranges.clear();
        while !ranges.is_full() {
            let start = Gpfn::new(u64::from(id) << 12).unwrap();
            ranges.push(PageRange::new(start, PageCount::new(512)).unwrap()).unwrap();
        }
        UnballoonRequest::emit_into(id, true, &ranges, &mut message);
        BalloonRequest { pages: PageCount::new(512) }.emit_into(id, &mut message);
        StatusReport::default().emit_into(id, &mut message);
        let report = GuestMessage::parse(&message).unwrap();
        assert_eq!(report.body, GuestBody::StatusReport(StatusReport::default()));
        dynmem_protocol::BalloonResponse::emit_into(id, true, &ranges, &mut message);
        let GuestBody::BalloonResponse(response) = GuestMessage::parse(&message).unwrap().body
        else {
            panic!("parsed as something else");
        };
        let pages = response.ranges.iter().map(|word| word.range().unwrap().count().get());
        assert_eq!(pages.sum::<u64>(), MAX_RANGES as u64 * 512);
    };
    turn(0);
    assert_eq!(allocations(|| (1..100).for_each(turn)), 0);
}

/// Allocations for each event: one in debug builds, where the device checks its invariants.
const CHECK: u64 = cfg!(debug_assertions) as u64;

#[test]
fn a_status_report_allocates_nothing_from_the_guest_to_the_device() {
    let mut machine = Machine::new(&real_memory(), Workload::LargePages, allocated);
    machine.report_status(1000);
    assert_eq!(allocations(|| machine.report_status(10_000)), 10_000 * CHECK);
}

/// Counts and prints the host's allocations for each message of a resize, in rings, messages and
/// device: `cargo test --release -p messages -- --nocapture`.
#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "debug builds check the books, which allocates: use --release"
)]
fn balloon_responses_allocate_for_the_books_and_unballoon_requests_hardly_at_all() {
    for workload in [Workload::LargePages, Workload::EveryOtherPage] {
        let mut machine = Machine::new(&real_memory(), workload, allocated);
        machine.shrink();
        machine.grow();
        let before = (machine.to_host, machine.host_count);
        machine.shrink();
        let (responses, count) = (machine.to_host - before.0, machine.host_count - before.1);
        println!("{workload:?}: {count} allocations for {responses} balloon responses");
        assert!(count <= 16 * responses, "{count} for {responses}");
        let before = (machine.to_guest, machine.host_count);
        machine.grow();
        let (requests, count) = (machine.to_guest - before.0, machine.host_count - before.1);
        println!("{workload:?}: {count} allocations for {requests} unballoon requests");
        assert!(count <= requests / 2, "{count} for {requests}");
    }
}
