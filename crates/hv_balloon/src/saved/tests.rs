//! Impossible states are refused with the right reason. Each test alters the state in a golden
//! file.
#![expect(clippy::wildcard_enum_match_arm, reason = "what a test does not expect fails it")]

use core::time::Duration;
use std::vec;
use std::vec::Vec;

use page_range::{Gpfn, PageCount, PageRange};
use saved_state::{Range, RangeSet, SavedState};

use super::form::{self, Activity, Link};
use super::{RestoreError, SavedDevice, Version};
use crate::{Config, Device, HotAdd, MAX_FOREIGN_PAGES};

const HUGE: u64 = 512;

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/golden/v1/", $name, ".bin"))
    };
}

const IDLE: &[u8] = golden!("idle-with-a-balloon");
const BALLOONING: &[u8] = golden!("ballooning-with-discards");
const PAUSING: &[u8] = golden!("pausing");
const CLOSED: &[u8] = golden!("closed");
const PREPARING: &[u8] = golden!("preparing");
const HOT_ADDING: &[u8] = golden!("hot-adding");
const LATE: &[u8] = golden!("late-hot-add");
const GROWN: &[u8] = golden!("grown");
const AWAITED: &[u8] = golden!("confirmation-awaited");
const UNCONFIRMED: &[u8] = golden!("unconfirmed");
const HELD: &[u8] = golden!("huge-pages-held");
const RETURNING: &[u8] = golden!("huge-pages-returning");
const REFUSED: &[u8] = golden!("target-refused");

fn range(start: u64, count: u64) -> PageRange {
    PageRange::new(Gpfn::new(start).unwrap(), PageCount::new(count)).unwrap()
}

fn set(start: u64, count: u64) -> RangeSet {
    RangeSet(vec![range(start, count)])
}

/// The configuration of the saved device, all of which is in its state.
fn config(saved: &form::Config) -> Config {
    let hot_add = saved.hot_add.map(|hot_add| HotAdd {
        window: hot_add.window.0,
        capacity: PageCount::new(hot_add.capacity),
        least_alignment: PageCount::new(hot_add.least_alignment),
    });
    Config {
        boot_ram: saved.boot_ram.iter().collect(),
        hot_add,
        discard_unit: PageCount::new(saved.discard_unit),
        ..Config::default()
    }
}

fn form(saved: &[u8]) -> form::Device {
    let SavedDevice(Version::V1(form)) = SavedDevice::from_bytes(saved).unwrap();
    form
}

/// Restores the state with a configuration that fits it.
fn restore(form: form::Device, now: Duration) -> Result<Device, RestoreError> {
    Device::restore(config(&form.config), &SavedDevice(Version::V1(form)), now)
}

fn session(form: &mut form::Device) -> &mut form::Session {
    let Link::Ready(session) = &mut form.link else { panic!("no session") };
    session
}

/// Asserts that the altered state is refused for the reason `expected`.
#[track_caller]
fn refused(saved: &[u8], alter: impl FnOnce(&mut form::Device), expected: &str) {
    let mut form = form(saved);
    let config = config(&form.config);
    assert!(restore(form.clone(), Duration::ZERO).is_ok());
    alter(&mut form);
    match Device::restore(config, &SavedDevice(Version::V1(form)), Duration::ZERO) {
        Err(RestoreError::Impossible { reason }) => assert_eq!(reason, expected),
        other => panic!("{other:?} and not {expected}"),
    }
}

#[test]
fn pages_are_in_one_place_and_ram() {
    refused(IDLE, |form| form.ledger.pending = set(0x1_0fff, 1), "a page is in two places");
    refused(IDLE, |form| form.ledger.undiscarded = set(0x1_0fff, 1), "a page is in two places");
    let no_ram = "pages that the guest gave but that are not RAM";
    refused(IDLE, |form| form.ledger.pending = set(0x5000, 1), no_ram);
    refused(IDLE, |form| form.ledger.ballooned = set(4095, 2), no_ram);
    refused(BALLOONING, |form| form.ledger.discarding[0].1 = set(4096, 1), no_ram);
    refused(IDLE, |form| form.ledger.foreign = set(4095, 2), "foreign pages that are RAM");
    refused(GROWN, |form| form.ledger.foreign = set(0x2_0200, 1), "foreign pages that are RAM");
}

