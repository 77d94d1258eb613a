//! One VM in a decision: what it needs, wants and may have, before anything is shared.

use crate::demand::{Demand, DemandState};
use crate::host::Stress;
use crate::pace::{self, Keep, Pace, dead_band_kib};
use crate::reason::{Basis, HoldCause, Limit, Reason, Rule};
use crate::sample::{Mode, Pool, Vm, VmId};
use crate::settings::Policy;
use crate::watchful::{Standing, Watch};

/// A VM whose process waits for memory this much gets no more: the host cannot back it.
const STALLS_PERMILLE: u32 = 200;

/// What is remembered of a VM between decisions.
#[derive(Clone, Debug)]
pub(crate) struct VmState {
    pub(crate) id: VmId,
    pub(crate) target_kib: Option<u64>,
    demand: DemandState,
    pace: Pace,
    watch: Watch,
}

impl VmState {
    pub(crate) fn new(id: VmId) -> Self {
        Self {
            id,
            target_kib: None,
            demand: DemandState::default(),
            pace: Pace::default(),
            watch: Watch::default(),
        }
    }
}

/// A VM in a decision. `minimum ≤ sure ≤ demand ≤ wanted ≤ keep ≤ cap`.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) pool: Pool,
    pub(crate) weight: u32,
    pub(crate) actual_kib: u64,
    /// Its target so far, and the same within its present settings.
    told_kib: u64,
    current_kib: u64,
    pub(crate) minimum_kib: u64,
    cap_kib: u64,
    /// The part of the demand that is beyond doubt.
    pub(crate) sure_kib: u64,
    pub(crate) demand_kib: u64,
    pub(crate) wanted_kib: u64,
    /// What it may have if nobody else wants it.
    pub(crate) keep_kib: u64,
    /// It takes no part in the sharing, and counts with this.
    pub(crate) fixed_kib: Option<u64>,
    /// What it should have when all have moved.
    pub(crate) share_kib: u64,
    /// What it may have now.
    pub(crate) target_kib: u64,
    pub(crate) judged: Option<Judged>,
    kept: Keep,
    rule: Option<Rule>,
    limit: Option<Limit>,
}

/// What a VM would have without limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judged {
    pub(crate) demand_kib: u64,
    pub(crate) wanted_kib: u64,
    basis: Basis,
}

impl Row {
    /// Judges a VM. `stress` is `None` if nothing is known of the host.
    pub(crate) fn judge(
        vm: &Vm,
        state: &mut VmState,
        stress: Option<Stress>,
        now_ms: u64,
        policy: &Policy,
    ) -> Self {
        let form = vm.settings.form();
        let actual_kib = vm.sample.actual_kib.value;
        // A new VM has not been told anything yet.
        let told_kib = state.target_kib.unwrap_or(actual_kib);
        let current_kib = vm.settings.clamp(told_kib);
        let mut row = Self {
            pool: vm.pool,
            weight: form.weight,
            actual_kib,
            told_kib,
            current_kib,
            minimum_kib: form.minimum_kib,
            cap_kib: form.maximum_kib,
            sure_kib: current_kib,
            demand_kib: current_kib,
            wanted_kib: current_kib,
            keep_kib: current_kib,
            fixed_kib: None,
            share_kib: current_kib,
            target_kib: current_kib,
            judged: None,
            kept: Keep::All,
            rule: None,
            limit: None,
        };
        // The counters in the sample are taken in even if the VM is held.
        let demand = state.demand.judge(&vm.sample, &form, now_ms, policy);
        let demand = match (vm.mode, stress, demand) {
            (Mode::Held, _, _) => Err(HoldCause::Operator),
            (_, None, _) => Err(HoldCause::Host),
            (_, Some(stress), Ok(demand)) => Ok((stress, demand)),
            (_, _, Err(cause)) => Err(cause),
        };
        match demand {
            Err(cause) => row.fix(Rule::Hold(cause)),
            Ok((stress, demand)) => {
                let wanted_kib = vm.settings.with_buffer(demand.kib);
                row.want(vm, state, demand, wanted_kib, now_ms, policy);
                row.pace(state, stress, now_ms, policy);
            }
        }
        row
    }

    /// Takes the VM out of the sharing with the target it has.
    fn fix(&mut self, rule: Rule) {
        self.fixed_kib = Some(self.target_kib.max(self.actual_kib));
        self.rule = Some(rule);
    }

