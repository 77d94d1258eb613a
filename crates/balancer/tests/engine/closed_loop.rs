//! The engine with guests that follow it: what is decided changes what is sampled next.

use balancer::{Aged, Balancer, HostSample, Policy, SettingsForm, Vm};
use proptest::prelude::*;

use crate::world::{GIB, MIB, form, host, vm_with};

/// A guest with a working set. What it has beyond fills with cache, which is available.
#[derive(Clone, Debug)]
struct Guest {
    form: SettingsForm,
    actual_kib: u64,
    working_set_kib: u64,
    rss_kib: u64,
}

impl Guest {
    fn sample(&self, id: u32) -> Vm {
        let used_kib = self.working_set_kib.min(self.actual_kib - MIB);
        let mut vm = vm_with(id, self.form, self.actual_kib, used_kib);
        let report = &mut vm.sample.guest.as_mut().unwrap().value;
        report.committed.as_mut().unwrap().reported_kib = self.working_set_kib * 5 / 4;
        vm.sample.process = vm.sample.process.map(|mut process| {
            process.value.rss_kib = self.rss_kib;
            Aged { age_ms: 500, ..process }
        });
        vm
    }

    /// A second in which it moves by at most 4 GiB.
    fn follow(&mut self, target_kib: u64) {
        let most = 4 * GIB;
        self.actual_kib =
            target_kib.clamp(self.actual_kib.saturating_sub(most), self.actual_kib + most);
        self.rss_kib = self.actual_kib;
    }
}

struct World {
    balancer: Balancer,
    now_ms: u64,
    total_kib: u64,
    guests: Vec<Guest>,
}

impl World {
    fn new(total_kib: u64, guests: Vec<Guest>) -> Self {
        Self { balancer: Balancer::new(Policy::default()), now_ms: 0, total_kib, guests }
    }

    /// A second passes; returns the targets.
    fn step(&mut self) -> Vec<u64> {
        let rss: u64 = self.guests.iter().map(|guest| guest.rss_kib).sum();
        assert!(rss <= self.total_kib, "the host is out of memory");
        let total_kib = self.total_kib;
        let host = HostSample { total_kib, ..host(total_kib - rss) };
        let vms: Vec<Vm> = (0..).zip(&self.guests).map(|(n, guest)| guest.sample(n)).collect();
        self.now_ms += 1000;
        let decision = self.balancer.decide(self.now_ms, &host, &vms, &[]).unwrap();
        let targets: Vec<u64> = decision.vms.iter().map(|vm| vm.target_kib).collect();
        for (guest, target) in self.guests.iter_mut().zip(&targets) {
            guest.follow(*target);
        }
        targets
    }
}

fn guest(working_set_kib: u64) -> Guest {
    Guest { form: form(), actual_kib: GIB, working_set_kib, rss_kib: GIB }
}

#[test]
fn memory_moves_to_the_guest_that_works() {
    let mut world = World::new(16 * GIB, (0..4).map(|_| guest(GIB)).collect());
    for turn in [0, 1, 2, 3, 0] {
        for (n, guest) in world.guests.iter_mut().enumerate() {
            guest.working_set_kib = if n == turn { 8 * GIB } else { GIB };
        }
        let mut seconds = 0;
        while world.guests[turn].actual_kib < 8 * GIB {
            world.step();
            seconds += 1;
            assert!(seconds < 10, "guest {turn} waits for memory");
        }
    }
}

#[test]
fn idle_guests_give_back_what_they_do_not_need() {
    let mut world = World::new(32 * GIB, vec![guest(12 * GIB), guest(GIB)]);
    (0..10).for_each(|_| drop(world.step()));
    assert!(world.guests[0].actual_kib > 12 * GIB);
    world.guests[0].working_set_kib = GIB;
    (0..700).for_each(|_| drop(world.step()));
    assert!(world.guests[0].actual_kib < 2 * GIB, "{:?}", world.guests[0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whether there is too much, enough or too little memory: targets come to rest.
    #[test]
    fn constant_demand_means_constant_targets(
        total in 6 * GIB..48 * GIB,
        guests in prop::collection::vec((GIB / 2..12 * GIB, 1u32..=10_000, 5u32..100), 1..6),
    ) {
        let guests = guests.into_iter().map(|(working_set_kib, weight, buffer_percent)| {
            let form = SettingsForm { weight, buffer_percent, ..form() };
            Guest { form, actual_kib: GIB, working_set_kib, rss_kib: GIB }
        });
        let mut world = World::new(total, guests.collect());
        // What the first shortage taught is dropped once for each guest, one after the other at
        // worst.
        world.balancer.set_policy(Policy { remember_paging_ms: 60_000, ..Policy::default() });
        (0..1500).for_each(|_| drop(world.step()));
        let at_rest = world.step();
        for _ in 0..600 {
            prop_assert_eq!(&at_rest, &world.step());
        }
    }
}
