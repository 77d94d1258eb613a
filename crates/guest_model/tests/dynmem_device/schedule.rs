//! Any order of what can happen: targets change while messages and discards are under way.

use guest_model::dynmem::{Client, Memory, Personality};
use proptest::prelude::*;

use crate::pair::*;

const SIZE_MIB: u64 = 256;
const IN_USE_MIB: u64 = 8;

#[derive(Clone, Copy, Debug)]
enum Move {
    Step(Step),
    Target(u64),
    Report,
    Reset,
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        5 => Just(Move::Step(Step::ToGuest)),
        5 => Just(Move::Step(Step::ToHost)),
        4 => Just(Move::Step(Step::Discard)),
        2 => (130..256_u64).prop_map(Move::Target),
        1 => Just(Move::Report),
        1 => Just(Move::Reset),
    ]
}

/// A reset that the driver of the VM sees through to the end before the guest runs again.
fn reboot(pair: &mut Pair) {
    let memory = Memory::new(ram(SIZE_MIB), mib(IN_USE_MIB));
    pair.reset(Client::new(Personality::linux_6_1(), memory));
    while pair.step(Step::Discard) {}
    pair.open();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_last_target_is_reached_whatever_came_before(
        moves in prop::collection::vec(any_move(), 0..200),
        last in 130..256_u64,
        shattered: bool,
    ) {
        let mut pair = Pair::new(Personality::linux_6_1(), SIZE_MIB, IN_USE_MIB);
        if shattered {
            pair.guest.memory_mut().shatter();
        }
        pair.open();
        pair.run();
        for next in moves {
            match next {
                Move::Step(step) => {
                    pair.step(step);
                }
                Move::Target(target) => pair.set_target(mib(target)),
                Move::Report => pair.guest.report_status(),
                Move::Reset => reboot(&mut pair),
            }
        }
        pair.resize(mib(last));
        pair.assert_size(mib(last));
        prop_assert_eq!(pair.snapshot().faults, Default::default());
    }
}
