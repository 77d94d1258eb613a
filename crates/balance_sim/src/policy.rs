//! What sets the sizes of VMs.

use balancer::{Balancer, HostSample, Vm};

/// What a policy sees at the end of a second.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The time since the start of the scenario.
    pub now_ms: u64,
    /// The host.
    pub host: &'a HostSample,
    /// The VMs that have started, in ascending order of their ids.
    pub vms: &'a [Vm],
    /// For each of the VMs, what its report has no place for.
    pub unseen: &'a [Unseen],
}

/// What is true of a guest and not in its report. Some policies have guests that tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Memory that holds nothing, not even cache.
    pub free_kib: u64,
    /// What the guest needs and has no room for.
    pub swapped_kib: u64,
    /// What it will need at the end of the next second, for an oracle; 0 for all others.
    pub next_need_kib: u64,
    /// The least that it can have then, for an oracle; 0 for all others.
    pub next_least_kib: u64,
}

/// Sets the sizes of VMs.
pub trait Policy {
    /// Sets the targets of the VMs, which are there as they were set last. What is outside of a
    /// VM's minimum and maximum becomes the nearer of the two.
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]);

    /// Whether it is an oracle.
    fn foresees(&self) -> bool {
        false
    }
}

/// The policy of `balancer`.
#[derive(Clone, Debug, Default)]
pub struct Balanced(Balancer);

impl Balanced {
    /// The balancer with these figures.
    #[must_use]
    pub fn new(policy: balancer::Policy) -> Self {
        Self(Balancer::new(policy))
    }
}

impl Policy for Balanced {
    fn decide(&mut self, view: &View<'_>, targets: &mut [u64]) {
        // The VMs are in order, so there is a decision; without one, nothing would change.
        if let Ok(decision) = self.0.decide(view.now_ms, view.host, view.vms, &[]) {
            for (target, vm) in targets.iter_mut().zip(&decision.vms) {
                *target = vm.target_kib;
            }
        }
    }
}
