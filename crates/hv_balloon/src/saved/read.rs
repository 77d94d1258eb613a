//! From what was written to the device. It comes from a file and may be anything.

use alloc::collections::BTreeSet;
use core::time::Duration;

use dynmem_protocol::{Capabilities, HostMessage, MAX_HOST_MESSAGE, StatusReport, Version};
use page_range::PageCount;
use saved_state::Range;

use super::codes::reason;
use super::form::{self, State as Saved};
use super::{RestoreError, Result, ensure};
use crate::action::{JobIds, Prepare};
use crate::balloon::Asked;
use crate::books::Books;
use crate::outbox::Outbox;
use crate::region::Region;
use crate::removal::Removals;
use crate::state::{Preparation, Prepared, Session, State};
use crate::target::{Goal, Pursuit, Refusal};
use crate::{
    Action, BALLOON_TIMEOUT, Config, Device, FaultCounts, JobId, MAX_BALLOON_TIME,
    MAX_SHORT_ANSWERS, SHORT_ANSWER_PAUSE, StopReason, TargetError, UNBALLOON_TIMEOUT,
};

pub(super) fn device(form: form::Device<'_>, config: Config, now: Duration) -> Result<Device> {
    let mut device = Device::new(config)?;
    check_config(&form.config, &device)?;
    device.now = now;
    if let Some(region) = &mut device.region {
        *region = region.restore(form.region)?;
    }
    let (unit, region) = (device.books.unit(), device.region.as_ref());
    device.books = Books::restore(&form.books, &device.boot_ram, region, unit)?;
    device.jobs = JobIds { next: form.next_job };
    device.guest_os_id = form.guest_os_id;
    device.state = state(&form.state, &device)?;
    device.goal = form.goal.map(goal).transpose()?;
    device.outbox = outbox(&form)?;
    device.transaction_id = form.transaction_id;
    device.status = form.status.map(status);
    device.faults = FaultCounts::from_saved(form.faults);
    device.last_refusal = match form.last_refusal {
        Some((target, why)) => Some((PageCount::new(target), refusal(why)?)),
        None => None,
    };
    device.announced_hot_added = PageCount::new(form.announced_hot_added);
    device.announced = PageCount::new(form.announced);
    device.removals = removals(&form.removals, &device)?;
    check(&device)?;
    // A close that has not ended yet will answer the one before it, too.
    if form.close_finished && !matches!(device.state, State::Closing { .. }) {
        device.act(Action::CloseFinished);
    }
    resume(&mut device);
    Ok(device)
}

/// Compares with the configuration of a device that was made from the new one.
fn check_config(saved: &form::Config<'_>, device: &Device) -> Result<()> {
    let same =
        |same: bool, what| if same { Ok(()) } else { Err(RestoreError::OtherConfig { what }) };
    same(saved.boot_ram.iter().eq(device.boot_ram.iter()), "boot RAM")?;
    same(saved.discard_unit == device.books.unit().get(), "pages of memory to discard together")?;
    same(saved.hot_add == device.region.as_ref().map(Region::save_config), "memory to add")
}

