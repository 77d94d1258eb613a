//! The simulated host and guests do what they are said to do.

use balance_sim::{Account, Balanced, Policy, Scenario, ScenarioForm, View, run};

fn form(text: &str) -> ScenarioForm {
    toml::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn scenario(text: &str) -> Scenario {
    form(text).check().unwrap()
}

/// A VM with a steady need of 1 GiB, and whatever `more` says.
fn one(seconds: u64, more: &str) -> Scenario {
    scenario(&format!(
        "seconds = {seconds}\nhost = {{ memory-mib = 65536, own-mib = 0 }}\n\
         [[vms]]\nname = 'vm'\nmaximum-mib = 16384\n{more}\n\
         [[vms.load]]\nkind = 'wave'\nlow-mib = 1024\nhigh-mib = 1024\nperiod = 100\nnoise-percent = 0\n"
    ))
}

/// Wants each VM to have a size from some second on, and notes what it has in each.
struct Orders {
    from_s: u64,
    mib: u64,
    sizes_mib: Vec<u64>,
}

impl Orders {
    fn new(from_s: u64, mib: u64) -> Self {
        Self { from_s, mib, sizes_mib: Vec::new() }
    }
}

impl Policy for Orders {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        self.sizes_mib.extend(view.vms.first().map(|vm| vm.sample.actual_kib.value >> 10));
        if view.now_ms >= self.from_s * 1000 {
            targets.fill(self.mib << 10);
        }
    }
}

/// In which second after an order the size is reached.
fn seconds_to(scenario: &Scenario, from_s: usize, mib: u64) -> Option<usize> {
    let mut orders = Orders::new(from_s as u64, mib);
    run(scenario, &mut orders);
    orders.sizes_mib.iter().skip(from_s).position(|size| *size == mib).map(|n| n + 1)
}

#[test]
fn guests_move_as_fast_as_real_ones_did() {
    let linux = one(200, "startup-mib = 5120");
    assert_eq!(seconds_to(&linux, 10, 2048), Some(8), "3 GiB given");
    let virtio = one(200, "startup-mib = 5120\ndevice = 'virtio-balloon'");
    assert_eq!(seconds_to(&virtio, 10, 2048), Some(119));
    let small = one(200, "startup-mib = 2048");
    assert_eq!(seconds_to(&small, 10, 5120), Some(1), "3 GiB added");
    assert_eq!(seconds_to(&small, 10, 16384), Some(5));
    let small = one(200, "startup-mib = 2048\ndevice = 'virtio-balloon'");
    assert_eq!(seconds_to(&small, 10, 5120), Some(14));
}

#[test]
fn memory_that_was_given_comes_back_faster_than_new() {
    struct ThereAndBack(Orders);
    impl Policy for ThereAndBack {
        fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
            self.0.mib = if view.now_ms < 30_000 { 2048 } else { 8192 };
            self.0.decide(view, targets);
        }
    }
    let mut policy = ThereAndBack(Orders::new(0, 0));
    run(&one(60, "startup-mib = 8192"), &mut policy);
    assert_eq!(policy.0.sizes_mib[29..31], [2048, 2048 + 6035]);
}

#[test]
fn a_linux_gives_only_what_it_does_not_use_and_less_than_that() {
    let mut orders = Orders::new(1, 512);
    let account = run(&one(100, "startup-mib = 4096"), &mut orders);
    let last = *orders.sizes_mib.last().unwrap();
    // What it uses, and its driver's floor: 104 MiB and an eighth of its size.
    assert!((1024 + 104 + last / 8..=1024 + 106 + last / 8).contains(&last), "{last}");
    assert_eq!(account.vms[0].unmet_kib_s, 0);
}

#[test]
fn a_virtio_balloon_takes_what_the_guest_uses() {
    let mut orders = Orders::new(1, 512);
    let scenario = one(120, "startup-mib = 2048\ndevice = 'virtio-balloon'");
    let account = run(&scenario, &mut orders);
    assert_eq!(orders.sizes_mib.last(), Some(&512));
    // At 26 MiB a second, 1024 MiB are reached after 40 s and 512 after 60; then half a GiB is
    // missing for 60 s.
    let unmet_mib_s = account.vms[0].unmet_kib_s >> 10;
    let expected = 512 * 20 / 2 + 512 * 60;
    assert!(unmet_mib_s.abs_diff(expected) < 1500, "{unmet_mib_s} {expected}");
    assert!((78..=82).contains(&account.vms[0].short_s), "{}", account.vms[0].short_s);
}

#[test]
fn a_guest_that_refuses_gives_nothing() {
    let mut orders = Orders::new(1, 512);
    run(&one(50, "startup-mib = 4096\nrefuses = true"), &mut orders);
    assert_eq!(orders.sizes_mib.last(), Some(&4096));
}

#[test]
fn no_policy_gets_below_the_minimum_or_above_the_maximum() {
    let text = "startup-mib = 4096\nminimum-mib = 2048\nrefuses = false";
    let mut orders = Orders::new(1, 1);
    let account = run(&one(50, text), &mut orders);
    assert_eq!(orders.sizes_mib.last(), Some(&2048));
    assert_eq!(account.vms[0].below_minimum_kib_s, 0);
    let mut orders = Orders::new(1, 1 << 30);
    run(&one(50, text), &mut orders);
    assert_eq!(orders.sizes_mib.last(), Some(&16384));
}

