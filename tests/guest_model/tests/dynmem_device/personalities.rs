//! Every named guest: boot with 1 GiB, shrink, grow back, grow beyond.

use dynmem_protocol::Capabilities;
use guest_model::dynmem::Personality;
use hv_balloon::{Refusal, StopReason, TargetError, Version};
use page_range::PageCount;

use crate::pair::*;

/// Why a guest does not shrink, or does not grow beyond its boot size; `None` if it does.
struct Expected {
    shrink: Option<StopReason>,
    hot_add: Option<StopReason>,
}

fn expected(name: &str) -> Expected {
    let (shrink, hot_add) = match name {
        "Linux with hibernation" => (Some(StopReason::Timeout), Some(StopReason::HotAddRefused)),
        "Linux 6.1 with large blocks" => (None, Some(StopReason::HotAddFailed)),
        "Linux without auto-online" => (None, Some(StopReason::NotOnlined)),
        _ => (None, None),
    };
    Expected { shrink, hot_add }
}

#[test]
fn every_guest_shrinks_and_grows_back() {
    for personality in Personality::all() {
        let mut pair = Pair::ready(personality);
        let name = pair.guest.personality().name;
        let expected = expected(name).shrink;
        for size in [512, 1024, 700, 1024] {
            pair.resize(mib(size));
            let reached = if expected.is_some() { 1024 } else { size };
            assert_eq!(pair.snapshot().actual, mib(reached), "{name}");
            pair.assert_size(mib(reached));
            let stop = expected.filter(|_| size < 1024);
            assert_eq!(pair.snapshot().last_stop, stop, "{name}");
        }
        assert_eq!(pair.snapshot().faults, Default::default(), "{name}");
    }
}

#[test]
fn every_guest_grows_beyond_its_boot_size_or_says_why_not() {
    for personality in Personality::all() {
        let mut pair = Pair::ready(personality);
        let name = pair.guest.personality().name;
        let expected = expected(name).hot_add;
        for size in [mib(1500), PageCount::new(400_001), mib(800), mib(2500)] {
            pair.resize(size);
            let snapshot = pair.snapshot();
            if expected.is_none() {
                assert_eq!(snapshot.actual, size, "{name}");
                pair.assert_size(size);
                assert_eq!(snapshot.last_stop, None, "{name}");
            } else if size > mib(1024) {
                assert_eq!(snapshot.last_stop, expected, "{name} {size}: {snapshot:?}");
            }
        }
        assert_eq!(pair.snapshot().faults, Default::default(), "{name}");
    }
}

#[test]
fn every_guest_is_resized_in_steps_of_what_it_gives_at_a_time() {
    for mut personality in Personality::all().into_iter().filter(|guest| !guest.ignores_requests) {
        personality.ballooning.most_per_request = mib(200);
        personality.ballooning.ranges_per_message = 3;
        let mut pair = Pair::ready(personality);
        pair.resize(mib(512));
        pair.assert_size(mib(512));
    }
}

#[test]
fn every_guest_is_spoken_to_in_its_version() {
    for personality in Personality::all() {
        let (name, newest) = (personality.name, personality.versions[0]);
        let pair = Pair::ready(personality);
        assert_eq!(pair.snapshot().version, Some(newest), "{name}");
        assert_eq!(pair.guest.version(), Some(newest), "{name}");
    }
}

#[test]
fn every_version_alone_is_enough_to_shrink_and_to_grow() {
    for version in Version::KNOWN {
        let personality = Personality { versions: vec![version], ..Personality::linux_6_1() };
        let mut pair = Pair::ready(personality);
        for size in [512, 1400] {
            pair.resize(mib(size));
            pair.assert_size(mib(size));
        }
        assert_eq!(pair.snapshot().version, Some(version));
    }
}

#[test]
fn the_announced_alignment_is_kept_whatever_it_is() {
    for log2_mib in 0..=13 {
        let mut pair = Pair::with_capacity(
            Personality::windows_server_2022().with_alignment(log2_mib),
            1024,
            64,
            16 << 10,
        );
        pair.open();
        pair.run();
        pair.resize(mib(4000));
        pair.assert_size(mib(4000));
    }
}

#[test]
fn an_alignment_that_leaves_no_room_is_told_with_the_target() {
    let mut pair = Pair::ready(Personality::windows_server_2022().with_alignment(15));
    pair.resize(mib(1025));
    let refused = TargetError::AboveMaximum { requested: mib(1025), maximum: mib(1024) };
    let last = pair.snapshot().last_refusal.map(|(_, why)| why);
    assert_eq!(last, Some(Refusal::Target(refused)));
    pair.assert_size(mib(1024));
}

#[test]
fn a_guest_that_takes_no_memory_keeps_its_boot_size() {
    let capabilities = Capabilities::BALLOON;
    let personality = Personality { capabilities, ..Personality::linux_6_1() };
    let mut pair = Pair::ready(personality.clone());
    pair.resize(mib(1500));
    let refused = TargetError::CannotHotAdd { maximum: mib(1024) };
    let last = pair.snapshot().last_refusal.map(|(_, why)| why);
    assert_eq!(last, Some(Refusal::Target(refused)));
    pair.assert_size(mib(1024));
    // Set the target before the host knows the guest's capabilities.
    let mut early = Pair::with_capacity(personality, 1024, 64, 4096);
    early.set_target(mib(1500));
    early.open();
    early.run();
    assert_eq!(early.snapshot().last_stop, Some(StopReason::NoHotAddCapability));
    early.assert_size(mib(1024));
}

#[test]
fn a_target_set_before_boot_is_reached_when_the_guest_is_ready() {
    for personality in [Personality::linux_6_12(7), Personality::windows_server_2019()] {
        for size in [600, 1500] {
            let mut pair = Pair::with_capacity(personality.clone(), 1024, 64, 4096);
            pair.set_target(mib(size));
            pair.open();
            pair.run();
            pair.assert_size(mib(size));
            assert!(pair.now >= pair.guest.personality().settle);
        }
    }
}
