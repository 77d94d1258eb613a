//! Restoring a device from saved state, which comes from a file and may be anything.

use alloc::collections::BTreeSet;
use core::time::Duration;

use dynmem_protocol::Version;
use page_range::PageCount;

use super::codes::reason;
use super::{RestoreError, Result, ensure, form};
use crate::action::JobIds;
use crate::closing::Closing;
use crate::confirmation::Confirmation;
use crate::handshake::Handshake;
use crate::ledger::PageLedger;
use crate::link::Link;
use crate::machine::{Announced, Machine};
use crate::outbox::Outbox;
use crate::placement::HotAddPlacement;
use crate::removal::Removals;
use crate::session::{Prepared, Session};
use crate::target::{Goal, Pursuit, Refusal, Told};
use crate::{Action, Config, Device, JobId, StopReason, TargetError, Task};

pub(super) fn device(form: &form::Device, config: Config, now: Duration) -> Result<Device> {
    let Device { mut machine, .. } = Device::new(config)?;
    check_config(&form.config, &machine)?;
    machine.now = now;
    match (&mut machine.placement, form.placement) {
        (Some(placement), Some(saved)) => *placement = placement.restore(saved)?,
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => ensure(
            false,
            "hot-add memory without a placement, or a placement without hot-add memory",
        )?,
    }
    let (unit, placement) = (machine.ledger.unit(), machine.placement.as_ref());
    machine.ledger = PageLedger::restore(&form.ledger, &machine.boot_ram, placement, unit)?;
    machine.jobs = JobIds { next: form.next_job };
    machine.goal = form.goal.map(goal).transpose()?;
    machine.confirmation = match form.confirmation {
        form::Confirmation::Settled => Confirmation::Settled,
        form::Confirmation::Awaited => Confirmation::Awaited,
        form::Confirmation::Silent => Confirmation::Silent,
    };
    ensure(
        !machine.awaits_report() || machine.ledger.unconfirmed().is_zero(),
        "memory is unconfirmed before a report",
    )?;
    machine.faults = form.faults;
    machine.last_refusal = match form.last_refusal {
        Some((target, why)) => Some((PageCount::new(target), refusal(why)?)),
        None => None,
    };
    machine.announced = Announced {
        actual: PageCount::new(form.announced),
        hot_added: PageCount::new(form.announced_hot_added),
    };
    machine.removals = removals(&form.removals, &machine)?;
    let link = link(&form.link, &machine)?;
    check(&link, &machine)?;
    // A close still under way will answer the one before it, too.
    if form.close_finished && link.closing().is_none() {
        machine.act(Action::CloseFinished);
    }
    let mut device = Device { link, machine };
    resume(&mut device);
    Ok(device)
}

/// Compares the saved configuration with that of `machine`, which was made from the new one.
fn check_config(saved: &form::Config, machine: &Machine) -> Result<()> {
    let same =
        |same: bool, what| if same { Ok(()) } else { Err(RestoreError::OtherConfig { what }) };
    same(saved.boot_ram.iter().eq(machine.boot_ram.iter()), "boot RAM")?;
    same(saved.discard_unit == machine.ledger.unit().get(), "discard unit")?;
    let to_add = machine.placement.as_ref().map(HotAddPlacement::save_config);
    same(saved.hot_add == to_add, "hot-add memory")
}

fn link(saved: &form::Link, machine: &Machine) -> Result<Link> {
    Ok(match saved {
        form::Link::Closed => Link::Closed,
        form::Link::Handshake { guest_os_id, outbox, version: of } => {
            let version = of.map(version).transpose()?;
            Link::Handshake(Handshake::restore(*guest_os_id, Outbox::restore(outbox)?, version))
        }
        form::Link::Ready(session) => Link::Ready(Session::restore(session, machine)?),
        form::Link::Closing { absent } => {
            Link::Closing(Closing::restore(machine.ledger.units(absent)?))
        }
    })
}

/// Checks that the parts fit together, whatever each is.
fn check(link: &Link, machine: &Machine) -> Result<()> {
    ensure(machine.goal.is_none_or(|goal| !goal.target.is_zero()), "the target is zero")?;
    let waits = !machine.removals.waiting.is_empty();
    match link {
        Link::Closed => {
            ensure(!machine.removals.is_busy(), "closed while memory is removed")?;
        }
        Link::Closing(closing) => {
            let is_right = closing.absent().is_empty() || !machine.ledger.provides_itself();
            ensure(is_right, "huge pages in a device without them")?;
        }
        Link::Handshake(_) | Link::Ready(_) => {}
    }
    let prepares = link.session().is_some_and(|session| session.preparation().is_some());
    ensure(!waits || prepares || link.closing().is_some(), "a removal waits for nothing")?;
    let Some(session) = link.session() else {
        ensure(machine.ledger.is_untouched(), "pages that a guest gave, but no session")?;
        return check_jobs(None, machine);
    };
    check_jobs(Some(session), machine)?;
    session.check_offer(machine)
}