/// Two GiB of work for 10 s, after 20 s, on a base of 512 MiB.
fn worker(more: &str) -> Scenario {
    scenario(&format!(
        "seconds = 400\nhost = {{ memory-mib = 65536 }}\n\
         [[vms]]\nname = 'vm'\nstartup-mib = 1024\nmaximum-mib = 8192\n{more}\n\
         [[vms.load]]\nkind = 'wave'\nlow-mib = 512\nhigh-mib = 512\nperiod = 100\nnoise-percent = 0\n\
         [[vms.load]]\nkind = 'bursts'\nneeds-mib = [2048, 2048]\nlasts = [10, 10]\n\
         pause = [1000, 1000]\nfirst-after = [20, 20]\nrises-mib-per-second = 2048\n"
    ))
}

#[test]
fn work_that_has_its_memory_is_done_in_time() {
    let account = run(&worker(""), &mut Orders::new(1, 4096));
    assert_eq!(account.vms[0].short_s, 0);
    assert_eq!(account.vms[0].waits_ms, [0, 0], "its start and its work");
    assert_eq!(account.vms[0].changes, 1);
}

#[test]
fn work_that_lacks_memory_takes_longer_and_waits() {
    let account = run(&worker(""), &mut Orders::new(1, 1024));
    // 2560 MiB are needed and 1024 there: an eighth of the speed.
    let short_s = account.vms[0].short_s;
    assert!((80..=95).contains(&short_s), "{short_s}");
    assert!(account.vms[0].waits_ms.iter().any(|ms| *ms > 70_000), "{:?}", account.vms[0].waits_ms);
}

#[test]
fn a_wait_ends_when_the_memory_is_there() {
    // It is told 4 GiB at the end of second 25; the work began with 21. Since it was slow until
    // then, its need had risen in several steps.
    let account = run(&worker(""), &mut Orders::new(25, 4096));
    let longest = *account.vms[0].waits_ms.iter().max().unwrap();
    assert!((4000..6000).contains(&longest), "{:?}", account.vms[0].waits_ms);
}

#[test]
fn a_host_that_is_too_small_swaps_and_that_is_unmet() {
    let mut scenario = one(100, "startup-mib = 1024\ncount = 4");
    scenario.host.memory_kib = Some(2 << 20);
    let account = run(&scenario, &mut Orders::new(1, 1024));
    let half = (2 << 20) * 100u64;
    assert!(account.host_swapped_kib_s.abs_diff(half) < half / 20, "{account:?}");
    let unmet: u64 = account.sum(|vm| vm.unmet_kib_s);
    assert!(unmet.abs_diff(account.host_swapped_kib_s) < half / 20, "{unmet}");
}

#[test]
fn vms_start_one_after_the_other() {
    let scenario = one(100, "count = 4\nstarts-after = 10\nstarts-within = 40");
    let account = run(&scenario, &mut Orders::new(1000, 0));
    let seconds: Vec<u64> = account.vms.iter().map(|vm| vm.seconds).collect();
    assert_eq!(seconds, [90, 80, 70, 60]);
}

const MIX: &str = include_str!("../../../benches/policies/scenarios/mix.toml");

fn played(seed: u64) -> Account {
    let mut scenario = scenario(MIX);
    scenario.seed = seed;
    scenario.seconds = 600;
    run(&scenario, &mut Balanced::default())
}

#[test]
fn the_same_scenario_gives_the_same_account() {
    assert_eq!(played(1), played(1));
    assert_ne!(played(1), played(2));
}

#[test]
fn the_host_is_as_large_as_the_scenario_says() {
    let scenario = scenario(MIX);
    let peak_kib = scenario.peak_kib();
    assert_eq!(scenario.memory_kib(), peak_kib * 90 / 100);
    // Eight VMs of these kinds need 10 to 40 GiB together.
    assert!((10 << 20..40 << 20).contains(&peak_kib), "{peak_kib}");
    assert!(scenario.clone().times(8).peak_kib() > 4 * peak_kib);
}

#[test]
fn mistakes_are_found_where_they_are() {
    let vms = "[[vms]]\nname = 'a'\nmaximum-mib = 2048\n";
    let load = "[[vms.load]]\nkind = 'wave'\nlow-mib = 1\nhigh-mib = 2\nperiod = 60\n";
    let head = "seconds = 10\nhost = { memory-mib = 4096 }\n";
    for (text, at, message) in [
        (
            format!("{head}{vms}minimum-mib = 4096\n{load}"),
            "[[vms]]",
            "vms 'a': the minimum of 4.0 GiB is above the startup memory of 1.0 GiB: change",
        ),
        (format!("{head}{vms}load = []\n"), "[[vms]]", "vms 'a': it does nothing: give it a load"),
        (
            format!("{head}{vms}{}", load.replace("low-mib = 1", "low-mib = 3")),
            "[[vms.load]]",
            "vms 'a': low-mib is above high-mib: swap the two",
        ),
        (
            format!("seconds = 10\nhost = {{ own-mib = 1 }}\n{vms}{load}"),
            "{ own-mib",
            "host: give either memory-mib or memory-percent",
        ),
        (
            format!(
                "{head}{vms}count = 4000\n{load}{}count = 97\n{load}",
                vms.replace("'a'", "'b'")
            ),
            "{ memory-mib",
            "4097 VMs are not between 1 and 4096: change their counts",
        ),
    ] {
        let mistake = form(&text).check().unwrap_err();
        assert!(mistake.message.starts_with(message), "{mistake}");
        assert_eq!(mistake.at, text.find(at).unwrap(), "{text}");
    }
    let twice = format!("{head}{vms}{load}{vms}{load}");
    let mistake = form(&twice).check().unwrap_err();
    assert_eq!(mistake.message, "vms 'a': the name is given twice: choose another");
    assert_eq!(mistake.at, twice.rfind("[[vms]]").unwrap());
}
