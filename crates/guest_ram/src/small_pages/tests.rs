use std::fs;
use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::mapping::advice::range_of;
use crate::mapping::{MemoryKind, Request};
use crate::{GuestRam, HugePages, RamConfig};

const HUGE_PAGES: u64 = 64;
const PAGES: u64 = HUGE_PAGES * 512;

fn budget(most: usize) -> &'static Budget {
    Box::leak(Box::new(Budget::new(most)))
}

/// A mapping that begins `lead` pages above a huge page.
fn mapping(lead: u64) -> Mapping {
    Mapping::new(&Request {
        kind: MemoryKind::Anonymous,
        huge_pages: HugePages::Transparent,
        guest_address: lead * PAGE_SIZE,
        len: usize::try_from(PAGES * PAGE_SIZE).unwrap(),
        reserve: false,
    })
    .unwrap()
}

fn pages(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

fn span(range: PageRange) -> Span {
    let number = |value: u64| usize::try_from(value).unwrap();
    Span { offset: number(range.start().gpa().get()), len: number(range.count().bytes()) }
}

fn spans(set: &PageRangeSet) -> Vec<Span> {
    set.iter().map(span).collect()
}

/// Whether each page of the mapping has the flag `nh` (proc_pid_smaps(5)), and how many mappings
/// the kernel made of it.
fn small_by_kernel(mapping: &Mapping) -> (Vec<bool>, usize) {
    let Range { start, end } = mapping.addresses();
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut small, mut count) = (vec![false; usize::try_from(PAGES).unwrap()], 0);
    let mut within = (0, 0);
    for line in smaps.lines() {
        if let Some((from, to)) = range_of(line) {
            within = (from.max(start), to.min(end));
            count += usize::from(within.0 < within.1);
        } else if line.starts_with("VmFlags:") && within.0 < within.1 {
            let page = |at: usize| (at - start) / usize::try_from(PAGE_SIZE).unwrap();
            let is_small = line.split(' ').any(|flag| flag == "nh");
            small[page(within.0)..page(within.1)].fill(is_small);
        }
    }
    (small, count)
}

/// The pages of huge pages that are partly in `out` and partly not; `lead` as for [`mapping`].
fn cut_pages(out: &PageRangeSet, lead: u64) -> Vec<bool> {
    let is_out = |page: u64| out.contains(Gpfn::new(page).unwrap());
    let huge = |page: u64| (page + lead) / 512;
    let mut seen = vec![(false, false); usize::try_from(HUGE_PAGES + 1).unwrap()];
    for page in 0..PAGES {
        let entry = &mut seen[usize::try_from(huge(page)).unwrap()];
        if is_out(page) { entry.0 = true } else { entry.1 = true }
    }
    (0..PAGES).map(|page| seen[usize::try_from(huge(page)).unwrap()] == (true, true)).collect()
}

