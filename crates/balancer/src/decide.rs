//! The decision: samples in, targets with reasons out.

use alloc::vec::Vec;

use crate::allot::{Account, Allotment};
use crate::host::{HostState, Stress, Zone};
use crate::pace::dead_band_kib;
use crate::reason::Reason;
use crate::reserve::{Reservation, Room};
use crate::row::{Row, VmState};
use crate::sample::{HostSample, Pool, Vm, VmId};
use crate::settings::Policy;

/// How well a VM is off, in Hyper-V's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It has what it wants.
    Ok,
    /// It has what it needs, and not all of its buffer.
    Low,
    /// It has less than it needs.
    Warning,
}

/// What a VM should have, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmDecision {
    /// The VM.
    pub id: VmId,
    /// What it should have. The same as last time if nothing is to be done.
    pub target_kib: u64,
    /// What it could not do without, where that is known, before any limit.
    pub demand_kib: Option<u64>,
    /// The same with its buffer.
    pub wanted_kib: Option<u64>,
    /// Hyper-V's pressure: what it wants in thousandths of what it has. More than 1000 is too much.
    pub pressure_permille: Option<u64>,
    /// How well it is off, where that is known.
    pub status: Option<Status>,
    /// Why.
    pub reason: Reason,
}

/// A decision for all VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// How the needs relate to the host.
    pub zone: Zone,
    /// The account of ordinary memory; `None` if nothing is known of the host.
    pub ordinary: Option<Account>,
    /// The account of huge pages; `None` if nothing is known of the host.
    pub huge_pages: Option<Account>,
    /// One for each VM, in the order of the samples.
    pub vms: Vec<VmDecision>,
    /// One for each reservation, in their order.
    pub rooms: Vec<Room>,
}

/// The VMs are not in ascending order of their ids, or one is there twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("VM {} follows VM {}: VMs must be in ascending order, each once", .second.0, .first.0)]
pub struct OrderError {
    /// A VM.
    pub first: VmId,
    /// The VM after it.
    pub second: VmId,
}

/// Decides how much memory each VM of a host should have.
///
/// Remembers what it needs to from one decision to the next. The same calls in the same order
/// give the same decisions.
#[derive(Clone, Debug, Default)]
pub struct Balancer {
    policy: Policy,
    now_ms: u64,
    host: HostState,
    vms: Vec<VmState>,
    /// Those of the last decision, while the present ones are collected.
    before: Vec<VmState>,
    rows: Vec<Row>,
    allotment: Allotment,
    decision: Decision,
}

impl Balancer {
    /// A balancer that knows nothing yet.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Changes the policy from the next decision on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Decides.
    ///
    /// `now_ms` is any clock that does not go back (if it does, it counts as standing still). `vms`
    /// are all VMs of the host in ascending order of their ids; what is remembered of a VM that is
    /// not among them is forgotten. Call it with each new report of a VM that asks for more, when a
    /// limit changes, and otherwise about once a second.
    ///
    /// # Errors
    ///
    /// Fails, and changes nothing, if `vms` is not in order.
    pub fn decide(
        &mut self,
        now_ms: u64,
        host: &HostSample,
        vms: &[Vm],
        reservations: &[Reservation],
    ) -> Result<&Decision, OrderError> {
        for (first, second) in vms.iter().zip(vms.iter().skip(1)) {
            if first.id >= second.id {
                return Err(OrderError { first: first.id, second: second.id });
            }
        }
        self.now_ms = self.now_ms.max(now_ms);
        self.decision.rooms.clear();
        self.decision.rooms.resize(reservations.len(), Room::Unknown);
        self.recall(vms);

        let view = self.host.observe(host, &self.policy);
        let stress = view.map(|view| view.stress);
        self.rows.clear();
        for (vm, state) in vms.iter().zip(&mut self.vms) {
            self.rows.push(Row::judge(vm, state, stress, self.now_ms, &self.policy));
        }

        (self.decision.ordinary, self.decision.huge_pages) = (None, None);
        if let Some(view) = view {
            let backed = |pool| backed_kib(vms, pool, &self.policy);
            let huge_kib = backed(Pool::HugePages).saturating_add(host.huge_pages_free_kib);
            let ordinary_kib = self.host.ordinary_kib(host, view, backed(Pool::Ordinary));
            let mut allot = |pool, total_kib| {
                let rooms = &mut self.decision.rooms;
                self.allotment.allot(pool, total_kib, &mut self.rows, reservations, rooms)
            };
            let (ordinary, zone) = allot(Pool::Ordinary, ordinary_kib);
            let (huge_pages, huge_zone) = allot(Pool::HugePages, huge_kib);
            let pressed = if stress > Some(Stress::None) { Zone::Tight } else { Zone::Comfort };
            self.decision.zone = zone.max(huge_zone).max(pressed);
            self.decision.ordinary = Some(ordinary);
            self.decision.huge_pages = Some(huge_pages);
        }

        self.decision.vms.clear();
        for (row, state) in self.rows.iter().zip(&mut self.vms) {
            state.target_kib = Some(row.target_kib);
            self.decision.vms.push(decision(state.id, row));
        }
        Ok(&self.decision)
    }

    /// Brings what is remembered into the order of `vms`.
    fn recall(&mut self, vms: &[Vm]) {
        core::mem::swap(&mut self.vms, &mut self.before);
        self.vms.clear();
        let mut before = self.before.drain(..).peekable();
        for vm in vms {
            while before.next_if(|state| state.id < vm.id).is_some() {}
            let known = before.next_if(|state| state.id == vm.id);
            self.vms.push(known.unwrap_or_else(|| VmState::new(vm.id)));
        }
    }
}

/// The memory behind the VMs of a pool. If it is not known for one, all of it is taken to be there.
fn backed_kib(vms: &[Vm], pool: Pool, policy: &Policy) -> u64 {
    vms.iter().filter(|vm| vm.pool == pool).fold(0u64, |sum, vm| {
        let fresh = vm.sample.process.filter(|process| process.age_ms <= policy.stale_after_ms);
        let actual_kib = vm.sample.actual_kib.value;
        let backed = fresh.map_or(actual_kib, |process| process.value.rss_kib.min(actual_kib));
        sum.saturating_add(backed)
    })
}

fn decision(id: VmId, row: &Row) -> VmDecision {
    let has_kib = row.actual_kib.saturating_add(dead_band_kib(row.actual_kib));
    let status = row.judged.map(|judged| {
        if has_kib > judged.wanted_kib {
            Status::Ok
        } else if row.actual_kib >= judged.demand_kib {
            Status::Low
        } else {
            Status::Warning
        }
    });
    let pressure = |wanted_kib: u64| wanted_kib.saturating_mul(1000).checked_div(row.actual_kib);
    VmDecision {
        id,
        target_kib: row.target_kib,
        demand_kib: row.judged.map(|judged| judged.demand_kib),
        wanted_kib: row.judged.map(|judged| judged.wanted_kib),
        pressure_permille: row.judged.and_then(|judged| pressure(judged.wanted_kib)),
        status,
        reason: row.reason(),
    }
}
