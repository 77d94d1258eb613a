//! Saving and restoring the session.

use core::time::Duration;

use dynmem_protocol::{Capabilities, RangeList, StatusReport};
use page_range::PageCount;
use saved_state::Range;

use super::balloon::Asked;
use super::hot_add::{Offer, patience};
use super::next::Room;
use super::online::{REPORT_WAIT, Unused};
use super::retry::LAST_RETRY_PAUSE;
use super::{
    Activity, BALLOON_TIMEOUT, MAX_BALLOON_TIME, MAX_SHORT_ANSWERS, Preparation, Prepared,
    SHORT_ANSWER_PAUSE, Session, UNBALLOON_TIMEOUT,
};
use crate::action::Prepare;
use crate::confirmation::CONFIRMATION_WAIT;
use crate::machine::Machine;
use crate::outbox::Outbox;
use crate::saved::{Result, ensure, form, version};
use crate::{JobId, Task};

impl Session {
    pub(crate) fn save(&self, now: Duration) -> form::Session {
        let left = |until: Duration| until.saturating_sub(now);
        form::Session {
            guest_os_id: self.guest_os_id,
            version: self.version.to_wire(),
            capabilities: self.capabilities.to_wire(),
            activity: match self.activity {
                Activity::Settling { until } => form::Activity::Settling { left: left(until) },
                Activity::Idle => form::Activity::Idle,
                Activity::Pausing { until, short_answers } => {
                    form::Activity::Pausing { left: left(until), short_answers }
                }
                Activity::Ballooning(asked) => form::Activity::Ballooning(asked.save(now)),
                Activity::Unballooning { all_sent, deadline } => {
                    form::Activity::Unballooning { all_sent, left: deadline.map(left) }
                }
                Activity::Preparing(Preparation { job, what }) => {
                    let added = match what {
                        Prepared::Added(range) => Some(Range(range)),
                        Prepared::Returned => None,
                    };
                    form::Activity::Preparing { job: job.get(), added }
                }
                Activity::HotAdding(offer) => form::Activity::HotAdding(offer.save(now)),
            },
            outbox: self.outbox.save(),
            transaction_id: self.transaction_id,
            status: self.status.map(save_status),
            late: self.late.map(|late| late.save(now)),
            is_proven: self.is_proven,
            fresh_status: self.fresh_status.map(save_status),
            status_before: self.status_before.map(save_status),
            confirmation_left: self.confirmed_by.map(left),
            unused: self.unused.map(|Unused { pages, before, until }| form::Unused {
                pages: pages.get(),
                before: before.map(save_status),
                left: until.map(left),
            }),
            given_up: self.given_up,
            failures: self.failures,
        }
    }

    /// Restores the session, if the saved one is possible. `machine` must be restored already.
    pub(crate) fn restore(saved: &form::Session, machine: &Machine) -> Result<Self> {
        let capabilities = Capabilities::from_wire(saved.capabilities);
        let guest_os_id = saved.guest_os_id;
        ensure(
            saved.confirmation_left.is_some() == machine.awaits_report(),
            "a wait for a report that nobody needs, or no wait for one",
        )?;
        Ok(Self {
            guest_os_id,
            version: version(saved.version)?,
            capabilities,
            activity: activity(saved.activity, machine, machine.settle_time(guest_os_id))?,
            outbox: Outbox::restore(&saved.outbox)?,
            transaction_id: saved.transaction_id,
            status: saved.status.map(restore_status),
            room: Room::default(),
            late: saved.late.map(|late| Offer::restore(late, machine)),
            is_proven: saved.is_proven,
            fresh_status: saved.fresh_status.map(restore_status),
            status_before: saved.status_before.map(restore_status),
            confirmed_by: saved
                .confirmation_left
                .map(|left| until(machine, left, CONFIRMATION_WAIT)),
            unused: saved.unused.map(|saved| Unused {
                pages: PageCount::new(saved.pages),
                before: saved.before.map(restore_status),
                until: saved.left.map(|left| until(machine, left, REPORT_WAIT)),
            }),
            given_up: saved.given_up,
            failures: saved.failures,
            ranges: RangeList::new(),
        })
    }

    /// Checks the memory being added: at most one range, which must be free to add.
    pub(crate) fn check_offer(&self, machine: &Machine) -> Result<()> {
        let prepared = self.preparation().and_then(|Preparation { what, .. }| match what {
            Prepared::Added(range) => Some(range),
            Prepared::Returned => None,
        });
        let offered = prepared.or(self.offer().map(|offer| offer.range));
        ensure(offered.is_none() || self.late.is_none(), "two offers of memory")?;
        let is_told = self.offer().or(self.late).is_none_or(|offer| offer.is_told());
        ensure(is_told || !self.outbox.is_idle(), "an offer that is neither sent nor queued")?;
        let Some(range) = offered.or(self.late.map(|late| late.range)) else { return Ok(()) };
        ensure(machine.removals.is_empty(), "memory is offered while some is removed")?;
        let placement = machine.placement.as_ref();
        let is_right = placement.is_some_and(|it| it.can_offer(range, self.guest_alignment()));
        ensure(is_right, "an offer of memory that is not free to add")
    }

