//! Events in any order: targets change while messages and jobs are in flight.

use std::time::Duration;

use guest_model::dynmem::{HotAddAnswer, MemoryMap, Personality};
use hv_balloon::StateName;
use proptest::prelude::*;

use crate::pair::*;

const SIZE_MIB: u64 = 256;
const CAPACITY_MIB: u64 = 512;
/// More can be added than the targets need: each change of alignment may waste some, and each kernel
/// that does not know all memory loses the place of what it does not know.
const SPACE_MIB: u64 = 64 * CAPACITY_MIB;
const IN_USE_MIB: u64 = 8;

#[derive(Clone, Copy, Debug)]
enum Move {
    Step(Step),
    Target(u64),
    Report,
    Reset,
    Kexec(MemoryMap),
    /// The host is saved and restored; its unfinished jobs are carried out, or not.
    Save(bool),
    /// The driver is unloaded and loaded again.
    Reload,
    Wait,
    /// A kernel with another alignment takes over, whatever the host was told.
    Replace {
        log2_mib: u8,
        map: MemoryMap,
    },
    /// How hot-add requests are answered from now on.
    Answer(HotAddAnswer),
}

/// Sizes the guest can have, including some above its boot RAM.
fn any_size() -> impl Strategy<Value = u64> {
    130..SIZE_MIB + CAPACITY_MIB
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        5 => Just(Move::Step(Step::ToGuest)),
        5 => Just(Move::Step(Step::ToHost)),
        4 => Just(Move::Step(Step::Job)),
        2 => any_size().prop_map(Move::Target),
        1 => Just(Move::Report),
        1 => prop_oneof![Just(Move::Reset), any_map().prop_map(Move::Kexec)],
        2 => any::<bool>().prop_map(Move::Save),
    ]
}

fn any_map() -> impl Strategy<Value = MemoryMap> {
    prop_oneof![Just(MemoryMap::Machine), Just(MemoryMap::Boot)]
}

/// Everything that can happen, even to a guest that does not do what it is asked.
fn any_mishap() -> impl Strategy<Value = Move> {
    prop_oneof![
        10 => any_move(),
        1 => Just(Move::Reload),
        1 => Just(Move::Wait),
        1 => (prop::sample::select(vec![1, 7, 8, 9]), any_map())
            .prop_map(|(log2_mib, map)| Move::Replace { log2_mib, map }),
        1 => any_honest_answer().prop_map(Move::Answer),
    ]
}

fn any_honest_answer() -> impl Strategy<Value = HotAddAnswer> {
    prop_oneof![
        Just(HotAddAnswer::TakesAll),
        (0..CAPACITY_MIB).prop_map(|limit| HotAddAnswer::AtMost(mib(limit))),
        Just(HotAddAnswer::Refuses),
        (1..3_u32).prop_map(|times| HotAddAnswer::Fails { times }),
        Just(HotAddAnswer::Silent),
        (1..200_u64).prop_map(|seconds| HotAddAnswer::Late(Duration::from_secs(seconds))),
    ]
}

/// Guests that do what they are asked.
fn any_guest() -> impl Strategy<Value = Personality> {
    prop::sample::select(vec![
        Personality::linux_6_1(),
        Personality::linux_6_12(8),
        Personality::windows_server_2012_r2(),
        Personality::windows_server_2022(),
    ])
}

fn make(pair: &mut Pair, next: Move) {
    match next {
        Move::Step(step) => {
            pair.step(step);
        }
        Move::Target(target) => pair.set_target(mib(target)),
        Move::Save(is_done) => pair.save_and_restore(is_done),
        Move::Report => pair.guest.report_status(),
        Move::Reset => {
            pair.reset();
            pair.reopen();
        }
        // Nobody knows what a guest did with memory that it was offered but did not answer for.
        Move::Kexec(_) if pair.snapshot().state == StateName::HotAdding => {}
        Move::Kexec(map) => {
            pair.kexec(map);
            pair.reopen();
        }
        Move::Reload => {
            pair.close();
            pair.reopen();
        }
        // No guest leaves a message unread for as long as a host waits.
        Move::Wait => {
            pair.run_now();
            pair.wait();
        }
        Move::Replace { log2_mib, map } => {
            pair.kexec(map);
            let personality = pair.guest.personality_mut();
            *personality = personality.clone().with_alignment(log2_mib);
            pair.reopen();
        }
        Move::Answer(answer) => pair.guest.personality_mut().hot_add.answer = answer,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_last_target_is_reached_whatever_came_before(
        guest in any_guest(),
        moves in prop::collection::vec(any_move(), 0..200),
        last in any_size(),
        shattered: bool,
    ) {
        let mut pair = Pair::with_capacity(guest, SIZE_MIB, IN_USE_MIB, SPACE_MIB);
        if shattered {
            pair.guest.memory_mut().shatter();
        }
        pair.open();
        pair.run();
        for next in moves {
            make(&mut pair, next);
        }
        pair.resize(mib(last));
        pair.assert_size(mib(last));
        prop_assert_eq!(pair.snapshot().faults, Default::default());
    }

    /// The pair itself checks that no page in use is discarded or removed, and that the guest uses
    /// no page that is not mapped.
    #[test]
    fn after_any_mishap_a_reset_makes_all_well(
        guest in any_guest(),
        moves in prop::collection::vec(any_mishap(), 0..200),
        last in any_size(),
    ) {
        let mut pair = Pair::with_capacity(guest.clone(), SIZE_MIB, IN_USE_MIB, SPACE_MIB);
        pair.open();
        pair.run();
        for next in moves {
            make(&mut pair, next);
        }
        *pair.guest.personality_mut() = guest;
        make(&mut pair, Move::Reset);
        pair.resize(mib(last));
        pair.assert_size(mib(last));
    }

    /// All targets are whole huge pages, and sizes that the guest's floor allows at once.
    #[test]
    fn on_huge_pages_the_last_target_is_reached_too(
        guest in any_guest(),
        moves in prop::collection::vec(any_move(), 0..200),
        last in 200..(SIZE_MIB + CAPACITY_MIB) / 2,
    ) {
        let mut pair = Pair::on_huge_pages(guest, SIZE_MIB, IN_USE_MIB, SPACE_MIB);
        pair.open();
        pair.run();
        for next in moves {
            match next {
                Move::Target(target) => pair.set_target(mib(target.max(400) & !1)),
                other => make(&mut pair, other),
            }
        }
        pair.resize(mib(2 * last));
        pair.assert_size(mib(2 * last));
        prop_assert_eq!(pair.snapshot().faults, Default::default());
    }
}
