//! One test for each rule.

use balancer::{
    Aged, Balancer, CgroupLimit, HoldCause, HostSample, Limit, Mode, OrderError, Policy, Pool,
    Reservation, Room, Rule, SettingsForm, Status, VmId, Zone,
};

use crate::world::{GIB, MIB, first, first_with, form, host, only, policy, targets, vm, vm_with};

#[test]
fn a_guest_grows_at_once_to_demand_and_buffer() {
    // It uses 3.5 of 4 GiB.
    let decision = only(&host(20 * GIB), vm(0, 4 * GIB, 3584 * MIB));
    assert_eq!(decision.target_kib, 3584 * MIB * 6 / 5);
    assert_eq!(decision.reason.rule, Rule::Grow);
    assert_eq!(decision.status, Some(Status::Low));
    assert_eq!(decision.pressure_permille, Some(1049));
}

#[test]
fn a_guest_that_has_nothing_left_is_given_more_than_it_uses() {
    let mut short = vm(0, 4 * GIB, 4 * GIB - MIB);
    let report = &mut short.sample.guest.as_mut().unwrap().value;
    report.committed.as_mut().unwrap().reported_kib = 7 * GIB;
    assert_eq!(only(&host(20 * GIB), short).target_kib, 7 * GIB * 6 / 5);
}

#[test]
fn a_surplus_is_taken_slowly_and_only_if_it_lasts() {
    let mut balancer = Balancer::new(policy());
    let idle = [vm(0, 8 * GIB, GIB)];
    let mut at = |now_ms| balancer.decide(now_ms, &host(GIB), &idle, &[]).unwrap().vms[0];
    assert_eq!(at(0).target_kib, 8 * GIB);
    assert_eq!(at(0).reason.rule, Rule::SurplusMayPass { ms: 30_000 });
    assert_eq!(at(29_999).target_kib, 8 * GIB);
    let wanted = GIB * 6 / 5;
    let surplus_kib = 8 * GIB - wanted;
    let step = at(30_000);
    assert_eq!(step.target_kib, 8 * GIB - surplus_kib / 2);
    assert_eq!(step.reason.rule, Rule::GiveSlowly { surplus_kib });
    assert_eq!(at(39_999).target_kib, step.target_kib);
    assert!(at(40_000).target_kib < step.target_kib);
}

#[test]
fn a_surplus_is_taken_at_once_where_others_need_it() {
    // There are 12 GiB in all. The second uses 3.75 of 4 GiB and wants 4.5.
    let vms = [vm(0, 8 * GIB, GIB), vm(1, 4 * GIB, 3840 * MIB)];
    let decision = first(&host(0), &vms);
    assert_eq!(targets(&decision)[0], 12 * GIB - 4608 * MIB - 12 * GIB / 16);
    assert!(matches!(decision.vms[0].reason.rule, Rule::GiveAtOnce { .. }));
    // It gets the memory when the first has given it.
    assert_eq!(targets(&decision)[1], 4 * GIB);
    assert_eq!(decision.vms[1].reason.rule, Rule::GrowAsFreed { missing_kib: GIB / 2 });
    let given = [vm(0, 12 * GIB - 4608 * MIB, GIB), vms[1]];
    assert_eq!(targets(&first(&host(GIB / 2), &given))[1], 4608 * MIB);
}

#[test]
fn free_memory_of_the_host_is_used_before_anything_is_taken() {
    let vms = [vm(0, 8 * GIB, GIB), vm(1, 4 * GIB, 3840 * MIB)];
    assert_eq!(targets(&first(&host(3 * GIB / 2), &vms)), [8 * GIB, 4608 * MIB]);
}