#[test]
fn what_is_unconfirmed_was_added_and_is_not_awaited() {
    refused(UNCONFIRMED, |form| form.ledger.unconfirmed = set(0, 1), "boot RAM is unconfirmed");
    let given = |form: &mut form::Device| form.ledger.pending = set(0x2_0200, 1);
    refused(UNCONFIRMED, given, "a page is in two places");
    let awaited = |form: &mut form::Device| form.confirmation = form::Confirmation::Awaited;
    refused(UNCONFIRMED, awaited, "memory is unconfirmed before a report");
    let wait = "a wait for a report that nobody needs, or no wait for one";
    refused(AWAITED, |form| session(form).confirmation_left = None, wait);
    refused(AWAITED, |form| form.confirmation = form::Confirmation::Settled, wait);
}

#[test]
fn foreign_ranges_are_as_many_as_the_device_remembers() {
    let many = |count: u64| (0..count).map(|n| range(0x5_0000 + n * 2, 1)).collect();
    let too_many = "too many foreign ranges";
    refused(IDLE, |form| form.ledger.foreign = RangeSet(many(4097)), too_many);
    let mut form = form(IDLE);
    form.ledger.foreign = RangeSet(many(4096));
    assert_eq!(restore(form, Duration::ZERO).unwrap().snapshot().foreign, PageCount::new(4096));
}

#[test]
fn foreign_pages_are_as_many_as_the_device_remembers() {
    let most = MAX_FOREIGN_PAGES.get();
    let too_many = "too many foreign pages";
    refused(IDLE, |form| form.ledger.foreign = set(0x5_0000, most + 1), too_many);
    let two = RangeSet(vec![range(0x5_0000, most), range(1 << 39, 1)]);
    refused(IDLE, |form| form.ledger.foreign = two, too_many);
    let mut form = form(IDLE);
    form.ledger.foreign = set(0x5_0000, most);
    assert_eq!(restore(form, Duration::ZERO).unwrap().snapshot().foreign, MAX_FOREIGN_PAGES);
}

#[test]
fn discards_are_few_and_each_is_one_job() {
    let jobs = |form: &mut form::Device, ids: &[u64]| {
        form.ledger.discarding = ids.iter().map(|&id| (id, set(1000 + id * 2, 1))).collect();
    };
    refused(BALLOONING, |form| jobs(form, &[0, 1, 2]), "too many discards in flight");
    refused(BALLOONING, |form| jobs(form, &[1, 1]), "two jobs with one ID");
    refused(BALLOONING, |form| jobs(form, &[0, 7]), "a job with an ID that is not assigned yet");
    let names = "the next job ID is too high";
    refused(BALLOONING, |form| form.next_job = u64::MAX / 2 + 1, names);
    let empty = RangeSet(vec![]);
    refused(BALLOONING, |form| form.ledger.discarding[0].1 = empty, "a discard without pages");
    refused(PREPARING, |form| form.next_job = 0, "a job with an ID that is not assigned yet");
    let twice = |form: &mut form::Device| form.ledger.discarding = vec![(0, set(0, 1))];
    refused(PREPARING, twice, "two jobs with one ID");
}

#[test]
fn huge_pages_are_whole_and_only_where_there_are_any() {
    let part = "a part of a huge page is discarded";
    refused(HELD, |form| form.ledger.ballooned = set(HUGE, HUGE - 1), part);
    refused(HELD, |form| form.ledger.discarding = vec![(0, set(1, HUGE))], part);
    refused(RETURNING, |form| form.ledger.providing = set(HUGE, 1), part);
    let none = "huge pages in a device without them";
    refused(IDLE, |form| form.ledger.held = set(0, 1), none);
    refused(CLOSED, |form| form.link = Link::Closing { absent: set(0, 1) }, none);
    let job = "pages to provide without a job, or such a job without pages";
    refused(HELD, |form| form.ledger.providing = set(3 * HUGE, HUGE), job);
    refused(RETURNING, |form| form.ledger.providing = RangeSet(vec![]), job);
}