fn any_out() -> impl Strategy<Value = PageRangeSet> {
    let huge = (0..HUGE_PAGES, 1_u64..6).prop_map(|(start, count)| (start << 9, count << 9));
    let small = (0..PAGES, 1_u64..900);
    let range =
        prop_oneof![huge, small].prop_map(|(start, count)| pages(start, count.min(PAGES - start)));
    prop::collection::vec(range, 0..24).prop_map(|ranges| ranges.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_kernel_uses_small_pages_just_where_huge_ones_are_cut(
        sets in prop::collection::vec(any_out(), 1..4),
        lead in prop::sample::select(vec![0_u64, 1, 300]),
    ) {
        let mapping = mapping(lead);
        let small = SmallPages::new(&mapping, budget(1000)).unwrap();
        for out in &sets {
            small.before_discard(&mapping, &spans(out));
            let (by_kernel, _) = small_by_kernel(&mapping);
            let cut = cut_pages(out, lead);
            prop_assert!(cut.iter().zip(&by_kernel).all(|(cut, small)| !cut || *small));
            small.settle(&mapping, spans(out).into_iter());
            prop_assert_eq!(small_by_kernel(&mapping).0, cut);
        }
        small.settle(&mapping, std::iter::empty());
        let (by_kernel, mappings) = small_by_kernel(&mapping);
        prop_assert!(!by_kernel.contains(&true));
        prop_assert_eq!((mappings, small.budget.used.load(Ordering::Relaxed)), (1, 0));
    }

    #[test]
    fn the_number_of_mappings_is_limited_and_no_cut_page_is_left_out(
        sets in prop::collection::vec(any_out(), 1..4),
        most in 1_usize..6,
    ) {
        let mapping = mapping(0);
        let small = SmallPages::new(&mapping, budget(most)).unwrap();
        for out in &sets {
            small.before_discard(&mapping, &spans(out));
            let (before, mappings) = small_by_kernel(&mapping);
            prop_assert!(mappings <= 2 * most + 1, "{} mappings", mappings);
            small.settle(&mapping, spans(out).into_iter());
            let (after, mappings) = small_by_kernel(&mapping);
            prop_assert!(mappings <= 2 * most + 1, "{} mappings", mappings);
            for (page, cut) in cut_pages(out, 0).into_iter().enumerate() {
                prop_assert!(!cut || before[page] && after[page], "page {}", page);
            }
            let runs = small.lock().small.range_count();
            prop_assert_eq!(small.lock().runs, runs);
            prop_assert_eq!(small.budget.used.load(Ordering::Relaxed), runs);
        }
    }
}

#[test]
fn huge_pages_that_go_as_a_whole_cost_no_mapping() {
    let mapping = mapping(0);
    let small = SmallPages::new(&mapping, budget(1000)).unwrap();
    let whole: Vec<_> =
        (0..HUGE_PAGES).step_by(2).map(|huge| span(pages(huge << 9, 512))).collect();
    small.before_discard(&mapping, &whole);
    assert_eq!(small_by_kernel(&mapping).1, 1);
}

#[test]
fn neighbours_are_one_mapping() {
    let mapping = mapping(0);
    let small = SmallPages::new(&mapping, budget(1000)).unwrap();
    let singles: Vec<_> = (0..PAGES).step_by(2).map(|page| span(pages(page, 1))).collect();
    for call in singles.chunks(100) {
        small.before_discard(&mapping, call);
    }
    assert_eq!((small_by_kernel(&mapping).1, small.lock().runs), (1, 1));
}

#[test]
fn mappings_share_the_limit_and_leave_it_when_they_go() {
    let shared = budget(8);
    let cut: Vec<_> = (0..HUGE_PAGES).step_by(2).map(|huge| span(pages(huge << 9, 1))).collect();
    let (one, two) = (mapping(0), mapping(0));
    let small = [&one, &two].map(|mapping| SmallPages::new(mapping, shared).unwrap());
    for (small, mapping) in small.iter().zip([&one, &two]) {
        small.before_discard(mapping, &cut);
    }
    assert!(shared.used.load(Ordering::Relaxed) <= 9);
    assert!(small.iter().all(|small| small.lock().runs >= 1));
    drop(small);
    assert_eq!(shared.used.load(Ordering::Relaxed), 0);
}

#[test]
fn memory_without_transparent_huge_pages_is_left_alone() {
    let size = PageCount::from_bytes(16 << 20);
    let config = RamConfig { size, huge_pages: HugePages::Off, ..Default::default() };
    let ram = GuestRam::new(&config).unwrap();
    ram.discard(&[pages(5, 1)]).unwrap();
    ram.settle(&PageRangeSet::new());
    let request = Request {
        kind: MemoryKind::Anonymous,
        huge_pages: HugePages::Off,
        guest_address: 0,
        len: 1 << 21,
        reserve: false,
    };
    assert!(!Mapping::new(&request).unwrap().wants_huge_pages());
}