fn check_jobs(session: Option<&Session>, machine: &Machine) -> Result<()> {
    let preparation = session.and_then(Session::preparation);
    let jobs = || {
        let prepares = preparation.map(|preparation| preparation.job);
        let removals = machine.removals.in_flight.keys().copied();
        machine.ledger.jobs().chain(prepares).chain(removals)
    };
    ensure(
        jobs().all(|job| job.get() < machine.jobs.next),
        "a job with an ID that is not assigned yet",
    )?;
    // IDs are never used twice, so enough of them must be left.
    ensure(machine.jobs.next <= u64::MAX / 2, "the next job ID is too high")?;
    let names: BTreeSet<JobId> = jobs().collect();
    ensure(names.len() == jobs().count(), "two jobs with one ID")?;
    let removes = machine.removals.is_busy();
    ensure(preparation.is_none() || !removes, "memory is prepared while some is removed")?;
    let is_returning =
        preparation.is_some_and(|preparation| preparation.what == Prepared::Returned);
    ensure(
        machine.ledger.is_providing() == is_returning,
        "pages to provide without a job, or such a job without pages",
    )
}

/// Requests the jobs in flight again, and starts whatever can start now.
fn resume(device: &mut Device) {
    let Device { link, machine } = device;
    if machine.is_inhibited {
        machine.ledger.take_back_discards();
    }
    for (id, ranges) in machine.ledger.discards() {
        machine.start(id, Task::Discard(ranges));
    }
    for (id, range) in machine.removals.in_flight.clone() {
        machine.start(id, Task::Remove(range));
    }
    if let Some(session) = link.session() {
        session.resume(machine);
    }
    link.finish_closing(machine);
    device.go_on();
}

/// Restores the removals. They must concern hot-add memory that is not the guest's RAM.
fn removals(saved: &form::Removals, machine: &Machine) -> Result<Removals> {
    let placement = machine.placement.as_ref();
    let removals = Removals {
        waiting: saved.waiting.iter().map(|range| range.0).collect(),
        in_flight: saved.in_flight.iter().map(|&(id, range)| (JobId(id), range.0)).collect(),
        stuck: saved.stuck.iter().map(|range| range.0).collect(),
    };
    ensure(removals.in_flight.len() == saved.in_flight.len(), "two jobs with one ID")?;
    let may_go =
        |range| placement.is_some_and(|it| it.may_hold(range)) && !machine.ledger.has_ram_in(range);
    ensure(
        removals.ranges().all(may_go),
        "memory to remove that is RAM or outside the hot-add window",
    )?;
    Ok(removals)
}

pub(crate) fn version(number: u32) -> Result<Version> {
    let version = Version::from_wire(number);
    ensure(version.is_known(), "an unknown protocol version")?;
    Ok(version)
}

fn stop_reason(code: u8) -> Result<StopReason> {
    reason(code).ok_or(RestoreError::Impossible { reason: "an unknown stop reason" })
}

fn goal(form: form::Goal) -> Result<Goal> {
    let pursuit = match form.pursuit {
        form::Pursuit::Open => Pursuit::Open,
        form::Pursuit::Overdue(code) => Pursuit::Overdue(stop_reason(code)?),
        form::Pursuit::Stopping(code) => Pursuit::Stopping(stop_reason(code)?),
        form::Pursuit::Stopped(code) => Pursuit::Stopped(stop_reason(code)?),
        form::Pursuit::Reached => Pursuit::Reached,
    };
    let told = Told { overdue: form.told_overdue, unused: form.told_unused };
    Ok(Goal { target: PageCount::new(form.target), pursuit, told })
}

fn refusal(form: form::Refusal) -> Result<Refusal> {
    let pages = PageCount::new;
    Ok(match form {
        form::Refusal::Zero => Refusal::Target(TargetError::Zero),
        form::Refusal::AboveMaximum { requested, maximum } => {
            let (requested, maximum) = (pages(requested), pages(maximum));
            Refusal::Target(TargetError::AboveMaximum { requested, maximum })
        }
        form::Refusal::CannotBalloon { present } => {
            Refusal::Target(TargetError::CannotBalloon { present: pages(present) })
        }
        form::Refusal::CannotHotAdd { maximum } => {
            Refusal::Target(TargetError::CannotHotAdd { maximum: pages(maximum) })
        }
        form::Refusal::Unconfirmed { maximum, unconfirmed } => {
            let (maximum, unconfirmed) = (pages(maximum), pages(unconfirmed));
            Refusal::Target(TargetError::Unconfirmed { maximum, unconfirmed })
        }
        form::Refusal::Stopped(code) => Refusal::Stopped(stop_reason(code)?),
    })
}
