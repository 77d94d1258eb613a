use super::*;
use crate::process::Group;
use crate::reading::Facts;
use crate::status::MovedStatus;
use balancer::{GuestReport, Policy, ProcessSample};

const GIB: u64 = 1 << 20;

fn configuration(limit_kib: u64) -> Configuration {
    let policy = Policy {
        host_reserve_kib: Some(0),
        surplus_lasts_ms: 0,
        shrink_period_ms: 0,
        ..Policy::default()
    };
    Configuration { policy, limit_kib: Some(limit_kib), ..Configuration::default() }
}

fn host(at_ms: u64) -> Option<Stamped<HostSample>> {
    let value = HostSample {
        age_ms: 0,
        total_kib: 64 * GIB,
        available_kib: 64 * GIB,
        cgroup: None,
        limit_kib: None,
        psi_some_permille: 0,
        psi_full_permille: 0,
        swapped_in_kib: 0,
        huge_pages_free_kib: 0,
    };
    Some(Stamped { value, at_ms })
}

/// A VM that booted with 4 GiB and can have 16.
fn silent(name: &str, at_ms: u64, actual_kib: u64) -> VmInput {
    let reading = Reading {
        facts: Facts { boot_kib: 4 * GIB, maximum_kib: 16 * GIB },
        actual: Stamped { value: actual_kib, at_ms },
        report: None,
        can_report: true,
        told_kib: None,
        obstacle: None,
    };
    let name = name.to_owned();
    let link = Link::Up;
    VmInput { name, link, reading: Some(reading), is_settled: true, ..VmInput::default() }
}

fn vm(name: &str, at_ms: u64, actual_kib: u64, used_kib: u64) -> VmInput {
    let mut input = silent(name, at_ms, actual_kib);
    let report = GuestReport {
        actual_kib,
        available_kib: actual_kib - used_kib,
        committed: None,
        swapped_in_kib: None,
        oom_kills: None,
    };
    input.reading.as_mut().unwrap().report = Some(Stamped { value: report, at_ms });
    input
}

fn targets(orders: &[Order]) -> Vec<(&str, u64)> {
    orders.iter().map(|order| (order.name.as_str(), order.target_kib)).collect()
}

#[test]
fn memory_moves_from_the_idle_vm_to_the_busy_one_and_never_exceeds_what_there_is() {
    let mut core = Core::new(configuration(8 * GIB), false);
    let mut sizes = [4 * GIB; 2];
    let used = [GIB, 4 * GIB - 4096];
    for second in 0..20 {
        let now_ms = second * 1000;
        let vms = ["idle", "busy"].iter().zip(sizes).zip(used);
        let vms = vms.map(|((name, size), used)| vm(name, now_ms, size, used.min(size - 1)));
        for order in core.decide(now_ms, host(now_ms), vms.collect()) {
            sizes[usize::from(order.name == "busy")] = order.target_kib;
        }
        assert!(sizes.iter().sum::<u64>() <= 8 * GIB, "{sizes:?}");
    }
    assert!(sizes[0] < 2 * GIB && sizes[1] > 5 * GIB, "{sizes:?}");
}

#[test]
fn a_daemon_that_starts_anew_moves_nobody() {
    // It was shrunk to 1.5 GiB before, and its process holds 4 GiB.
    let shrunk = 3 * GIB / 2;
    let mut silent = silent("db", 0, shrunk);
    silent.reading.as_mut().unwrap().told_kib = Some(shrunk);
    let sample = ProcessSample { rss_kib: 4 * GIB, ..ProcessSample::default() };
    let figures = Figures { sample, pool: Pool::Ordinary, group: Group::Unknown };
    silent.process = Some(Stamped { value: figures, at_ms: 0 });
    let mut core = Core::new(configuration(8 * GIB), false);
    assert_eq!(core.decide(0, host(0), vec![silent.clone()]), []);
    let status = core.status(500);
    assert_eq!(status.vms[0].target_kib, Some(shrunk));
    assert_eq!(
        status.vms[0].reason.as_deref(),
        Some("It stays as it is: its guest has not reported yet.")
    );
    // Its guest reports that all is well.
    let mut vm = vm("db", 1000, shrunk, 5 * GIB / 4);
    vm.reading.as_mut().unwrap().told_kib = Some(shrunk);
    assert_eq!(core.decide(1000, host(1000), vec![vm]), []);
}