#[test]
fn the_largest_surplus_over_the_lowest_weight_goes_first() {
    let light = SettingsForm { weight: 2500, ..form() };
    let used = 5 * GIB / 6;
    // What three VMs lose when a fourth wants 768 MiB; they have 7, 3 and `surplus` beyond their
    // wish, and the third has half the weight.
    let lost = |surplus| {
        let third = vm_with(2, light, GIB + surplus, used);
        let fourth = vm(3, 25 * GIB / 4, 35 * GIB / 6);
        let vms = [vm(0, 8 * GIB, used), vm(1, 4 * GIB, used), third, fourth];
        // A sixteenth of all is free.
        let sizes: u64 = vms.iter().map(|vm| vm.sample.actual_kib.value).sum();
        let decision = first(&host(sizes / 15), &vms);
        [0, 1, 2].map(|n| vms[n].sample.actual_kib.value.abs_diff(targets(&decision)[n]) / MIB)
    };
    // 7 is more than 2 × 3.
    assert_eq!(lost(3 * GIB), [767, 0, 0]);
    // 2 × 4 is more than 7: the third loses 512 until it is level with the first, then half as much
    // as that one.
    assert_eq!(lost(4 * GIB), [170, 0, 597]);
}

#[test]
fn a_sixteenth_stays_free_where_only_surplus_would_take_it() {
    // 16 GiB in all, of which the guests want 2.4 and have 15.5.
    let vms = [vm(0, 8 * GIB, GIB), vm(1, 15 * GIB / 2, GIB)];
    let decision = first(&host(GIB / 2), &vms);
    assert_eq!(targets(&decision), [15 * GIB / 2; 2]);
    // What is wanted may take it: 7.6 of 8 GiB.
    let vms = [vm(0, 4 * GIB, 19 * GIB / 6), vm(1, 7 * GIB / 2, 19 * GIB / 6)];
    let decision = first(&host(GIB / 2), &vms);
    let wanted = 19 * GIB / 6 * 6 / 5;
    assert_eq!(targets(&decision), [wanted, wanted]);
}

#[test]
fn what_is_sure_goes_before_what_is_promised() {
    // 6.5 GiB in all. The first counts twice as much, uses 3 of 3.5 and has promised as much again,
    // of which a quarter may count. The second has nothing left.
    let heavy = SettingsForm { weight: 10_000, ..form() };
    let mut vms = [vm_with(0, heavy, 7 * GIB / 2, 3 * GIB), vm(1, 3 * GIB, 3 * GIB - MIB)];
    let report = &mut vms[0].sample.guest.as_mut().unwrap().value;
    report.committed.as_mut().unwrap().reported_kib = 6 * GIB;
    let decision = first(&host(0), &vms);
    assert_eq!(decision.zone, Zone::Tight);
    let sure = (3 * GIB - MIB) * 17 / 16;
    let [heavy, short] = targets(&decision)[..] else { panic!() };
    assert!((3 * GIB..=13 * GIB / 2 - sure).contains(&heavy), "{heavy}");
    assert_eq!(short, 3 * GIB, "until the first has given");
}

#[test]
fn buffers_go_before_needs() {
    // 8 GiB in all; needs are 3 and 4, and buffers 0.6 and 0.8.
    let vms = [vm(0, 4 * GIB, 3 * GIB), vm(1, 4 * GIB, 4 * GIB - 200 * MIB)];
    let decision = first(&host(0), &vms);
    assert_eq!(decision.zone, Zone::Tight);
    let [a, b] = targets(&decision)[..] else { panic!() };
    assert!((3 * GIB..4 * GIB).contains(&a), "{a}");
    assert_eq!(b, 4 * GIB);
    assert!(matches!(decision.vms[0].reason.rule, Rule::ShareOfBuffers { .. }));
}

