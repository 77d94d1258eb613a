//! From the device to what is written.

use core::time::Duration;

use dynmem_protocol::StatusReport;
use saved_state::Range;

use super::codes::code;
use super::form;
use crate::region::Region;
use crate::removal::Removals;
use crate::state::{Preparation, Prepared, Session, State};
use crate::target::{Goal, Pursuit, Refusal};
use crate::{Action, Device, TargetError};

pub(super) fn device(device: &Device, now: Duration) -> form::Device<'_> {
    form::Device {
        config: config(device),
        state: state(&device.state, now),
        guest_os_id: device.guest_os_id,
        goal: device.goal.map(goal),
        books: device.books.save(&device.boot_ram),
        region: device.region.as_ref().map(Region::save),
        next_job: device.jobs.next,
        removals: removals(device),
        outbox: device.outbox.messages().map(Into::into).collect(),
        transaction_id: device.transaction_id,
        status: device.status.map(status),
        faults: device.faults.to_saved(),
        last_refusal: device.last_refusal.map(|(target, why)| (target.get(), refusal(why))),
        announced_hot_added: device.announced_hot_added.get(),
        announced: device.announced.get(),
        close_finished: device.actions.contains(&Action::CloseFinished),
    }
}

fn config(device: &Device) -> form::Config<'_> {
    form::Config {
        boot_ram: (&device.boot_ram).into(),
        discard_unit: device.books.unit().get(),
        hot_add: device.region.as_ref().map(Region::save_config),
    }
}

fn state(state: &State, now: Duration) -> form::State<'_> {
    let left = |until: Duration| until.saturating_sub(now);
    match state {
        State::Closed => form::State::Closed,
        State::Closing { absent, .. } => form::State::Closing { absent: absent.into() },
        State::AwaitVersion { .. } => form::State::AwaitVersion,
        State::AwaitCaps { version, .. } => form::State::AwaitCaps { version: version.to_wire() },
        &State::Settling { session: of, until } => {
            form::State::Settling { session: session(of), left: left(until) }
        }
        &State::Idle { session: of } => form::State::Idle { session: session(of) },
        &State::Pausing { session: of, until, short_answers } => {
            form::State::Pausing { session: session(of), left: left(until), short_answers }
        }
        &State::Ballooning { session: of, asked, deadline } => form::State::Ballooning {
            session: session(of),
            asked: form::Asked {
                pages: asked.pages.get(),
                gained: asked.gained.get(),
                named_pages: asked.named_pages,
                short_answers: asked.short_answers,
                left: left(asked.until),
            },
            left: left(deadline),
        },
        &State::Unballooning { session: of, all_sent, deadline } => {
            form::State::Unballooning { session: session(of), all_sent, left: left(deadline) }
        }
        &State::Preparing { session: of, preparation: Preparation { job, what } } => {
            let added = if let Prepared::Added(range) = what { Some(Range(range)) } else { None };
            form::State::Preparing { session: session(of), job: job.get(), added }
        }
        &State::HotAdding { session: of, range, since, deadline } => form::State::HotAdding {
            session: session(of),
            range: Range(range),
            waited: since.map(|since| now.saturating_sub(since)),
            left: left(deadline),
        },
    }
}

/// What is being prepared for a guest that left goes as soon as it may be there.
fn removals(device: &Device) -> form::Removals {
    let in_vain = match &device.state {
        State::Closing {
            preparation: Some(Preparation { what: Prepared::Added(range), .. }),
            ..
        } => Some(range),
        _ => None,
    };
    let Removals { waiting, in_flight, stuck } = &device.removals;
    form::Removals {
        waiting: waiting.iter().chain(in_vain.copied()).map(Range).collect(),
        in_flight: in_flight.iter().map(|(id, range)| (id.get(), Range(*range))).collect(),
        stuck: stuck.iter().map(Range).collect(),
    }
}

const fn session(session: Session) -> form::Session {
    form::Session {
        version: session.version.to_wire(),
        capabilities: session.capabilities.to_wire(),
    }
}

const fn goal(Goal { target, pursuit }: Goal) -> form::Goal {
    let pursuit = match pursuit {
        Pursuit::Open => form::Pursuit::Open,
        Pursuit::Stopping(reason) => form::Pursuit::Stopping(code(reason)),
        Pursuit::Stopped(reason) => form::Pursuit::Stopped(code(reason)),
        Pursuit::Reached => form::Pursuit::Reached,
    };
    form::Goal { target: target.get(), pursuit }
}

const fn status(report: StatusReport) -> form::Status {
    form::Status {
        available: report.available.get(),
        committed: report.committed.get(),
        page_file: report.page_file.get(),
        zero_and_free: report.zero_and_free.get(),
        page_file_writes: report.page_file_writes,
        io_difference: report.io_difference,
    }
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
        Refusal::Stopped(reason) => form::Refusal::Stopped(code(reason)),
    }
}