#[test]
fn what_a_vm_was_told_before_is_stopped_only_once_its_need_is_known() {
    let mut core = Core::new(configuration(64 * GIB), false);
    let mut moving = silent("db", 0, 4 * GIB);
    moving.reading.as_mut().unwrap().told_kib = Some(GIB);
    assert_eq!(core.decide(0, host(0), vec![moving]), []);
    let mut moving = vm("db", 1000, 4 * GIB, 7 * GIB / 2);
    moving.reading.as_mut().unwrap().told_kib = Some(GIB);
    let orders = core.decide(1000, host(1000), vec![moving]);
    assert_eq!(targets(&orders), [("db", 7 * GIB / 2 * 120 / 100)]);
}

#[test]
fn a_held_vm_is_told_nothing_and_counts_anew_when_it_is_released() {
    let mut core = Core::new(configuration(64 * GIB), false);
    assert_eq!(core.decide(0, host(0), vec![vm("db", 0, 4 * GIB, 3 * GIB)]).len(), 1);
    let hold = |hold| Wish { hold: Some(hold), ..Wish::default() };
    core.set("db", hold(true)).unwrap();
    assert_eq!(core.decide(1000, host(1000), vec![vm("db", 1000, 4 * GIB, 4 * GIB - 1)]), []);
    let explanation = core.explain("db", 1000).unwrap();
    assert!(explanation.vm.held);
    assert_eq!(explanation.sentences[0], "It stays as it is: the operator holds it.");
    // Meanwhile the operator gave it 8 GiB.
    core.decide(2000, host(2000), vec![vm("db", 2000, 8 * GIB, 3 * GIB)]);
    core.set("db", hold(false)).unwrap();
    let mut lasting = configuration(64 * GIB);
    lasting.policy.surplus_lasts_ms = 30_000;
    core.configure(lasting);
    let orders = core.decide(3000, host(3000), vec![vm("db", 3000, 8 * GIB, 3 * GIB)]);
    assert_eq!(targets(&orders), [("db", 8 * GIB)], "it does not jump back");
}

#[test]
fn a_vm_that_is_elsewhere_is_told_again_after_a_while() {
    let mut core = Core::new(configuration(64 * GIB), false);
    let at = |now_ms, size| vm("db", now_ms, size, 7 * GIB / 2);
    let first = core.decide(0, host(0), vec![at(0, 4 * GIB)]);
    let target_kib = first[0].target_kib;
    assert!(!first[0].is_reminder && target_kib > 4 * GIB);
    for now_ms in [1000, 29_000] {
        assert_eq!(core.decide(now_ms, host(now_ms), vec![at(now_ms, target_kib)]), []);
    }
    // Somebody else has told it something.
    let again = core.decide(31_000, host(31_000), vec![at(31_000, 8 * GIB)]);
    assert!(again[0].is_reminder, "{again:?}");
    assert_eq!(targets(&again), [("db", target_kib)]);
    assert_eq!(core.decide(32_000, host(32_000), vec![at(32_000, 7 * GIB)]), []);
}

#[test]
fn a_vm_that_was_reset_or_started_again_is_another() {
    let mut core = Core::new(configuration(64 * GIB), false);
    let orders = core.decide(0, host(0), vec![vm("db", 0, 4 * GIB, 3 * GIB)]);
    assert!(orders[0].life == 0 && orders[0].target_kib < 4 * GIB, "{orders:?}");
    let mut reset = silent("db", 1000, 4 * GIB);
    reset.life = 1;
    assert_eq!(core.decide(1000, host(1000), vec![reset]), []);
    let mut reset = vm("db", 2000, 4 * GIB, 3 * GIB);
    reset.life = 1;
    assert_eq!(core.decide(2000, host(2000), vec![reset])[0].life, 1);
}