#[test]
fn without_a_session_there_is_nothing_of_one() {
    let pages = "pages that a guest gave, but no session";
    refused(CLOSED, |form| form.ledger.pending = set(0, 1), pages);
    refused(CLOSED, |form| form.ledger.foreign = set(5000, 1), pages);
}

#[test]
fn messages_are_few_and_the_protocols() {
    let message = "a message that the protocol does not have";
    let outbox =
        |messages: Vec<Vec<u8>>| move |form: &mut form::Device| session(form).outbox = messages;
    refused(IDLE, outbox(vec![vec![0; 8]]), message);
    refused(IDLE, outbox(vec![vec![]]), message);
    let unsent = session(&mut form(golden!("unballooning-unsent"))).outbox[0].clone();
    refused(IDLE, outbox(vec![[&unsent, &[0_u8][..]].concat()]), message);
    refused(IDLE, outbox(vec![unsent; 10]), "too many messages");
}

#[test]
fn memory_to_add_is_where_it_can_be() {
    let used = "more memory added than the window or the capacity allows";
    let placement = |form: &mut form::Device, base, used| {
        let placement = form.placement.as_mut().unwrap();
        (placement.base, placement.used, placement.reach) = (base, used, used);
    };
    refused(GROWN, |form| placement(form, Some(0x2_0200), 4097), used);
    refused(GROWN, |form| placement(form, Some(0x2_00ff), 1024), used);
    refused(GROWN, |form| placement(form, Some(0x12_0100), 1024), used);
    refused(GROWN, |form| placement(form, None, 1024), used);
    refused(GROWN, |form| form.placement.as_mut().unwrap().reach = 1023, used);
    refused(GROWN, |form| form.placement.as_mut().unwrap().reach = 4097, used);
    let space = "memory added outside the address space";
    refused(GROWN, |form| placement(form, Some(u64::MAX), 1024), space);
    let ram = "RAM that was not added";
    refused(GROWN, |form| placement(form, Some(0x2_0200), 1023), ram);
    refused(GROWN, |form| form.ledger.added.push(Range(range(0x2_0200, 1))), ram);
    refused(GROWN, |form| form.ledger.added = vec![Range(range(0, 1))], ram);
    refused(IDLE, |form| form.ledger.added = vec![Range(range(0x2_0200, 1))], ram);
    refused(
        GROWN,
        |form| form.placement = None,
        "hot-add memory without a placement, or a placement without hot-add memory",
    );
}

#[test]
fn one_piece_of_free_memory_is_on_offer() {
    let offer = |form: &mut form::Device, to: Range| {
        if let Activity::HotAdding(offer) = &mut session(form).activity {
            offer.range = to;
        }
    };
    let none = "an offer of memory that is not free to add";
    for (start, count) in [(0, 512), (0x2_0100, 512), (0x2_0200, 511), (0x2_0200, 4608)] {
        refused(HOT_ADDING, |form| offer(form, Range(range(start, count))), none);
    }
    let prepared = Some(Range(range(0x2_0200, 8192)));
    let prepare = |form: &mut form::Device| {
        if let Activity::Preparing { added, .. } = &mut session(form).activity {
            *added = prepared;
        }
    };
    refused(PREPARING, prepare, none);
    let late = |form: &mut form::Device, is_told: bool| {
        let waited = is_told.then_some(Duration::ZERO);
        let range = Range(range(0x2_0200, 512));
        session(form).late = Some(form::Offer { range, waited, left: Some(Duration::ZERO) });
    };
    refused(HOT_ADDING, |form| late(form, true), "two offers of memory");
    refused(LATE, |form| late(form, false), "an offer that is neither sent nor queued");
    refused(GROWN, |form| late(form, true), none);
}