fn state(saved: &Saved<'_>, device: &Device) -> Result<State> {
    // A time limit that was lowered since holds for what has begun, too.
    let until = |left: Duration, limit: Duration| device.now.saturating_add(left.min(limit));
    let settle = device.settle.time(device.guest_os_id.unwrap_or_default());
    Ok(match saved {
        Saved::Closed => State::Closed,
        Saved::Closing { absent } => State::Closing {
            discards: Default::default(),
            preparation: None,
            absent: device.books.units(absent)?,
        },
        Saved::AwaitVersion => State::AwaitVersion { settle },
        Saved::AwaitCaps { version: of } => State::AwaitCaps { settle, version: version(*of)? },
        &Saved::Settling { session: of, left } => {
            State::Settling { session: session(of)?, until: until(left, settle) }
        }
        &Saved::Idle { session: of } => State::Idle { session: session(of)? },
        &Saved::Pausing { session: of, left, short_answers } => {
            ensure(short_answers < MAX_SHORT_ANSWERS, "too many short answers")?;
            let until = until(left, SHORT_ANSWER_PAUSE);
            State::Pausing { session: session(of)?, until, short_answers }
        }
        &Saved::Ballooning { session: of, asked, left } => {
            ensure(asked.short_answers < MAX_SHORT_ANSWERS, "too many short answers")?;
            let asked = Asked {
                pages: PageCount::new(asked.pages),
                gained: PageCount::new(asked.gained),
                named_pages: asked.named_pages,
                short_answers: asked.short_answers,
                until: until(asked.left, MAX_BALLOON_TIME),
            };
            let deadline = until(left, BALLOON_TIMEOUT);
            State::Ballooning { session: session(of)?, asked, deadline }
        }
        &Saved::Unballooning { session: of, all_sent, left } => {
            let deadline = until(left, UNBALLOON_TIMEOUT);
            State::Unballooning { session: session(of)?, all_sent, deadline }
        }
        &Saved::Preparing { session: of, job, added } => {
            let what = added.map_or(Prepared::Returned, |Range(range)| Prepared::Added(range));
            let preparation = Preparation { job: JobId(job), what };
            State::Preparing { session: session(of)?, preparation }
        }
        &Saved::HotAdding { session: of, range: Range(range), waited, left } => State::HotAdding {
            session: session(of)?,
            range,
            since: waited.map(|waited| device.now.saturating_sub(waited)),
            deadline: until(left, crate::hot_add::patience(range)),
        },
    })
}

/// What must fit together, whatever each is.
fn check(device: &Device) -> Result<()> {
    let has_channel = !matches!(device.state, State::Closed | State::Closing { .. });
    ensure(
        device.guest_os_id.is_some() == has_channel,
        "a guest without a channel, or none with one",
    )?;
    ensure(has_channel || device.outbox.is_idle(), "messages without a channel")?;
    if device.state.session().is_none() {
        ensure(device.books.is_untouched(), "pages are out without a session")?;
        ensure(device.status.is_none(), "a status report without a session")?;
    }
    if let State::Closing { absent, .. } = &device.state {
        let is_right = absent.is_empty() || !device.books.provides_itself();
        ensure(is_right, "huge pages where there are none")?;
    } else {
        let waits = !device.removals.waiting.is_empty();
        ensure(!waits, "memory to remove that waits for nothing")?;
    }
    let is_closed = matches!(device.state, State::Closed);
    ensure(!is_closed || !device.removals.is_busy(), "closed while memory is removed")?;
    ensure(device.goal.is_none_or(|goal| !goal.target.is_zero()), "the target is no memory")?;
    check_jobs(device)?;
    check_offer(device)
}

fn check_jobs(device: &Device) -> Result<()> {
    let preparation = match &device.state {
        State::Preparing { preparation, .. } => Some(*preparation),
        _ => None,
    };
    let jobs = || {
        let prepares = preparation.map(|preparation| preparation.job);
        let removals = device.removals.in_flight.keys().copied();
        device.books.jobs().chain(prepares).chain(removals)
    };
    ensure(jobs().all(|job| job.get() < device.jobs.next), "a job from the future")?;
    // Names are never used twice, so enough of them must be left.
    ensure(device.jobs.next <= u64::MAX / 2, "more jobs than any device has had")?;
    let names: BTreeSet<JobId> = jobs().collect();
    ensure(names.len() == jobs().count(), "two jobs of one name")?;
    let removes = device.removals.is_busy();
    ensure(preparation.is_none() || !removes, "memory is prepared while some is removed")?;
    let is_returning =
        preparation.is_some_and(|preparation| preparation.what == Prepared::Returned);
    ensure(
        device.books.is_providing() == is_returning,
        "pages to provide without a job, or a job without",
    )
}

/// Memory that is being added, of which there is one piece at most.
fn check_offer(device: &Device) -> Result<()> {
    let late = device.region.as_ref().and_then(|region| region.unanswered);
    let (offered, is_told) = match device.state {
        State::Preparing {
            preparation: Preparation { what: Prepared::Added(range), .. }, ..
        } => (Some(range), None),
        State::HotAdding { range, since, .. } => (Some(range), Some(since.is_some())),
        _ => (None, None),
    };
    ensure(offered.is_none() || late.is_none(), "two offers of memory")?;
    let is_told = is_told.or(late.map(|late| late.is_told));
    ensure(is_told != Some(false) || !device.outbox.is_idle(), "an offer that is nowhere")?;
    let Some(range) = offered.or(late.map(|late| late.range)) else { return Ok(()) };
    ensure(device.removals.is_empty(), "an offer of memory while some is removed")?;
    let session = device.state.session().zip(device.region.as_ref());
    let is_right = session.is_some_and(|(session, region)| {
        region.can_offer(range, session.capabilities.hot_add_alignment())
    });
    ensure(is_right, "an offer of memory that there is not")
}