#[test]
fn vms_that_do_not_answer_keep_what_they_have_and_those_that_ended_count_no_more() {
    let mut core = Core::new(configuration(8 * GIB), false);
    let hungry = |now_ms| vm("hungry", now_ms, 2 * GIB, 2 * GIB - 4096);
    let mut away = vm("away", 0, 6 * GIB, GIB);
    core.decide(0, host(0), vec![away.clone(), hungry(0)]);
    away.link = Link::Down("no answer".to_owned());
    let orders = core.decide(60_000, host(60_000), vec![away.clone(), hungry(60_000)]);
    assert!(orders.iter().all(|order| order.name != "away"), "{orders:?}");
    assert_eq!(core.status(60_000).vms[0].problem.as_deref(), Some("no answer"));
    assert_eq!(core.status(60_000).vms[0].age_ms, Some(60_000));
    away.link = Link::Gone("it has ended".to_owned());
    let orders = core.decide(61_000, host(61_000), vec![away, hungry(61_000)]);
    assert!(orders[0].target_kib > 2 * GIB, "{orders:?}");
}

#[test]
fn without_figures_of_the_host_nobody_moves() {
    let mut core = Core::new(configuration(8 * GIB), false);
    let hungry = vm("db", 0, 4 * GIB, 4 * GIB - 4096);
    assert_eq!(core.decide(0, None, vec![hungry.clone()]), []);
    assert_eq!(core.status(0).host.zone, "unknown");
    assert_eq!(core.decide(0, host(0), vec![hungry.clone()]).len(), 1);
    // They are as old as the clock says.
    let fresh = vm("db", 20_000, 4 * GIB, 4 * GIB - 1);
    assert_eq!(core.decide(20_000, host(0), vec![fresh]), []);
}

#[test]
fn a_claim_counts_as_no_more_than_the_host_or_the_group_can_give() {
    let mut core = Core::new(configuration(64 * GIB), false);
    let mut liar = silent("liar", 0, u64::MAX);
    core.decide(0, host(0), vec![liar.clone()]);
    assert_eq!(core.status(0).vms[0].assigned_kib, Some(64 * GIB));
    let sample = ProcessSample { cgroup_limit_kib: Some(3 * GIB), ..ProcessSample::default() };
    let figures = Figures { sample, pool: Pool::Ordinary, group: Group::Unknown };
    liar.process = Some(Stamped { value: figures, at_ms: 0 });
    core.decide(0, host(0), vec![liar]);
    assert_eq!(core.status(0).vms[0].assigned_kib, Some(3 * GIB));
}

#[test]
fn memory_that_was_promised_is_not_given_to_another() {
    let mut core = Core::new(configuration(8 * GIB), false);
    let mut first = vm("first", 0, 2 * GIB, 2 * GIB - 4096);
    first.reading.as_mut().unwrap().facts.maximum_kib = 5 * GIB;
    let second = |now_ms, used| vm("second", now_ms, 2 * GIB, used);
    let wish = Wish { minimum_kib: Some(5 * GIB), ..Wish::default() };
    core.decide(0, host(0), vec![first.clone(), second(0, GIB)]);
    core.set("first", wish).unwrap();
    core.set("second", Wish { buffer_percent: Some(200), ..Wish::default() }).unwrap();
    let orders = core.decide(1, host(1), vec![first.clone(), second(1, GIB)]);
    assert!(targets(&orders).contains(&("first", 5 * GIB)), "{orders:?}");
    // The operator takes that back, and the other needs all; the first was not read since.
    core.set("first", Wish { minimum_kib: Some(GIB), maximum_kib: Some(2 * GIB), ..wish }).unwrap();
    first.is_settled = false;
    let hungry = second(2, 2 * GIB - 4096);
    let orders = core.decide(2, host(2), vec![first.clone(), hungry.clone()]);
    let given = orders.iter().filter(|order| order.name == "second").map(|o| o.target_kib);
    assert!(given.max().unwrap_or(0) <= 3 * GIB, "{orders:?}");
    first.is_settled = true;
    // It never took it.
    let orders = core.decide(3, host(3), vec![first, hungry]);
    let given = orders.iter().find(|order| order.name == "second").unwrap();
    assert!(given.target_kib > 3 * GIB, "{orders:?}");
}

