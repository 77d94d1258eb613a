//! The model guest alone, against handwritten messages.

use std::time::Duration;

use dynmem_protocol::{
    BalloonRequest, Capabilities, CapabilitiesResponse, GuestBody, GuestMessage, HotAddRequest,
    HotAddResponse, HotAddResult, InfoMessage, MessageType, RangeList, RangeWord, StatusReport,
    UnballoonRequest, Version, VersionResponse,
};
use guest_model::dynmem::{Client, HotAddAnswer, Memory, MemoryMap, Personality, RuleBroken};
use page_range::{Gpfn, PageCount, PageRange};

const GIB: u64 = 1 << 18;
const BLOCK: u64 = GIB / 8;

fn range(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

/// A guest of 1 GiB after the handshake, which ended at 0 s.
fn running(personality: Personality) -> Client {
    let memory = Memory::new([range(0, GIB)].into_iter().collect(), PageCount::new(BLOCK));
    let mut guest = Client::new(personality, memory);
    handshake(&mut guest);
    guest
}

fn handshake(guest: &mut Client) {
    guest.open();
    let id = GuestMessage::parse(&guest.poll_send().unwrap()).unwrap().transaction_id;
    guest.receive(&VersionResponse { is_accepted: true }.emit(id)).unwrap();
    let id = GuestMessage::parse(&guest.poll_send().unwrap()).unwrap().transaction_id;
    let accepted = CapabilitiesResponse {
        is_accepted: true,
        hot_remove: false,
        suppress_pressure_reports: false,
    };
    guest.receive(&accepted.emit(id)).unwrap();
}

fn request(range: PageRange, region: Option<PageRange>) -> Vec<u8> {
    let word = |range| RangeWord::new(range).unwrap();
    HotAddRequest { range: word(range), region: region.map(word) }.emit(9)
}

fn add(guest: &mut Client, range: PageRange) -> Result<(), RuleBroken> {
    guest.receive(&request(range, Some(range)))
}

/// The hot-add responses that the guest sends now; status reports are skipped.
fn answers(guest: &mut Client) -> Vec<(u64, HotAddResult)> {
    let answer = |message: Vec<u8>| match GuestMessage::parse(&message).unwrap().body {
        GuestBody::HotAddResponse(HotAddResponse { pages, result }) => Some((pages.get(), result)),
        GuestBody::StatusReport(_) => None,
        other => panic!("{other:?}"),
    };
    std::iter::from_fn(|| guest.poll_send()).filter_map(answer).collect()
}

fn report(guest: &mut Client) -> StatusReport {
    guest.report_status();
    let message = guest.poll_send().unwrap();
    let GuestBody::StatusReport(report) = GuestMessage::parse(&message).unwrap().body else {
        panic!("no status report")
    };
    report
}

#[test]
fn added_memory_is_the_guests_and_can_be_ballooned() {
    let mut guest = running(Personality::linux_6_1());
    let new = range(16 * GIB, 4 * BLOCK);
    add(&mut guest, new).unwrap();
    assert_eq!(answers(&mut guest), [(4 * BLOCK, HotAddResult::SUCCESS)]);
    assert_eq!(guest.memory().managed(), PageCount::new(GIB + 4 * BLOCK));
    guest.receive(&BalloonRequest { pages: PageCount::new(GIB) }.emit(0)).unwrap();
    while guest.poll_send().is_some() {}
    assert_eq!(guest.memory().ballooned().len(), PageCount::new(GIB));
    assert!(guest.memory().ballooned().intersection(new).next().is_some());
}

#[test]
fn offline_memory_takes_its_time_and_counts_as_committed() {
    let mut guest = running(Personality::linux_without_auto_online());
    let before = report(&mut guest);
    add(&mut guest, range(16 * GIB, 3 * BLOCK)).unwrap();
    for seconds in [0, 5, 10] {
        guest.advance(Duration::from_secs(seconds));
        assert_eq!(answers(&mut guest), []);
        assert_eq!(guest.next_deadline(), Some(Duration::from_secs(seconds + 5)));
    }
    guest.advance(Duration::from_secs(15));
    assert_eq!(answers(&mut guest), [(3 * BLOCK, HotAddResult::SUCCESS)]);
    assert_eq!(guest.memory().managed(), PageCount::new(GIB));
    let offline = report(&mut guest);
    assert_eq!(offline.available, before.available);
    assert_eq!(offline.committed.get(), before.committed.get() + 3 * BLOCK);
    guest.memory_mut().online();
    assert_eq!(report(&mut guest).available.get(), before.available.get() + 3 * BLOCK);
    assert_eq!(guest.memory().managed(), PageCount::new(GIB + 3 * BLOCK));
}

#[test]
fn each_answer_is_that_of_its_kind() {
    use HotAddAnswer::*;
    let (ok, failure) = (HotAddResult::SUCCESS, HotAddResult::FAILURE);
    let all = 4 * BLOCK;
    for (answer, expected, managed) in [
        (TakesAll, vec![(all, ok)], GIB + all),
        (AtMost(PageCount::new(3 * BLOCK - 1)), vec![(2 * BLOCK, ok)], GIB + 2 * BLOCK),
        (AtMost(PageCount::ZERO), vec![(0, ok)], GIB),
        (Refuses, vec![(0, ok)], GIB),
        (Fails { times: 1 }, vec![(0, failure)], GIB),
        (FailsAlways, vec![(0, failure)], GIB),
        (Silent, vec![], GIB),
        (Late(Duration::from_secs(100)), vec![], GIB + all),
        (ClaimsMore(PageCount::new(7)), vec![(all + 7, ok)], GIB + all),
        (ClaimsOdd, vec![(all - 1, ok)], GIB + all - 1),
    ] {
        let mut guest = running(Personality::linux_6_1().with_hot_add(answer));
        add(&mut guest, range(16 * GIB, all)).unwrap();
        assert_eq!(answers(&mut guest), expected, "{answer:?}");
        assert_eq!(guest.memory().managed(), PageCount::new(managed), "{answer:?}");
    }
}

#[test]
fn a_late_answer_comes_and_a_failure_passes() {
    let late = HotAddAnswer::Late(Duration::from_secs(100));
    let mut guest = running(Personality::linux_6_1().with_hot_add(late));
    add(&mut guest, range(16 * GIB, BLOCK)).unwrap();
    assert_eq!(answers(&mut guest), []);
    guest.advance(guest.next_deadline().unwrap());
    assert_eq!(answers(&mut guest), [(BLOCK, HotAddResult::SUCCESS)]);

    let fails = HotAddAnswer::Fails { times: 1 };
    let mut guest = running(Personality::linux_6_1().with_hot_add(fails));
    for expected in [(0, HotAddResult::FAILURE), (BLOCK, HotAddResult::SUCCESS)] {
        add(&mut guest, range(16 * GIB, BLOCK)).unwrap();
        assert_eq!(answers(&mut guest), [expected]);
    }
}

#[test]
fn a_hot_add_that_harms_is_told() {
    let alignment = PageCount::new(BLOCK);
    let good = range(16 * GIB, BLOCK);
    let limit = Gpfn::new(1 << 34).unwrap();
    let with = |range, region| (range, Some(region));
    for ((range, region), rule) in [
        with_same(range(16 * GIB + 256, BLOCK), |range| RuleBroken::HotAddNotAligned {
            range,
            alignment,
        }),
        with_same(range(16 * GIB, BLOCK - 256), |range| RuleBroken::HotAddNotAligned {
            range,
            alignment,
        }),
        with_same(range(GIB - BLOCK, BLOCK), |range| RuleBroken::HotAddOverlap { range }),
        with_same(range(4 * GIB, 2 * GIB + BLOCK), |range| RuleBroken::HotAddTooLong { range }),
        with_same(range(limit.get(), BLOCK), |range| RuleBroken::HotAddAboveLimit { range, limit }),
        (
            with(good, range(15 * GIB, 2 * GIB)),
            RuleBroken::HotAddRegion { range: good, region: range(15 * GIB, 2 * GIB) },
        ),
        (
            with(good, range(16 * GIB, BLOCK - 1)),
            RuleBroken::HotAddRegion { range: good, region: range(16 * GIB, BLOCK - 1) },
        ),
    ] {
        let mut guest = running(Personality::linux_6_1());
        assert_eq!(guest.receive(&request(range, region)), Err(rule));
        assert_eq!(guest.memory().managed(), PageCount::new(GIB));
    }
}

fn with_same(
    range: PageRange,
    rule: impl Fn(PageRange) -> RuleBroken,
) -> ((PageRange, Option<PageRange>), RuleBroken) {
    ((range, Some(range)), rule(range))
}

#[test]
fn a_larger_region_and_none_are_understood_but_by_windows() {
    let new = range(16 * GIB, BLOCK);
    for region in [None, Some(range(16 * GIB, 2 * BLOCK))] {
        let mut guest = running(Personality::linux_6_1());
        assert_eq!(guest.receive(&request(new, region)), Ok(()));
    }
    let mut windows = running(Personality::windows_server_2016());
    let none = windows.receive(&request(new, None));
    assert_eq!(none, Err(RuleBroken::HotAddNoRegion { range: new }));
}

#[test]
fn one_alignment_block_may_be_more_than_2_gib() {
    let mut guest = running(Personality::linux_6_12(14));
    add(&mut guest, range(16 * GIB, 16 * GIB)).unwrap();
    assert_eq!(answers(&mut guest), [(16 * GIB, HotAddResult::SUCCESS)]);
}

#[test]
fn memory_added_before_overlaps_also_after_the_driver_was_loaded_again() {
    let mut guest = running(Personality::linux_6_1());
    let new = range(16 * GIB, BLOCK);
    add(&mut guest, new).unwrap();
    answers(&mut guest);
    guest.close();
    handshake(&mut guest);
    assert_eq!(guest.memory().managed(), PageCount::new(GIB + BLOCK));
    assert_eq!(add(&mut guest, new), Err(RuleBroken::HotAddOverlap { range: new }));
}

#[test]
fn a_reset_forgets_added_memory_and_a_kexec_keeps_it() {
    let mut guest = running(Personality::linux_without_auto_online());
    let new = range(16 * GIB, BLOCK);
    add(&mut guest, new).unwrap();
    answers(&mut guest);
    guest.advance(Duration::from_secs(5));
    answers(&mut guest);
    guest.receive(&BalloonRequest { pages: PageCount::new(BLOCK) }.emit(0)).unwrap();
    while guest.poll_send().is_some() {}
    guest.kexec(MemoryMap::Boot);
    assert_eq!(guest.memory().managed(), PageCount::new(GIB));
    assert_eq!(guest.memory().hot_added(), PageCount::new(BLOCK));
    guest.kexec(MemoryMap::Machine);
    assert_eq!(guest.memory().managed(), PageCount::new(GIB + BLOCK));
    assert_eq!(guest.memory().in_use(), PageCount::new(BLOCK));
    guest.reset();
    assert_eq!(guest.memory().managed(), PageCount::new(GIB));
    handshake(&mut guest);
    assert_eq!(add(&mut guest, new), Ok(()));
}

#[test]
fn a_crash_kernel_has_its_part_only() {
    let mut guest = running(Personality::linux_6_1());
    let reserved = range(BLOCK, 2 * BLOCK);
    guest.crash(&[reserved].into_iter().collect());
    handshake(&mut guest);
    assert_eq!(guest.memory().managed(), PageCount::new(2 * BLOCK));
    let old = range(0, BLOCK);
    assert_eq!(add(&mut guest, old), Err(RuleBroken::HotAddOverlap { range: old }));
}

#[test]
fn windows_2019_crashes_when_asked_within_50_seconds() {
    let ask = BalloonRequest { pages: PageCount::new(512) }.emit(0);
    let mut guest = running(Personality::windows_server_2019());
    guest.advance(Duration::from_millis(49_999));
    assert!(matches!(guest.receive(&ask), Err(RuleBroken::TooSoon { .. })));
    guest.advance(Duration::from_secs(50));
    assert_eq!(guest.receive(&ask), Ok(()));
}

#[test]
fn a_guest_asked_for_too_much_hears_nothing_more() {
    let mut guest = running(Personality::windows_server_2016());
    let ask = |pages| BalloonRequest { pages: PageCount::new(pages) }.emit(0);
    assert!(matches!(guest.receive(&ask(585_729)), Err(RuleBroken::TooMuch { .. })));
    assert_eq!(guest.receive(&ask(512)), Ok(()));
    assert_eq!(guest.poll_send(), None);
    handshake(&mut guest);
    guest.receive(&ask(512)).unwrap();
    assert!(guest.poll_send().is_some());
}

#[test]
fn nothing_may_be_asked_while_a_hot_add_is_awaited() {
    let mut guest = running(Personality::linux_without_auto_online());
    add(&mut guest, range(16 * GIB, BLOCK)).unwrap();
    let ask = BalloonRequest { pages: PageCount::new(512) }.emit(0);
    for message in [ask.clone(), request(range(17 * GIB, BLOCK), None)] {
        let broken = guest.clone().receive(&message);
        assert!(matches!(broken, Err(RuleBroken::TwoTransactions { .. })), "{broken:?}");
    }
    guest.advance(Duration::from_secs(15));
    assert_eq!(guest.receive(&ask), Ok(()));
}

#[test]
fn a_guest_that_cannot_take_memory_is_not_asked() {
    let personality =
        Personality { capabilities: Capabilities::BALLOON, ..Personality::linux_6_1() };
    let broken = add(&mut running(personality), range(16 * GIB, BLOCK));
    assert_eq!(broken, Err(RuleBroken::NotCapable { message: MessageType::HOT_ADD_REQUEST }));
}

#[test]
fn version_0_3_has_no_info_message() {
    let info = InfoMessage::MaximumPageCount(PageCount::new(GIB)).emit(0);
    let (message, version) = (MessageType::INFO_MESSAGE, Version::V0_3);
    let broken = running(Personality::windows_7()).receive(&info);
    assert_eq!(broken, Err(RuleBroken::NotInVersion { message, version }));
    assert_eq!(running(Personality::windows_8()).receive(&info), Ok(()));
}

#[test]
fn windows_gives_long_ranges_and_takes_parts_of_them_back() {
    let mut guest = running(Personality::windows_server_2016());
    guest.receive(&BalloonRequest { pages: PageCount::new(1000) }.emit(0)).unwrap();
    let messages: Vec<_> = std::iter::from_fn(|| guest.poll_send()).collect();
    let shapes: Vec<_> = messages
        .iter()
        .map(|message| match GuestMessage::parse(message).unwrap().body {
            GuestBody::BalloonResponse(response) => (response.ranges.len(), response.more_pages),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(shapes, [(1, true), (0, false)]);
    let mut list = RangeList::new();
    let out = guest.memory().ballooned().iter().next().unwrap();
    list.push(range(out.start().get() + 1, 10)).unwrap();
    guest.receive(&UnballoonRequest::emit(0, false, &list)).unwrap();
    assert_eq!(guest.memory().ballooned().len(), PageCount::new(990));
}
