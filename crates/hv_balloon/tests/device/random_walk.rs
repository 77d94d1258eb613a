//! Random walks: the device keeps its guarantees with any guest, driver and operator.

use page_range::PageRange;
use proptest::prelude::*;

use crate::world::{BLOCK, Op, PAGES, World, range};

fn any_range() -> impl Strategy<Value = PageRange> {
    (prop_oneof![0..PAGES, 500..900_u64], 1..40_u64).prop_map(|(start, count)| range(start, count))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Open),
        1 => Just(Op::Close),
        1 => Just(Op::Reset),
        2 => prop_oneof![Just(0x2_0000), Just(0x1_0000), Just(3), any::<u32>()].prop_map(Op::Version),
        2 => (0..8_u64).prop_map(Op::Capabilities),
        4 => (prop::collection::vec(any_range(), 0..4), any::<bool>())
            .prop_map(|(ranges, more)| Op::Give(ranges, more)),
        8 => (-20..5_i8).prop_map(Op::Obey),
        6 => Just(Op::Confirm),
        1 => Just(Op::Status),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Op::Garbage),
        6 => (0..100_u64).prop_map(Op::Target),
        3 => (0..1000_u64).prop_map(Op::Target),
        3 => (prop_oneof![Just(0), Just(BLOCK), Just(2 * BLOCK), 0..1000_u64], 0..3_u32)
            .prop_map(|(pages, verdict)| Op::Added(pages, verdict)),
        6 => (0..6_u8).prop_map(|roll| Op::Prepared(roll != 0)),
        14 => Just(Op::Write),
        10 => (0..8_u8).prop_map(|roll| Op::Discarded(roll != 0)),
        3 => (0..70_u64).prop_map(Op::Wait),
        6 => (0..4_u8).prop_map(|roll| Op::Removed(roll != 0)),
        2 => any::<bool>().prop_map(Op::Inhibit),
        3 => Just(Op::Restore),
    ]
}

/// A completed handshake, then any operations: few walks would otherwise get past the handshake.
fn walk() -> impl Strategy<Value = Vec<Op>> {
    let start = [
        Op::Open,
        Op::Version(0x2_0000),
        Op::Write,
        Op::Capabilities(3),
        Op::Write,
        Op::Target(40),
    ];
    prop::collection::vec(op(), 1..80)
        .prop_map(move |ops| start.iter().cloned().chain(ops).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn promises_hold_on_any_walk(ops in walk(), unit in prop_oneof![Just(1_u64), Just(8)]) {
        let mut world = World::new(unit);
        for op in ops {
            world.apply(op);
        }
    }
}
