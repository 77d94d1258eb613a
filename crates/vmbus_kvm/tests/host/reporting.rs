//! A guest reports free pages: what it is told, what is discarded, and who waits for that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use dynmem_protocol::{GpaPageRange, HeatHint};
use page_range::{PageCount, PageRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmbus_kvm::{BackendError, FreePages, Inhibit, Machine};

use crate::dynmem::{HALF, MemoryHost, pages};
use crate::guest::{Guest, hypercall};
use crate::platform::{FakePlatform, Quirks};

const INPUT: u64 = 0x3000;
const OUTPUT: u64 = 0x4000;

const QUERY: u64 = 0x8001;
const HINT: u64 = 0x8003;
const DISCARD: u64 = 2;

const SUCCESS: u64 = 0;
const INVALID_CODE: u64 = 2;
const INVALID_INPUT: u64 = 3;
const INVALID_ALIGNMENT: u64 = 4;
const INVALID_PARAMETER: u64 = 5;

/// The guest's memory: 1 MiB, a hole, and 16 GiB that nobody touches.
const LOW: u64 = 1 << 8;
const HIGH: u64 = 1 << 20;
const HIGH_PAGES: u64 = 16 << 18;

/// Remembers what it was to discard.
#[derive(Default)]
struct Discarded {
    ranges: Mutex<Vec<PageRange>>,
    fails: AtomicBool,
    /// Discards wait while it is set.
    held: Mutex<bool>,
    released: Condvar,
    is_waiting: AtomicBool,
}

impl Discarded {
    fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.released.notify_all();
    }

    fn take(&self) -> Vec<PageRange> {
        std::mem::take(&mut self.ranges.lock().unwrap())
    }
}

impl FreePages for Discarded {
    fn discard(&self, ranges: &[PageRange]) -> Result<(), BackendError> {
        self.is_waiting.store(true, Ordering::Release);
        drop(self.released.wait_while(self.held.lock().unwrap(), |held| *held).unwrap());
        self.is_waiting.store(false, Ordering::Release);
        if self.fails.load(Ordering::Acquire) {
            return Err("no such luck".into());
        }
        self.ranges.lock().unwrap().extend_from_slice(ranges);
        Ok(())
    }
}

type TestMachine = Machine<Arc<FakePlatform>>;

/// A guest, and a host that takes its reports if it `can`.
fn guest(can: bool) -> (MemoryHost, Guest, Arc<Discarded>) {
    let host = MemoryHost::start().unwrap();
    let discarded = Arc::new(Discarded::default());
    if can {
        host.memory.report_free_pages(Some(Arc::clone(&discarded) as Arc<dyn FreePages>));
    }
    let at = |page: u64| GuestAddress(page << 12);
    let bytes = |pages: u64| usize::try_from(pages << 12).unwrap();
    let ranges = [(at(0), bytes(LOW)), (at(HIGH), bytes(HIGH_PAGES))];
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
    let guest = Guest::boot(&host.host, FakePlatform::with_memory(Quirks::default(), memory));
    (host, guest, discarded)
}

/// Writes a hint of words to the input page.
fn write(guest: &Guest, kind: u64, words: &[u64]) {
    for (index, word) in (0..).zip(std::iter::once(&kind).chain(words)) {
        guest.platform.memory.write_obj(*word, GuestAddress(INPUT + 8 * index)).unwrap();
    }
}

fn word(range: PageRange) -> u64 {
    GpaPageRange::new(range).unwrap().to_wire()
}

/// Asks for reps from `start` up to `count` of the hint in the input page; returns status and reps
/// completed.
fn call(machine: &TestMachine, start: u64, count: u64) -> (u64, u64) {
    let result = hypercall(machine, HINT | count << 32 | start << 48, [INPUT, 0]);
    assert_eq!(result & !0xfff_0000_ffff, 0, "{result:#x}");
    (result & 0xffff, result >> 32)
}

fn report(guest: &Guest, ranges: &[PageRange]) -> (u64, u64) {
    let words: Vec<_> = ranges.iter().copied().map(word).collect();
    write(guest, DISCARD, &words);
    call(&guest.machine, 0, u64::try_from(words.len()).unwrap())
}