#[test]
fn in_an_emergency_needs_are_shared_by_weight_down_to_the_minimum() {
    let heavy = SettingsForm { weight: 10_000, ..form() };
    let protected = SettingsForm { minimum_kib: 4 * GIB, startup_kib: 4 * GIB, ..form() };
    // The host has lost 6 of 18 GiB: each VM has 6, uses 5.5, and only 4 are behind it.
    let mut vms = [
        vm(0, 6 * GIB, 5632 * MIB),
        vm_with(1, heavy, 6 * GIB, 5632 * MIB),
        vm_with(2, protected, 6 * GIB, 5632 * MIB),
    ];
    for vm in &mut vms {
        vm.sample.process.as_mut().unwrap().value.rss_kib = 4 * GIB - GIB / 2;
    }
    let decision = first(&host(0), &vms);
    assert_eq!(decision.zone, Zone::Emergency);
    // 10.5 GiB: the third has its minimum, and of the rest the second gets twice as much as the
    // first.
    let rest = 10 * GIB + GIB / 2 - 4 * GIB;
    let (low, high) = (rest / 3, rest - rest / 3);
    for (target, wanted) in targets(&decision).iter().zip([low, high, 4 * GIB]) {
        assert!(target.abs_diff(wanted) <= 1, "{target} {wanted}");
    }
    assert_eq!(decision.vms[2].reason.limit, Some(Limit::Minimum { kib: 4 * GIB }));
    assert!(matches!(decision.vms[0].reason.rule, Rule::ShareOfNeeds { .. }));
}

#[test]
fn a_host_too_small_for_the_minima_says_so() {
    let mut vms = [vm(0, GIB, GIB / 2), vm(1, GIB, GIB / 2)];
    for vm in &mut vms {
        vm.sample.process.as_mut().unwrap().value.rss_kib = 200 * MIB;
    }
    let decision = first(&host(0), &vms);
    assert_eq!(targets(&decision), [GIB / 2, GIB / 2]);
    assert_eq!(decision.ordinary.unwrap().overcommitted_kib, GIB - 400 * MIB);
}

#[test]
fn pressure_on_the_host_ends_patience() {
    let pressed = HostSample { psi_some_permille: 100, ..host(20 * GIB) };
    let decision = first(&pressed, &[vm(0, 8 * GIB, GIB)]);
    assert_eq!(decision.zone, Zone::Tight);
    assert_eq!(targets(&decision), [GIB * 6 / 5]);
}

#[test]
fn old_data_hold_a_vm_even_if_others_starve() {
    let mut silent = vm(0, 8 * GIB, GIB);
    silent.sample.guest.as_mut().unwrap().age_ms = 10_001;
    let decision = first(&host(0), &[silent, vm(1, 4 * GIB, 3900 * MIB)]);
    assert_eq!(targets(&decision), [8 * GIB, 4 * GIB]);
    let cause = HoldCause::OldReport { age_ms: 10_001 };
    assert_eq!(decision.vms[0].reason.rule, Rule::Hold(cause));
}

#[test]
fn a_held_vm_and_a_host_without_figures_stay() {
    let mut held = vm(0, 8 * GIB, GIB);
    held.mode = Mode::Held;
    let pressed = HostSample { psi_some_permille: 100, ..host(20 * GIB) };
    assert_eq!(only(&pressed, held).target_kib, 8 * GIB);
    let blind = HostSample { age_ms: 10_001, ..pressed };
    let wish = Reservation { size_kib: GIB, pool: Pool::Ordinary };
    let decision = first_with(&blind, &[vm(0, 8 * GIB, GIB)], &[wish]);
    assert_eq!(targets(&decision), [8 * GIB]);
    assert_eq!(decision.vms[0].reason.rule, Rule::Hold(HoldCause::Host));
    assert_eq!((decision.rooms[0], decision.ordinary), (Room::Unknown, None));
}

#[test]
fn a_balancer_that_starts_anew_moves_nobody() {
    let mut vms = [vm(0, 8 * GIB, GIB), vm(1, 4 * GIB, 3 * GIB), vm(2, 2 * GIB, GIB)];
    vms[2].sample.guest = None;
    vms[2].sample.process = None;
    assert_eq!(targets(&first(&host(GIB), &vms)), [8 * GIB, 4 * GIB, 2 * GIB]);
}

#[test]
fn without_reports_the_host_s_figures_count_and_the_reason_says_so() {
    let mut mute = vm(0, 4 * GIB, GIB);
    mute.sample.guest = None;
    let decision = only(&host(20 * GIB), mute);
    assert_eq!(decision.target_kib, 4 * GIB * 6 / 5);
    assert!(decision.reason.to_string().starts_with("The guest reports nothing"));
}