    /// Requests the running preparation again.
    pub(crate) fn resume(&self, machine: &mut Machine) {
        let Some(Preparation { job: id, what }) = self.preparation() else { return };
        let what = match what {
            Prepared::Added(range) => {
                let placement = machine.placement.as_ref();
                placement.and_then(|it| it.prepare(range, self.guest_alignment()))
            }
            Prepared::Returned => Some(Prepare::Return(machine.ledger.provided())),
        };
        if let Some(what) = what {
            machine.start(id, Task::Prepare(what));
        }
    }
}

fn activity(saved: form::Activity, machine: &Machine, settle: Duration) -> Result<Activity> {
    Ok(match saved {
        form::Activity::Settling { left } => {
            Activity::Settling { until: until(machine, left, settle) }
        }
        form::Activity::Idle => Activity::Idle,
        form::Activity::Pausing { left, short_answers } => {
            check_answers(short_answers)?;
            let longest = SHORT_ANSWER_PAUSE.max(LAST_RETRY_PAUSE);
            Activity::Pausing { until: until(machine, left, longest), short_answers }
        }
        form::Activity::Ballooning(asked) => Activity::Ballooning(Asked::restore(asked, machine)?),
        form::Activity::Unballooning { all_sent, left } => {
            let deadline = left.map(|left| until(machine, left, UNBALLOON_TIMEOUT));
            Activity::Unballooning { all_sent, deadline }
        }
        form::Activity::Preparing { job, added } => {
            let what = added.map_or(Prepared::Returned, |Range(range)| Prepared::Added(range));
            Activity::Preparing(Preparation { job: JobId(job), what })
        }
        form::Activity::HotAdding(offer) => Activity::HotAdding(Offer::restore(offer, machine)),
    })
}

/// The end of a wait. If the limit was lowered since the state was saved, the lower one applies.
fn until(machine: &Machine, left: Duration, limit: Duration) -> Duration {
    machine.after(left.min(limit))
}

fn check_answers(short_answers: u32) -> Result<()> {
    ensure(short_answers < MAX_SHORT_ANSWERS, "too many short answers")
}

impl Asked {
    fn save(self, now: Duration) -> form::Asked {
        form::Asked {
            pages: self.pages.get(),
            gained: self.gained.get(),
            named_pages: self.named_pages,
            short_answers: self.short_answers,
            whole_left: self.until.saturating_sub(now),
            left: self.deadline.map(|deadline| deadline.saturating_sub(now)),
        }
    }

    fn restore(saved: form::Asked, machine: &Machine) -> Result<Self> {
        check_answers(saved.short_answers)?;
        Ok(Self {
            pages: PageCount::new(saved.pages),
            gained: PageCount::new(saved.gained),
            named_pages: saved.named_pages,
            short_answers: saved.short_answers,
            until: until(machine, saved.whole_left, MAX_BALLOON_TIME),
            deadline: saved.left.map(|left| until(machine, left, BALLOON_TIMEOUT)),
        })
    }
}

impl Offer {
    fn save(self, now: Duration) -> form::Offer {
        form::Offer {
            range: Range(self.range),
            waited: self.since.map(|since| now.saturating_sub(since)),
            left: self.deadline.map(|deadline| deadline.saturating_sub(now)),
        }
    }

    fn restore(
        form::Offer { range: Range(range), waited, left }: form::Offer,
        machine: &Machine,
    ) -> Self {
        Self {
            range,
            since: waited.map(|waited| machine.now.saturating_sub(waited)),
            deadline: left.map(|left| until(machine, left, patience(range))),
        }
    }
}

const fn save_status(report: StatusReport) -> form::Status {
    form::Status {
        available: report.available.get(),
        committed: report.committed.get(),
        page_file: report.page_file.get(),
        zero_and_free: report.zero_and_free.get(),
        page_file_writes: report.page_file_writes,
        io_difference: report.io_difference,
    }
}

const fn restore_status(form: form::Status) -> StatusReport {
    StatusReport {
        available: PageCount::new(form.available),
        committed: PageCount::new(form.committed),
        page_file: PageCount::new(form.page_file),
        zero_and_free: PageCount::new(form.zero_and_free),
        page_file_writes: form.page_file_writes,
        io_difference: form.io_difference,
    }
}
