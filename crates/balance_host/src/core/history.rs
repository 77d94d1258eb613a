//! What was done with the VMs: the newest orders, and sums that only grow.

use std::collections::{BTreeMap, VecDeque};

use super::{Order, Shown};
use crate::status::{ActionStatus, MovedStatus};

/// The most actions that are kept, of all VMs together.
const MOST_ACTIONS: usize = 256;

/// An order that changed something, and when it was given.
#[derive(Clone, Debug)]
struct Action {
    number: u64,
    order: Order,
    rule: String,
    at_ms: u64,
}

/// What is known of a VM's past.
#[derive(Clone, Debug, Default)]
struct Past {
    moved: MovedStatus,
    /// Life and size when it was last looked at.
    seen: Option<(u32, u64)>,
    /// Its newest action, which may be older than those that are kept of all.
    last: Option<Action>,
}

/// The past of all VMs, bounded by their number.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    actions: VecDeque<Action>,
    last_number: u64,
    vms: BTreeMap<String, Past>,
    moved: MovedStatus,
}

impl History {
    /// Takes in what the VMs have now, and forgets those that are gone.
    pub(super) fn observe(&mut self, shown: &[Shown]) {
        let names = || shown.iter().map(|shown| shown.input.name.as_str());
        // They come by name, so two of them differ if a name does.
        if !self.vms.keys().map(String::as_str).eq(names()) {
            let mut before = std::mem::take(&mut self.vms);
            self.vms = names()
                .map(|name| (name.to_owned(), before.remove(name).unwrap_or_default()))
                .collect();
        }
        for (shown, past) in shown.iter().zip(self.vms.values_mut()) {
            let Some(reading) = &shown.input.reading else { continue };
            let (life, now_kib) = (shown.input.life, reading.actual.value);
            // A VM that was started again did not move.
            if let Some((_, before_kib)) = past.seen.filter(|&(seen, _)| seen == life) {
                for moved in [&mut past.moved, &mut self.moved] {
                    let (added, removed) = (&mut moved.added_kib, &mut moved.removed_kib);
                    *added = added.saturating_add(now_kib.saturating_sub(before_kib));
                    *removed = removed.saturating_add(before_kib.saturating_sub(now_kib));
                }
            }
            past.seen = Some((life, now_kib));
        }
    }

    /// Takes in what the VMs are told, or would be in a dry run. The orders are of VMs that are shown, and
    /// in their order.
    pub(super) fn act(&mut self, orders: &[Order], shown: &[Shown], now_ms: u64, dry_run: bool) {
        let mut shown = shown.iter();
        // An order of the present size moves nobody.
        let moves = |order: &&Order| !order.is_reminder && order.target_kib != order.actual_kib;
        for order in orders.iter().filter(moves) {
            self.last_number = self.last_number.saturating_add(1);
            let decision = shown.find(|shown| shown.input.name == order.name);
            let decision = decision.and_then(|shown| shown.decision);
            let action = Action {
                number: self.last_number,
                order: order.clone(),
                rule: decision.map(|decision| decision.reason.rule.to_string()).unwrap_or_default(),
                at_ms: now_ms,
            };
            if let Some(past) = self.vms.get_mut(&order.name) {
                past.last = Some(action.clone());
                for moved in [&mut past.moved, &mut self.moved] {
                    let count = match order.target_kib > order.actual_kib {
                        _ if dry_run => continue,
                        true => &mut moved.add_operations,
                        false => &mut moved.remove_operations,
                    };
                    *count = count.saturating_add(1);
                }
            }
            if self.actions.len() == MOST_ACTIONS {
                self.actions.pop_front();
            }
            self.actions.push_back(action);
        }
    }

    /// The newest actions, the newest first.
    pub(super) fn actions(&self, now_ms: u64) -> Vec<ActionStatus> {
        self.actions.iter().rev().map(|action| action.status(now_ms)).collect()
    }

    /// The sums of all VMs, also of those that are gone.
    pub(super) fn moved(&self) -> MovedStatus {
        self.moved
    }

    /// The sums of a VM and what was done last.
    pub(super) fn of(&self, name: &str, now_ms: u64) -> (MovedStatus, Option<ActionStatus>) {
        let Some(past) = self.vms.get(name) else { return Default::default() };
        (past.moved, past.last.as_ref().map(|action| action.status(now_ms)))
    }
}

impl Action {
    fn status(&self, now_ms: u64) -> ActionStatus {
        let Order { name, actual_kib, target_kib, reason, .. } = &self.order;
        ActionStatus {
            number: self.number,
            vm: name.clone(),
            from_kib: *actual_kib,
            to_kib: *target_kib,
            rule: self.rule.clone(),
            reason: reason.clone(),
            age_ms: now_ms.saturating_sub(self.at_ms),
        }
    }
}