#[test]
fn a_dry_run_expects_nobody_to_move() {
    let hungry = |now_ms| vm("db", now_ms, 4 * GIB, 4 * GIB - 4096);
    let reason = |dry_run| {
        let mut core = Core::new(configuration(64 * GIB), dry_run);
        for second in 0..40 {
            core.decide(second * 1000, host(second * 1000), vec![hungry(second * 1000)]);
        }
        assert_eq!(core.status(0).dry_run, dry_run);
        core.status(0).vms[0].reason.clone().unwrap()
    };
    assert!(reason(false).contains("stuck"));
    assert!(!reason(true).contains("stuck"));
}

#[test]
fn room_is_reserved_taken_and_used_by_the_vm_that_comes() {
    let mut core = Core::new(configuration(8 * GIB), false);
    let idle = |now_ms, size| vm("idle", now_ms, size, GIB);
    core.decide(0, host(0), vec![idle(0, 8 * GIB)]);
    let id = core.reserve(4 * GIB, 0, 60_000).unwrap();
    let orders = core.decide(1000, host(1000), vec![idle(1000, 8 * GIB)]);
    let room = core.reservation(id, 1000).unwrap();
    assert!(!room.ready && !room.impossible && orders[0].target_kib <= 4 * GIB, "{room:?}");
    core.decide(2000, host(2000), vec![idle(2000, 4 * GIB)]);
    assert!(core.reservation(id, 2000).unwrap().ready);
    let large = core.reserve(64 * GIB, 2000, 60_000).unwrap();
    core.decide(3000, host(3000), vec![idle(3000, 4 * GIB)]);
    let answer = core.reservation(large, 3000).unwrap();
    assert!(answer.impossible && answer.state.contains("At most"), "{answer:?}");
    let new = vm("new", 4000, 4 * GIB, GIB);
    core.decide(4000, host(4000), vec![idle(4000, 4 * GIB), new]);
    assert_eq!(core.reservation(id, 4000), None, "the new VM has it");
    assert!(core.reservation(large, 4000).is_some());
    core.decide(62_000, host(62_000), vec![]);
    assert_eq!(core.reservation(large, 62_000), None, "its time is over");
}

#[test]
fn live_settings_are_checked_with_those_of_the_file_and_stay_on_top() {
    let mut file = configuration(64 * GIB);
    file.vms.insert("db".to_owned(), Wish { minimum_kib: Some(2 * GIB), ..Wish::default() });
    let mut core = Core::new(file.clone(), false);
    let maximum = |kib| Wish { maximum_kib: Some(kib), ..Wish::default() };
    assert!(core.set("web", maximum(GIB)).unwrap_err().to_string().contains("no VM 'web'"));
    let error = core.set("db", maximum(GIB)).unwrap_err().to_string();
    assert!(error.contains("the minimum of 2048 MiB is above"), "{error}");
    core.set("db", maximum(3 * GIB)).unwrap();
    core.configure(file);
    // It has not reported, but it may not have more than 3 GiB.
    let orders = core.decide(0, host(0), vec![silent("db", 0, 4 * GIB)]);
    assert_eq!(targets(&orders), [("db", 3 * GIB)]);
    let settings = core.status(0).vms[0].settings.unwrap();
    assert_eq!((settings.minimum_kib, settings.maximum_kib), (2 * GIB, 3 * GIB));
}

#[test]
fn who_has_less_than_it_booted_with_gets_it_back_at_the_end() {
    let mut core = Core::new(configuration(64 * GIB), false);
    let mut held = vm("held", 0, GIB, GIB / 2);
    held.life = 3;
    let vms = vec![vm("large", 0, 8 * GIB, GIB), vm("small", 0, GIB, GIB / 2), held];
    core.decide(0, host(0), vms.clone());
    core.set("held", Wish { hold: Some(true), ..Wish::default() }).unwrap();
    core.decide(0, host(0), vms);
    assert_eq!(targets(&core.give_back()), [("small", 4 * GIB)]);
}