#[test]
fn a_vm_that_refuses_keeps_its_memory_and_gets_no_more() {
    let mut balancer = Balancer::new(policy());
    let pressed = HostSample { psi_some_permille: 100, ..host(0) };
    let vms = [vm(0, 8 * GIB, GIB), vm(1, 4 * GIB, 3840 * MIB)];
    let mut at = |now_ms| balancer.decide(now_ms, &pressed, &vms, &[]).unwrap().clone();
    assert_eq!(targets(&at(0))[0], GIB * 6 / 5);
    at(1000);
    let stuck = at(21_000);
    assert_eq!(stuck.vms[0].reason.rule, Rule::DoesNotGive { for_ms: 20_000 });
    assert_eq!(targets(&stuck), [GIB * 6 / 5, 4 * GIB], "nobody gets what it does not give");
}

#[test]
fn what_a_stuck_vm_does_not_take_goes_to_others() {
    let mut balancer = Balancer::new(policy());
    // 2 GiB are free; both need 2 more.
    let mut vms = [vm(0, 8 * GIB, 7 * GIB), vm(1, 8 * GIB, 7 * GIB)];
    for vm in &mut vms {
        vm.sample.guest.as_mut().unwrap().value.actual_kib = 10 * GIB;
        vm.sample.guest.as_mut().unwrap().value.available_kib = GIB;
    }
    let mut at = |now_ms, second: u64| {
        vms[1].sample.actual_kib.value = second;
        let free = 2 * GIB - (second - 8 * GIB);
        vms[1].sample.process.as_mut().unwrap().value.rss_kib = second;
        balancer.decide(now_ms, &host(free), &vms, &[]).unwrap().clone()
    };
    assert_eq!(targets(&at(0, 8 * GIB)), [9 * GIB, 9 * GIB]);
    at(1000, 9 * GIB);
    let stuck = at(21_000, 9 * GIB);
    assert_eq!(stuck.vms[0].reason.rule, Rule::CannotGrow { for_ms: 20_000 });
    assert_eq!(targets(&stuck), [8 * GIB, 10 * GIB]);
}

#[test]
fn limits_are_obeyed_and_named() {
    let full = vm(0, 4 * GIB, 4 * GIB - 160 * MIB);
    let mut limited = full;
    limited.sample.process.as_mut().unwrap().value.cgroup_limit_kib = Some(4544 * MIB);
    let decision = only(&host(20 * GIB), limited);
    assert_eq!(decision.target_kib, 4480 * MIB);
    assert_eq!(decision.reason.limit, Some(Limit::Cgroup { kib: 4480 * MIB }));

    let mut stalled = full;
    stalled.sample.process.as_mut().unwrap().value.psi_some_permille = 200;
    let decision = only(&host(20 * GIB), stalled);
    assert_eq!(decision.target_kib, 4 * GIB);
    assert_eq!(decision.reason.limit, Some(Limit::Stalls { psi_some_permille: 200 }));

    let small = SettingsForm { maximum_kib: 4 * GIB, ..form() };
    let decision = only(&host(20 * GIB), vm_with(0, small, 4 * GIB, 4 * GIB - 160 * MIB));
    assert_eq!(decision.target_kib, 4 * GIB);
    assert_eq!(decision.reason.limit, Some(Limit::Maximum { kib: 4 * GIB }));
}

#[test]
fn settings_are_live() {
    let mut balancer = Balancer::new(policy());
    let mut with = |form| {
        let vms = [vm_with(0, form, 4 * GIB, 3 * GIB)];
        balancer.decide(0, &host(20 * GIB), &vms, &[]).unwrap().vms[0]
    };
    assert_eq!(with(form()).target_kib, 4 * GIB);
    assert_eq!(with(SettingsForm { buffer_percent: 100, ..form() }).target_kib, 6 * GIB);
    let decision = with(SettingsForm { maximum_kib: 3 * GIB, ..form() });
    assert_eq!((decision.target_kib, decision.reason.rule), (3 * GIB, Rule::DownToLimit));
    let high = SettingsForm { minimum_kib: 8 * GIB, startup_kib: 8 * GIB, ..form() };
    assert_eq!(with(high).target_kib, 8 * GIB);
}

