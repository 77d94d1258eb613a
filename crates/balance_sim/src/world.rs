//! The host, and the course of a scenario.

use alloc::vec::Vec;

use balancer::{HostSample, Vm};

use crate::account::Account;
use crate::guest::Guest;
use crate::policy::{Policy, Unseen, View};
use crate::scenario::Scenario;

/// A host that swaps out more than this part of its memory thrashes.
const THRASHING: u64 = 100;
/// A host that swaps reads back so much in a second at most.
const SWAP_IN_KIB: u64 = 100 << 10;

impl Scenario {
    /// The most that all guests need at the same time, in KiB, if they always have it.
    #[must_use]
    pub fn peak_kib(&self) -> u64 {
        let mut guests = self.guests();
        let times = (1..=self.seconds).map(|second| second.saturating_mul(1000));
        let needs = times.map(|now_ms| {
            let needs = guests.iter_mut().map(|guest| guest.need_of_second(now_ms));
            needs.fold(0u64, u64::saturating_add)
        });
        needs.max().unwrap_or(0)
    }

    /// The host's memory, in KiB.
    #[must_use]
    pub fn memory_kib(&self) -> u64 {
        let of_peak = || self.peak_kib().saturating_mul(self.host.memory_percent) / 100;
        self.host.memory_kib.unwrap_or_else(of_peak)
    }

    fn guests(&self) -> Vec<Guest<'_>> {
        let places = (0..).zip(&self.groups);
        let all =
            places.flat_map(|(place, group)| (0..group.count).map(move |n| (place, group, n)));
        (0..)
            .zip(all)
            .map(|(id, (place, group, n))| Guest::new(id, group, self.seed, place, n))
            .collect()
    }
}

/// Plays a scenario with a policy.
pub fn run(scenario: &Scenario, policy: &mut (impl Policy + ?Sized)) -> Account {
    let total_kib = scenario.memory_kib();
    let own_kib = scenario.host.own_kib.unwrap_or(total_kib / 50);
    let mut host = HostSample {
        age_ms: 0,
        total_kib,
        available_kib: 0,
        cgroup: None,
        limit_kib: None,
        psi_some_permille: 0,
        psi_full_permille: 0,
        swapped_in_kib: 0,
        huge_pages_free_kib: 0,
    };
    let mut guests = scenario.guests();
    let mut host_swapped_kib_s = 0u64;
    let (mut vms, mut unseen): (Vec<Vm>, Vec<Unseen>) = (Vec::new(), Vec::new());
    let mut targets = Vec::new();
    for second in 1..=scenario.seconds {
        let now_ms = second.saturating_mul(1000);
        for guest in guests.iter_mut().filter(|guest| guest.is_there(now_ms)) {
            guest.step(now_ms);
        }
        let held_kib = guests.iter().fold(0u64, |sum, guest| sum.saturating_add(guest.touched_kib));
        let taken_kib = held_kib.saturating_add(own_kib);
        let swapped_kib = taken_kib.saturating_sub(total_kib);
        host.available_kib = total_kib.saturating_sub(taken_kib);
        if swapped_kib > 0 {
            host_swapped_kib_s = host_swapped_kib_s.saturating_add(swapped_kib);
            for guest in &mut guests {
                let part = u128::from(swapped_kib).saturating_mul(guest.touched_kib.into());
                let part = part / u128::from(held_kib.max(1));
                guest.account.unmet_kib_s =
                    guest.account.unmet_kib_s.saturating_add(u64::try_from(part).unwrap_or(0));
            }
            host.swapped_in_kib = host.swapped_in_kib.saturating_add(swapped_kib.min(SWAP_IN_KIB));
        }
        let thrashes = swapped_kib > total_kib / THRASHING;
        host.psi_some_permille = if thrashes { 300 } else { u32::from(swapped_kib > 0) * 100 };
        host.psi_full_permille = if thrashes { 150 } else { 0 };

        vms.clear();
        unseen.clear();
        targets.clear();
        for guest in guests.iter().filter(|guest| guest.is_there(now_ms)) {
            vms.push(guest.sample(now_ms));
            unseen.push(guest.unseen(policy.foresees()));
            targets.push(guest.target_kib);
        }
        policy.decide(&View { now_ms, host: &host, vms: &vms, unseen: &unseen }, &mut targets);
        let there = guests.iter_mut().filter(|guest| guest.is_there(now_ms));
        for (guest, target_kib) in there.zip(&targets) {
            guest.tell(*target_kib);
        }
    }
    let end_ms = scenario.seconds.saturating_mul(1000);
    Account {
        host_kib: total_kib,
        seconds: scenario.seconds,
        host_swapped_kib_s,
        vms: guests.into_iter().map(|guest| guest.end(end_ms)).collect(),
    }
}
