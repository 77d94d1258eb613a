//! Saving and restoring the host at any step, unnoticed by the guest.

use guest_model::dynmem::{MemoryMap, Personality};
use hv_balloon::{Snapshot, StateName};

use crate::pair::*;

/// A sequence of things that a host does with its guest.
type Story = fn(&mut Pair);

const STORIES: [(&str, Story); 7] = [
    ("shrink", |pair| pair.resize(mib(200))),
    ("return", |pair| {
        pair.resize(mib(200));
        pair.resize(mib(256));
    }),
    ("hot-add", |pair| pair.resize(mib(600))),
    ("hot-add and shrink", |pair| {
        pair.resize(mib(500));
        pair.resize(mib(150));
        pair.resize(mib(640));
    }),
    ("reset", |pair| {
        pair.set_target(mib(600));
        run_some(pair, 6);
        pair.reset();
        pair.reopen();
        pair.resize(mib(200));
    }),
    ("kexec without added memory", |pair| {
        pair.resize(mib(500));
        pair.set_target(mib(300));
        run_some(pair, 4);
        pair.kexec(MemoryMap::Boot);
        pair.reopen();
        pair.resize(mib(150));
    }),
    ("kexec", |pair| {
        pair.set_target(mib(150));
        run_some(pair, 4);
        pair.kexec(MemoryMap::Machine);
        pair.reopen();
        pair.run();
    }),
];

/// Tries this many steps, and leaves the rest pending.
fn run_some(pair: &mut Pair, steps: usize) {
    let order = [Step::ToGuest, Step::ToHost, Step::Job];
    for step in order.into_iter().cycle().take(steps) {
        let _ = pair.step(step);
    }
}

fn guests() -> [Personality; 4] {
    [
        Personality::linux_6_1(),
        Personality::linux_6_12(8),
        Personality::linux_without_auto_online(),
        Personality::windows_server_2022(),
    ]
}

/// The outcome of a story, and how many steps it took.
struct Ending {
    snapshot: Snapshot,
    closes: usize,
    steps: usize,
}

fn tell(story: Story, guest: Personality, huge_pages: bool, saves: Saves) -> Ending {
    const MANY: usize = 1 << 20;
    let mut pair = if huge_pages {
        Pair::on_huge_pages(guest, 256, 8, 512)
    } else {
        Pair::with_capacity(guest, 256, 8, 512)
    };
    // Only single pages are left, which takes many messages.
    if !huge_pages {
        pair.guest.memory_mut().shatter();
    }
    // A run that is never saved counts its steps down instead.
    pair.saves = if saves == Saves::Never { Saves::After(MANY) } else { saves };
    pair.open();
    pair.run();
    story(&mut pair);
    let snapshot = pair.snapshot();
    if snapshot.state == StateName::Idle {
        let memory = pair.guest.memory();
        let has = memory.managed().saturating_add(memory.offline().len());
        assert_eq!(snapshot.actual, has);
    }
    let steps = if let Saves::After(left) = pair.saves { MANY - left } else { 0 };
    Ending { snapshot, closes: pair.closes_finished, steps }
}

fn assert_same(ending: &Ending, expected: &Ending, what: &str) {
    assert_eq!(ending.snapshot, expected.snapshot, "{what}");
    assert_eq!(ending.closes, expected.closes, "{what}");
}

#[test]
fn a_guest_ends_the_same_when_its_host_is_saved_after_every_step() {
    for (name, story) in STORIES {
        for guest in guests() {
            for huge_pages in [false, true] {
                let what = format!("{name}, {}, huge pages: {huge_pages}", guest.name);
                let expected = tell(story, guest.clone(), huge_pages, Saves::Never);
                let ending = tell(story, guest.clone(), huge_pages, Saves::Always);
                assert!(expected.steps > 4, "{what}: {}", expected.steps);
                assert_same(&ending, &expected, &what);
            }
        }
    }
}

/// Each run saves the host once, after another step between the handshake and the end.
#[test]
fn a_guest_ends_the_same_whichever_step_its_host_is_saved_after() {
    for (name, story) in STORIES {
        for huge_pages in [false, true] {
            let guest = Personality::linux_6_1;
            let expected = tell(story, guest(), huge_pages, Saves::Never);
            // Later steps are much alike, so only every seventh is tried.
            let each = |step: &usize| *step < 60 || step.is_multiple_of(7);
            for step in (1..=expected.steps).filter(each) {
                let ending = tell(story, guest(), huge_pages, Saves::After(step));
                assert_same(&ending, &expected, &format!("{name}, step {step}"));
            }
        }
    }
}

#[test]
fn work_that_was_done_and_not_told_is_done_again() {
    let mut pair = Pair::with_capacity(Personality::linux_6_1(), 256, 8, 512);
    pair.open();
    pair.run();
    for size in [100, 256, 600, 150, 500] {
        pair.set_target(mib(size));
        while pair.step(Step::ToGuest) || pair.step(Step::ToHost) || {
            pair.save_and_restore(true);
            pair.step(Step::Job)
        } {}
        pair.run();
        pair.assert_size(mib(size));
    }
}