#[test]
fn a_guest_learns_whether_it_can_report() {
    let (_host, guest, _) = guest(false);
    assert_eq!(hypercall(&guest.machine, QUERY, [0, OUTPUT]), INVALID_CODE);
    assert_eq!(report(&guest, &[pages(0x80, 1)]), (INVALID_CODE, 0));

    let (host, guest, _) = self::guest(true);
    assert_eq!(hypercall(&guest.machine, QUERY, [0, OUTPUT]), SUCCESS);
    let capabilities: u64 = guest.platform.memory.read_obj(GuestAddress(OUTPUT)).unwrap();
    assert_eq!(capabilities, 0x100);
    // Another machine may not be able to.
    host.memory.report_free_pages(None);
    assert_eq!(hypercall(&guest.machine, QUERY, [0, OUTPUT]), INVALID_CODE);
}

#[test]
fn reported_pages_are_discarded_and_counted_and_the_size_stays() {
    let (host, guest, discarded) = guest(true);
    let ranges = [pages(HIGH, 1024), pages(0x80, 3), pages(HIGH + 4096, 512)];
    let actual = host.actual();
    assert_eq!(report(&guest, &ranges), (SUCCESS, 3));
    assert_eq!(discarded.take(), ranges);
    let reported = host.memory.snapshot().reported;
    assert_eq!((reported.calls, reported.pages), (1, PageCount::new(1539)));
    assert_eq!(host.actual(), actual);

    // The guest goes on where it says.
    assert_eq!(call(&guest.machine, 2, 3), (SUCCESS, 3));
    assert_eq!(discarded.take(), [pages(HIGH + 4096, 512)]);
}

#[test]
fn bad_calls_get_the_status_of_the_specification_and_discard_nothing() {
    let (host, guest, discarded) = guest(true);
    write(&guest, DISCARD, &[word(pages(0x80, 1)); 8]);
    let raw = |control, input| hypercall(&guest.machine, control, [input, OUTPUT]);
    let one = HINT | 1 << 32;
    let cases = [
        // No reps, none left, a fast call, reserved bits, a simple call with reps.
        (HINT, INPUT, INVALID_INPUT),
        (one | 1 << 48, INPUT, INVALID_INPUT),
        (one | 1 << 16, INPUT, INVALID_INPUT),
        (one | 1 << 17, INPUT, INVALID_INPUT),
        (one | 1 << 63, INPUT, INVALID_INPUT),
        (QUERY | 1 << 32, 0, INVALID_INPUT),
        // Input that is not aligned, spans pages, is not there, or cannot fit.
        (one, INPUT + 4, INVALID_ALIGNMENT),
        (one, INPUT + 0xff8, INVALID_ALIGNMENT),
        (one, LOW << 12, INVALID_ALIGNMENT),
        (one, u64::MAX - 7, INVALID_ALIGNMENT),
        (HINT | 512 << 32, INPUT, INVALID_ALIGNMENT),
        // Codes between those that exist.
        (0x8002, INPUT, INVALID_CODE),
        (0x8041, INPUT, INVALID_CODE),
    ];
    for (control, input, status) in cases {
        assert_eq!(raw(control, input), status, "{control:#x} {input:#x}");
    }
    for output in [OUTPUT + 4, LOW << 12, u64::MAX - 7] {
        let status = hypercall(&guest.machine, QUERY, [0, output]);
        assert_eq!(status, INVALID_ALIGNMENT, "{output:#x}");
    }
    for kind in [0, 1, 3, DISCARD | 4, DISCARD | 1 << 63] {
        write(&guest, kind, &[]);
        assert_eq!(call(&guest.machine, 0, 1), (INVALID_PARAMETER, 0), "{kind:#x}");
    }
    assert!(discarded.take().is_empty());
    assert_eq!(host.memory.snapshot().reported.calls, 0);
}

