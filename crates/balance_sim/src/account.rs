//! What came of a policy.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What came of a policy for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmAccount {
    /// What the VM's group is called.
    pub group: String,
    /// How many seconds it ran.
    pub seconds: u64,
    /// What it needed and did not have, in KiB times seconds.
    pub unmet_kib_s: u64,
    /// Seconds in which it had less than it needed.
    pub short_s: u64,
    /// What it had beyond need and useful cache, in KiB times seconds.
    pub surplus_kib_s: u64,
    /// How much of the use that its cache can have it had, in thousandths times seconds; `None`
    /// for one without cache.
    pub cache_permille_s: Option<u64>,
    /// How often its target was changed.
    pub changes: u64,
    /// What it lacked to its minimum, in KiB times seconds.
    pub below_minimum_kib_s: u64,
    /// What it had at the end.
    pub size_kib: u64,
    /// For each second in which its need rose by 32 MiB or more, how long it waited for that
    /// memory, or until it needed it no more.
    pub waits_ms: Vec<u64>,
}

/// What came of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The host's memory.
    pub host_kib: u64,
    /// The time that was simulated, in seconds.
    pub seconds: u64,
    /// What the VMs held and the host had swapped out, in KiB times seconds. It is also unmet
    /// demand of the VMs.
    pub host_swapped_kib_s: u64,
    /// The VMs, in the order of the scenario.
    pub vms: Vec<VmAccount>,
}

impl VmAccount {
    pub(crate) fn new(group: &str) -> Self {
        Self { group: group.to_string(), ..Self::default() }
    }

    /// Counts a second.
    pub(crate) fn count(
        &mut self,
        unmet_kib: u64,
        surplus_kib: u64,
        cache_permille: Option<u64>,
        below_minimum_kib: u64,
    ) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.seconds, 1);
        add(&mut self.unmet_kib_s, unmet_kib);
        add(&mut self.short_s, u64::from(unmet_kib > 0));
        add(&mut self.surplus_kib_s, surplus_kib);
        add(&mut self.below_minimum_kib_s, below_minimum_kib);
        if let Some(permille) = cache_permille {
            add(self.cache_permille_s.get_or_insert(0), permille);
        }
    }
}

impl Account {
    /// The sum of a figure over all VMs.
    pub fn sum(&self, figure: impl Fn(&VmAccount) -> u64) -> u64 {
        self.vms.iter().fold(0, |sum, vm| sum.saturating_add(figure(vm)))
    }

    /// How long needs waited for memory: so many percent of them no longer than this. `None` if
    /// none rose.
    #[must_use]
    pub fn wait_ms(&self, percent: usize) -> Option<u64> {
        let waits = self.vms.iter().flat_map(|vm| vm.waits_ms.iter().copied());
        let mut waits: Vec<u64> = waits.collect();
        waits.sort_unstable();
        let place = waits.len().saturating_mul(percent.min(100)) / 100;
        waits.get(place.min(waits.len().saturating_sub(1))).copied()
    }

    /// How much of the use that caches can have they had, in thousandths; `None` without caches.
    #[must_use]
    pub fn cache_use_permille(&self) -> Option<u64> {
        let with_cache = |figure: fn(&VmAccount) -> u64| {
            self.sum(|vm| if vm.cache_permille_s.is_some() { figure(vm) } else { 0 })
        };
        let used = with_cache(|vm| vm.cache_permille_s.unwrap_or(0));
        used.checked_div(with_cache(|vm| vm.seconds))
    }

    /// The account of the VMs of one group.
    #[must_use]
    pub fn of_group(&self, name: &str) -> Self {
        let vms = self.vms.iter().filter(|vm| vm.group == name).cloned().collect();
        Self { vms, ..*self }
    }
}