#[test]
fn the_same_inputs_give_the_same_orders() {
    let run = || {
        let mut core = Core::new(configuration(12 * GIB), false);
        let mut all = Vec::new();
        for second in 0..50_u64 {
            let now_ms = second * 1000;
            let used = |n: u64| GIB / 2 + (second * 7919 * n) % (7 * GIB / 2);
            let vms = (1..4).map(|n| vm(&format!("vm{n}"), now_ms, 4 * GIB, used(n)));
            all.extend(core.decide(now_ms, host(now_ms), vms.collect()));
        }
        all
    };
    assert_eq!(run(), run());
    assert!(run().len() > 3);
}

#[test]
fn what_vms_were_told_and_what_they_moved_is_remembered() {
    let mut core = Core::new(configuration(64 * GIB), false);
    assert_eq!(core.status(0).decisions, 0);
    core.decide(0, host(0), vec![vm("db", 0, 2 * GIB, 2 * GIB - 4096)]);
    let told = core.actions(500);
    assert_eq!((told.len(), told[0].vm.as_str(), told[0].from_kib), (1, "db", 2 * GIB));
    assert!(told[0].to_kib > 2 * GIB && told[0].age_ms == 500, "{told:?}");
    assert_eq!(told[0].rule, "It gets what it needs and its buffer at once.");
    assert!(told[0].reason.contains(&told[0].rule) && told[0].reason != told[0].rule, "{told:?}");
    core.decide(1000, host(1000), vec![vm("db", 1000, 3 * GIB, GIB)]);
    let status = core.status(1000);
    assert_eq!(status.decisions, 2);
    let MovedStatus { added_kib, removed_kib, add_operations, remove_operations } = status.moved;
    assert_eq!((added_kib, removed_kib), (GIB, 0));
    assert_eq!((add_operations, remove_operations), (1, 1));
    assert_eq!(status.vms[0].moved, status.moved);
    assert_eq!(status.vms[0].last_action.as_ref(), core.actions(1000).first());
    // Another life did not shrink, and a VM that is gone leaves the sums of all.
    let mut again = vm("db", 2000, GIB, GIB / 2);
    again.life = 1;
    core.decide(2000, host(2000), vec![again]);
    core.decide(3000, host(3000), vec![]);
    core.decide(4000, host(4000), vec![vm("db", 4000, 3 * GIB, GIB)]);
    let status = core.status(4000);
    assert_eq!((status.moved.added_kib, status.moved.removed_kib), (GIB, 0));
    assert_eq!(status.vms[0].moved.added_kib, 0);
}

#[test]
fn the_past_is_bounded_and_a_dry_run_counts_no_operation() {
    let mut core = Core::new(configuration(64 * GIB), true);
    for round in 0..400 {
        let used = if round % 2 == 0 { GIB / 2 } else { 4 * GIB - 4096 };
        core.decide(round * 1000, host(round * 1000), vec![vm("db", round * 1000, 4 * GIB, used)]);
    }
    let actions = core.actions(400_000);
    assert_eq!(actions.len(), 256);
    assert!(actions.windows(2).all(|pair| pair[0].number == pair[1].number + 1));
    assert_eq!(core.status(400_000).moved, MovedStatus::default());
}

#[test]
fn old_figures_are_marked() {
    let mut core = Core::new(configuration(64 * GIB), false);
    core.decide(0, host(0), vec![vm("db", 0, 2 * GIB, GIB)]);
    let is_stale = |core: &Core, now_ms| core.status(now_ms).vms[0].stale;
    let limit_ms = core.status(0).stale_after_ms;
    assert!(!is_stale(&core, limit_ms));
    assert!(is_stale(&core, limit_ms + 1));
    let mut down = vm("db", 0, 2 * GIB, GIB);
    down.link = Link::Down("it hangs".to_owned());
    core.decide(0, host(0), vec![down]);
    assert!(is_stale(&core, 0));
}