#[test]
fn pages_that_the_guest_does_not_have_end_the_call_where_they_are() {
    let (_host, guest, discarded) = guest(true);
    let good = pages(0x80, 2);
    let end = HIGH + HIGH_PAGES;
    for bad in [
        // In the hole, over its ends, beyond the end of memory.
        pages(LOW, 1),
        pages(LOW - 1, 2),
        pages(HIGH - 512, 1024),
        pages(end - 1, 2),
        pages(end, 1 << 18),
    ] {
        assert_eq!(report(&guest, &[good, bad, good]), (INVALID_PARAMETER, 1), "{bad}");
        assert_eq!(discarded.take(), [good], "{bad}");
    }
    write(&guest, DISCARD, &[word(good), u64::MAX]);
    assert_eq!(call(&guest.machine, 0, 2), (INVALID_PARAMETER, 1));
    assert_eq!(discarded.take(), [good]);
}

#[test]
fn a_call_for_half_a_terabyte_takes_a_limited_time() {
    let (_host, guest, discarded) = guest(true);
    let gib = 1 << 18;
    let words = [word(pages(HIGH, gib)); HeatHint::MAX_RANGES];
    write(&guest, DISCARD, &words);
    let mut start = 0;
    while start < 511 {
        let (status, completed) = call(&guest.machine, start, 511);
        assert_eq!((status, completed), (SUCCESS, start + 1));
        assert_eq!(discarded.take(), [pages(HIGH, gib)]);
        start = completed;
    }
    // A single range of 16 GiB: a hint, of which the host takes what it wants.
    assert_eq!(report(&guest, &[pages(HIGH, 16 * gib)]), (SUCCESS, 1));
    assert_eq!(discarded.take(), [pages(HIGH, gib)]);
}

#[test]
fn nothing_is_discarded_while_that_is_inhibited() {
    let (host, guest, discarded) = guest(true);
    let range = [pages(0x80, 1)];
    let outer = host.memory.inhibit(Inhibit::Passthrough);
    drop(host.memory.inhibit(Inhibit::Snapshot));
    assert_eq!(report(&guest, &range), (SUCCESS, 1));
    assert!(discarded.take().is_empty());
    assert_eq!(host.memory.snapshot().reported.calls, 0);
    drop(outer);
    assert_eq!(report(&guest, &range), (SUCCESS, 1));
    assert_eq!(discarded.take(), range);
}

#[test]
fn only_who_must_waits_for_a_report() {
    let (host, mut guest, discarded) = guest(true);
    discarded.hold(true);
    write(&guest, DISCARD, &[word(pages(0x80, 1))]);
    let inhibited = AtomicBool::new(false);
    thread::scope(|scope| {
        let machine = guest.machine.clone();
        let vcpu = scope.spawn(move || call(&machine, 0, 1));
        guest.until("a discard", |_| discarded.is_waiting.load(Ordering::Acquire));
        // Neither the other vCPU nor the monitor.
        assert_eq!(guest.post(0x00ff_0000, &[0; 8]), 18);
        host.memory.set_target(HALF).unwrap();
        assert_eq!(host.memory.snapshot().device.target, Some(HALF));

        let inhibitor = scope.spawn(|| {
            let inhibitor = host.memory.inhibit(Inhibit::Snapshot);
            inhibited.store(true, Ordering::Release);
            inhibitor
        });
        guest.until("the inhibitor", |_| !host.memory.snapshot().inhibited_by.is_empty());
        assert!(!inhibited.load(Ordering::Acquire), "it did not wait for the discard");
        discarded.hold(false);
        assert_eq!(vcpu.join().unwrap(), (SUCCESS, 1));
        drop(inhibitor.join().unwrap());
    });
    assert_eq!(discarded.take(), [pages(0x80, 1)]);
}

#[test]
fn a_failure_is_told_to_the_operator_and_not_to_the_guest() {
    let (host, guest, discarded) = guest(true);
    discarded.fails.store(true, Ordering::Release);
    assert_eq!(report(&guest, &[pages(0x80, 1)]), (SUCCESS, 1));
    let expected = "cannot give free pages back to the host: no such luck";
    assert!(host.seen.reports().iter().any(|line| line == expected), "{:?}", host.seen.reports());
    assert_eq!(host.memory.snapshot().reported.calls, 0);
}