/// Asks for what is in flight, and does what can be done now.
fn resume(device: &mut Device) {
    if device.is_inhibited {
        device.books.take_back_discards();
    }
    for (id, ranges) in device.books.discards() {
        device.act(Action::Discard { id, ranges });
    }
    for (id, range) in device.removals.in_flight.clone() {
        device.act(Action::RemoveMemory { id, range });
    }
    if let State::Preparing { session, preparation: Preparation { job: id, what } } = device.state {
        let of_guest = session.capabilities.hot_add_alignment();
        let region = device.region.as_ref();
        let what = match what {
            Prepared::Added(range) => region.and_then(|region| region.prepare(range, of_guest)),
            _ => Some(Prepare::Return(device.books.provided())),
        };
        if let Some(what) = what {
            device.act(Action::Prepare { id, what });
        }
    }
    device.finish_close();
    device.go_on();
}

/// Memory to remove: of the memory to add, and not the guest's.
fn removals(saved: &form::Removals, device: &Device) -> Result<Removals> {
    let region = device.region.as_ref();
    let removals = Removals {
        waiting: saved.waiting.iter().map(|range| range.0).collect(),
        in_flight: saved.in_flight.iter().map(|&(id, range)| (JobId(id), range.0)).collect(),
        stuck: saved.stuck.iter().map(|range| range.0).collect(),
    };
    ensure(removals.in_flight.len() == saved.in_flight.len(), "two jobs of one name")?;
    let may_go = |range| {
        region.is_some_and(|region| region.may_hold(range)) && !device.books.has_ram_in(range)
    };
    ensure(removals.ranges().all(may_go), "memory to remove that is none to add")?;
    Ok(removals)
}

fn outbox(form: &form::Device<'_>) -> Result<Outbox> {
    // Messages are whole units of the ring, so that it adds no bytes of its own.
    let is_message = |bytes: &[u8]| {
        bytes.len() <= MAX_HOST_MESSAGE
            && bytes.len().is_multiple_of(8)
            && HostMessage::parse(bytes).is_ok()
    };
    let are_messages = form.outbox.iter().all(|message| is_message(message));
    ensure(are_messages, "a message that is none of the protocol's")?;
    let outbox = Outbox::restore(form.outbox.iter().map(|message| message.to_vec()));
    outbox.ok_or(RestoreError::Impossible { reason: "too many messages" })
}

fn version(number: u32) -> Result<Version> {
    let version = Version::from_wire(number);
    ensure(version.is_known(), "a protocol version that there is not")?;
    Ok(version)
}

fn session(form: form::Session) -> Result<Session> {
    let capabilities = Capabilities::from_wire(form.capabilities);
    Ok(Session { version: version(form.version)?, capabilities })
}

fn stop_reason(code: u8) -> Result<StopReason> {
    reason(code).ok_or(RestoreError::Impossible { reason: "a reason that there is not" })
}

fn goal(form: form::Goal) -> Result<Goal> {
    let pursuit = match form.pursuit {
        form::Pursuit::Open => Pursuit::Open,
        form::Pursuit::Stopping(code) => Pursuit::Stopping(stop_reason(code)?),
        form::Pursuit::Stopped(code) => Pursuit::Stopped(stop_reason(code)?),
        form::Pursuit::Reached => Pursuit::Reached,
    };
    Ok(Goal { target: PageCount::new(form.target), pursuit })
}

const fn status(form: form::Status) -> StatusReport {
    StatusReport {
        available: PageCount::new(form.available),
        committed: PageCount::new(form.committed),
        page_file: PageCount::new(form.page_file),
        zero_and_free: PageCount::new(form.zero_and_free),
        page_file_writes: form.page_file_writes,
        io_difference: form.io_difference,
    }
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
        form::Refusal::Stopped(code) => Refusal::Stopped(stop_reason(code)?),
    })
}