#[test]
fn memory_to_remove_is_not_the_guests() {
    let none = "memory to remove that is RAM or outside the hot-add window";
    let one = |start, count| vec![Range(range(start, count))];
    refused(GROWN, |form| form.removals.stuck = one(0x2_0200, 1), none);
    refused(GROWN, |form| form.removals.stuck = one(0x2_0000, 0x200), none);
    refused(GROWN, |form| form.removals.stuck = one(5000, 1), none);
    refused(GROWN, |form| form.removals.stuck = one(0x12_00ff, 2), none);
    refused(GROWN, |form| form.removals.in_flight = vec![(0, Range(range(5000, 1)))], none);
    refused(IDLE, |form| form.removals.waiting = one(0x2_0200, 1), none);
    let waits = "a removal waits for nothing";
    refused(GROWN, |form| form.removals.waiting = one(0x2_1000, 1), waits);
}

#[test]
fn removals_are_jobs_beside_which_nothing_is_prepared() {
    let job = |id| (id, Range(range(0x2_1000, 1)));
    let names = "two jobs with one ID";
    refused(GROWN, |form| form.removals.in_flight = vec![job(0), job(0)], names);
    refused(
        GROWN,
        |form| form.removals.in_flight = vec![job(99)],
        "a job with an ID that is not assigned yet",
    );
    let prepared = "memory is prepared while some is removed";
    let remove = |form: &mut form::Device| {
        form.next_job = 9;
        form.removals.in_flight = vec![job(8)];
    };
    refused(PREPARING, remove, prepared);
    let offered = "memory is offered while some is removed";
    refused(HOT_ADDING, remove, offered);
    refused(LATE, |form| form.removals.stuck = vec![Range(range(0x2_1000, 1))], offered);
    let close = |form: &mut form::Device| {
        remove(form);
        form.link = Link::Closed;
        form.ledger.ballooned = RangeSet(vec![]);
    };
    refused(GROWN, close, "closed while memory is removed");
}

#[test]
fn numbers_mean_something() {
    let target = |form: &mut form::Device| form.goal.as_mut().unwrap().target = 0;
    refused(IDLE, target, "the target is zero");
    let reason = "an unknown stop reason";
    let stop = |code| form::Goal {
        target: 1,
        pursuit: form::Pursuit::Stopped(code),
        told_overdue: false,
        told_unused: false,
    };
    refused(IDLE, |form| form.goal = Some(stop(0)), reason);
    refused(IDLE, |form| form.goal = Some(stop(17)), reason);
    let stopped = form::Refusal::Stopped(99);
    refused(REFUSED, |form| form.last_refusal = Some((1, stopped)), reason);
    let version = |form: &mut form::Device| {
        session(form).version = 1;
    };
    refused(IDLE, version, "an unknown protocol version");
    let answers = |form: &mut form::Device| match &mut session(form).activity {
        Activity::Pausing { short_answers, .. } => *short_answers = 5,
        Activity::Ballooning(asked) => asked.short_answers = 5,
        other => panic!("{other:?}"),
    };
    refused(PAUSING, answers, "too many short answers");
    refused(BALLOONING, answers, "too many short answers");
}

#[test]
fn no_wait_is_longer_than_one_that_begins_now() {
    let long = Duration::from_secs(1 << 40);
    let now = Duration::from_secs(7);
    for (saved, limit) in [
        (BALLOONING, crate::BALLOON_TIMEOUT),
        (PAUSING, 8 * crate::FIRST_RETRY_PAUSE),
        (golden!("unballooning-unsent"), crate::UNBALLOON_TIMEOUT),
        (golden!("settling"), crate::DEFAULT_SETTLE),
    ] {
        let mut form = form(saved);
        match &mut session(&mut form).activity {
            Activity::Ballooning(form::Asked { left, .. })
            | Activity::Unballooning { left, .. } => *left = Some(long),
            Activity::Pausing { left, .. } | Activity::Settling { left } => *left = long,
            other => panic!("{other:?}"),
        }
        let device = restore(form, now).unwrap();
        assert_eq!(device.next_deadline(), Some(now + limit));
    }
}
