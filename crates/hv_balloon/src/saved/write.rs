//! Writing the saved state of a device.

use alloc::boxed::Box;

use core::time::Duration;

use page_range::PageRange;
use saved_state::{Range, RangeSet};

use super::codes::code;
use super::form;
use crate::closing::Closing;
use crate::confirmation::Confirmation;
use crate::handshake::Handshake;
use crate::link::Link;
use crate::machine::{Announced, Machine};
use crate::placement::HotAddPlacement;
use crate::removal::Removals;
use crate::target::{Goal, Pursuit, Refusal};
use crate::{Device, TargetError};

pub(super) fn device(Device { link, machine }: &Device, now: Duration) -> form::Device {
    let Announced { actual, hot_added } = machine.announced;
    form::Device {
        config: config(machine),
        link: match link {
            Link::Closed => form::Link::Closed,
            Link::Handshake(handshake) => handshake_form(handshake),
            Link::Ready(session) => form::Link::Ready(Box::new(session.save(now))),
            Link::Closing(closing) => {
                form::Link::Closing { absent: RangeSet::from(closing.absent()) }
            }
        },
        goal: machine.goal.map(goal),
        confirmation: match machine.confirmation {
            Confirmation::Settled => form::Confirmation::Settled,
            Confirmation::Awaited => form::Confirmation::Awaited,
            Confirmation::Silent => form::Confirmation::Silent,
        },
        ledger: machine.ledger.save(&machine.boot_ram),
        placement: machine.placement.as_ref().map(HotAddPlacement::save),
        next_job: machine.jobs.next,
        // Memory being prepared for a guest that has left must be removed as soon as it may be
        // there.
        removals: removals(machine, link.closing().and_then(Closing::prepared_in_vain)),
        faults: machine.faults,
        last_refusal: machine.last_refusal.map(|(target, why)| (target.get(), refusal(why))),
        announced_hot_added: hot_added.get(),
        announced: actual.get(),
        close_finished: machine.has_close_finished(),
    }
}

fn config(machine: &Machine) -> form::Config {
    form::Config {
        boot_ram: RangeSet::from(&machine.boot_ram),
        discard_unit: machine.ledger.unit().get(),
        hot_add: machine.placement.as_ref().map(HotAddPlacement::save_config),
    }
}

fn handshake_form(handshake: &Handshake) -> form::Link {
    form::Link::Handshake {
        guest_os_id: handshake.guest_os_id(),
        outbox: handshake.outbox().save(),
        version: handshake.version().map(|version| version.to_wire()),
    }
}

fn removals(machine: &Machine, in_vain: Option<PageRange>) -> form::Removals {
    let Removals { waiting, in_flight, stuck } = &machine.removals;
    form::Removals {
        waiting: waiting.iter().chain(in_vain).map(Range).collect(),
        in_flight: in_flight.iter().map(|(id, range)| (id.get(), Range(*range))).collect(),
        stuck: stuck.iter().map(Range).collect(),
    }
}

const fn goal(Goal { target, pursuit, told }: Goal) -> form::Goal {
    let pursuit = match pursuit {
        Pursuit::Open => form::Pursuit::Open,
        Pursuit::Overdue(reason) => form::Pursuit::Overdue(code(reason)),
        Pursuit::Stopping(reason) => form::Pursuit::Stopping(code(reason)),
        Pursuit::Stopped(reason) => form::Pursuit::Stopped(code(reason)),
        Pursuit::Reached => form::Pursuit::Reached,
    };
    let (told_overdue, told_unused) = (told.overdue, told.unused);
    form::Goal { target: target.get(), pursuit, told_overdue, told_unused }
}

const fn refusal(refusal: Refusal) -> form::Refusal {
    match refusal {
        Refusal::Target(TargetError::Zero) => form::Refusal::Zero,
        Refusal::Target(TargetError::AboveMaximum { requested, maximum }) => {
            form::Refusal::AboveMaximum { requested: requested.get(), maximum: maximum.get() }
        }
        Refusal::Target(TargetError::CannotBalloon { present }) => {
            form::Refusal::CannotBalloon { present: present.get() }
        }
        Refusal::Target(TargetError::CannotHotAdd { maximum }) => {
            form::Refusal::CannotHotAdd { maximum: maximum.get() }
        }
        Refusal::Target(TargetError::Unconfirmed { maximum, unconfirmed }) => {
            let (maximum, unconfirmed) = (maximum.get(), unconfirmed.get());
            form::Refusal::Unconfirmed { maximum, unconfirmed }
        }
        Refusal::Stopped(reason) => form::Refusal::Stopped(code(reason)),
    }
}