#[test]
fn a_lowered_limit_of_the_host_s_cgroup_counts_in_the_same_decision() {
    let cgroup = CgroupLimit { limit_kib: 6 * GIB, current_kib: 8 * GIB, reclaimable_kib: 0 };
    let limited = HostSample { cgroup: Some(cgroup), ..host(20 * GIB) };
    let mut idle = vm(0, 8 * GIB, GIB);
    idle.sample.process.as_mut().unwrap().value.rss_kib = 8 * GIB;
    let decision = first(&limited, &[idle]);
    // What is behind the VM counts as there; the group has no room beyond it.
    assert_eq!(decision.ordinary.unwrap().total_kib, 6 * GIB);
    assert_eq!(targets(&decision), [6 * GIB - 6 * GIB / 16]);
}

#[test]
fn room_is_reserved_from_the_surplus_of_others() {
    let vms = [vm(0, 8 * GIB, 2 * GIB)];
    let wish = |size_kib| [Reservation { size_kib, pool: Pool::Ordinary }];
    let waiting = first_with(&host(GIB), &vms, &wish(4 * GIB));
    let rest = 5 * GIB - 5 * GIB / 16;
    assert_eq!(targets(&waiting), [rest]);
    assert_eq!(waiting.rooms, [Room::Waiting { missing_kib: 3 * GIB }]);
    let ready = first_with(&host(4 * GIB), &[vm(0, 5 * GIB, 2 * GIB)], &wish(4 * GIB));
    assert_eq!((targets(&ready), ready.rooms), (vec![rest], vec![Room::Ready]));
    let impossible = first_with(&host(GIB), &vms, &wish(8 * GIB));
    assert_eq!(impossible.rooms, [Room::Impossible { most_kib: 7 * GIB }]);
    assert_eq!(targets(&impossible), [8 * GIB], "nothing is taken for what cannot be");
}

#[test]
fn a_growing_vm_does_not_take_reserved_room() {
    let wish = [Reservation { size_kib: 2 * GIB, pool: Pool::Ordinary }];
    let decision = first_with(&host(2 * GIB), &[vm(0, 4 * GIB, 3900 * MIB)], &wish);
    assert_eq!((targets(&decision), decision.rooms), (vec![4 * GIB], vec![Room::Ready]));
}

#[test]
fn huge_pages_are_an_account_of_their_own() {
    let mut huge = vm(0, 4 * GIB, 3900 * MIB);
    huge.pool = Pool::HugePages;
    let decision = first(&host(20 * GIB), &[huge]);
    assert_eq!(targets(&decision), [4 * GIB]);
    let sample = HostSample { huge_pages_free_kib: 8 * GIB, ..host(0) };
    assert_eq!(targets(&first(&sample, &[huge])), [3900 * MIB * 6 / 5]);
}

#[test]
fn vms_out_of_order_are_refused() {
    let mut balancer = Balancer::new(Policy::default());
    for (first, second) in [(2, 1), (1, 1)] {
        let vms = [vm(first, GIB, GIB / 2), vm(second, GIB, GIB / 2)];
        let error = OrderError { first: VmId(first), second: VmId(second) };
        assert_eq!(balancer.decide(0, &host(0), &vms, &[]).unwrap_err(), error);
    }
}

#[test]
fn a_vm_that_is_gone_is_forgotten() {
    let mut balancer = Balancer::new(policy());
    let mut idle = vm(1, 8 * GIB, GIB);
    balancer.decide(0, &host(0), &[vm(0, GIB, GIB / 2), idle], &[]).unwrap();
    balancer.decide(1, &host(0), &[], &[]).unwrap();
    idle.sample.actual_kib = Aged { value: 2 * GIB, age_ms: 0 };
    idle.sample.guest = None;
    let decision = balancer.decide(2, &host(0), &[idle], &[]).unwrap();
    assert_eq!(decision.vms[0].target_kib, 2 * GIB, "the old target was 8 GiB");
}