    /// Fits demand and wish into the VM's limits.
    fn want(
        &mut self,
        vm: &Vm,
        state: &mut VmState,
        demand: Demand,
        wanted_kib: u64,
        now_ms: u64,
        policy: &Policy,
    ) {
        self.judged = Some(Judged { demand_kib: demand.kib, wanted_kib, basis: demand.basis });
        let mut cap = |kib: u64, limit: Option<Limit>| {
            let kib = kib.max(self.minimum_kib);
            if kib < self.cap_kib {
                self.cap_kib = kib;
            }
            if kib < wanted_kib && kib <= self.cap_kib && limit.is_some() {
                self.limit = limit;
            }
        };
        let maximum_kib = vm.settings.form().maximum_kib;
        cap(maximum_kib, Some(Limit::Maximum { kib: maximum_kib }));
        let fresh = vm.sample.process.filter(|process| process.age_ms <= policy.stale_after_ms);
        if let Some(process) = fresh {
            if let Some(limit_kib) = process.value.cgroup_limit_kib {
                let kib = limit_kib.saturating_sub(policy.vm_overhead_kib);
                cap(kib, Some(Limit::Cgroup { kib }));
            }
            let psi_some_permille = process.value.psi_some_permille;
            if psi_some_permille >= STALLS_PERMILLE {
                cap(self.current_kib, Some(Limit::Stalls { psi_some_permille }));
            }
        }
        match state.watch.observe(self.actual_kib, self.told_kib, now_ms, policy) {
            Standing::CannotGrow { for_ms } if wanted_kib > self.actual_kib => {
                cap(self.actual_kib, None);
                self.rule = Some(Rule::CannotGrow { for_ms });
            }
            Standing::DoesNotGive { for_ms } if wanted_kib < self.actual_kib => {
                self.target_kib = vm.settings.clamp(self.current_kib.max(wanted_kib));
                self.fix(Rule::DoesNotGive { for_ms });
            }
            _ => {}
        }
        if wanted_kib < self.minimum_kib {
            self.limit = Some(Limit::Minimum { kib: self.minimum_kib });
        }
        self.demand_kib = demand.kib.clamp(self.minimum_kib, self.cap_kib);
        self.sure_kib = demand.sure_kib.clamp(self.minimum_kib, self.demand_kib);
        self.wanted_kib = wanted_kib.clamp(self.minimum_kib, self.cap_kib);
    }

    /// Settles how much of a surplus the VM may keep.
    fn pace(&mut self, state: &mut VmState, stress: Stress, now_ms: u64, policy: &Policy) {
        self.kept = state.pace.keep(self.current_kib, self.wanted_kib, now_ms, policy);
        let keep_kib = match self.kept {
            _ if stress > Stress::None => self.wanted_kib,
            Keep::All | Keep::AllFor { .. } => self.current_kib,
            Keep::Part { kib } => kib,
        };
        self.keep_kib = keep_kib.max(self.wanted_kib).min(self.cap_kib);
    }

    /// What the VM has, or must have.
    pub(crate) fn base_kib(&self) -> u64 {
        self.actual_kib.max(self.minimum_kib)
    }

    /// Leaves the target as it is for a trifle.
    pub(crate) fn settle(&mut self) {
        self.target_kib =
            pace::grow(self.target_kib, self.current_kib, self.demand_kib, self.wanted_kib)
                .max(self.minimum_kib);
    }

    /// Says why the target is what it is.
    pub(crate) fn reason(&self) -> Reason {
        let rule = self.rule.unwrap_or_else(|| self.rule_of_share());
        let at_minimum = self.target_kib == self.minimum_kib && self.target_kib < self.demand_kib;
        let minimum = at_minimum.then_some(Limit::Minimum { kib: self.minimum_kib });
        Reason { basis: self.judged.map(|j| j.basis), rule, limit: minimum.or(self.limit) }
    }

    fn rule_of_share(&self) -> Rule {
        let Self { target_kib, told_kib: current_kib, share_kib, demand_kib, wanted_kib, .. } =
            *self;
        let missing_kib = wanted_kib.saturating_sub(target_kib);
        let is_trifle = missing_kib < dead_band_kib(current_kib);
        let later_kib = share_kib.saturating_sub(target_kib);
        let surplus_kib = current_kib.saturating_sub(wanted_kib);
        if missing_kib > 0 && !(is_trifle && target_kib == current_kib) {
            return if share_kib >= demand_kib && later_kib > 0 {
                Rule::GrowAsFreed { missing_kib: later_kib }
            } else if target_kib < demand_kib {
                Rule::ShareOfNeeds { missing_kib: demand_kib.saturating_sub(target_kib) }
            } else {
                Rule::ShareOfBuffers { missing_kib }
            };
        }
        if target_kib > current_kib {
            return Rule::Grow;
        }
        if target_kib < current_kib {
            return if target_kib == self.cap_kib {
                Rule::DownToLimit
            } else if matches!(self.kept, Keep::Part { kib } if kib == target_kib) {
                Rule::GiveSlowly { surplus_kib }
            } else {
                Rule::GiveAtOnce { surplus_kib }
            };
        }
        match self.kept {
            Keep::AllFor { ms } => Rule::SurplusMayPass { ms },
            Keep::Part { .. } => Rule::GiveSlowly { surplus_kib },
            Keep::All => Rule::Right,
        }
    }
}
