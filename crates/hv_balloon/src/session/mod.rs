//! The session with a guest that has reported its capabilities.
//!
//! ```text
//!                              ┌── short answer ──┐
//!   Settling                   │     Pausing ──►  │
//!      │ settle time over      │                  ▼
//!      └──────► Idle ──────────┴─────────── Ballooning
//!                │ ▲  guest's last word
//!                │ ├─────────────────────── Unballooning ◄── all pages that the guest is owed
//!                │ ├─────────────────────── HotAdding ────► Pausing: it failed, and is tried again
//!                │ │                            ▲ new memory is ready
//!                └─┴─────────────────────── Preparing ────► Pausing
//! ```
//!
//! A transaction ends with the guest's last word, or when the operator sets another target after the
//! guest's time is over: time alone ends none. A guest may be slow, stand still with its host for
//! minutes, and go on where it was.
//!
//! [`Session::take_in`] is the whole machine, and the only place where the state changes.

mod balloon;
mod hot_add;
mod next;
mod online;
mod prepare;
mod retry;
mod saved;
mod unballoon;

use core::time::Duration;

use dynmem_protocol::{
    BalloonResponse, Capabilities, GuestBody, HotAddResponse, MessageType, RangeList, StatusReport,
    Version,
};
use page_range::PageCount;

use crate::confirmation::CONFIRMATION_WAIT;
use crate::machine::Machine;
use crate::outbox::Outbox;
use crate::{JobId, Notice, StateName, StopReason};

use balloon::Asked;
pub use balloon::{
    BALLOON_TIMEOUT, MAX_BALLOON_REQUEST, MAX_BALLOON_TIME, MAX_SHORT_ANSWERS, SHORT_ANSWER_PAUSE,
};
pub use hot_add::HOT_ADD_TIMEOUT;
use hot_add::Offer;
use next::Room;
use online::Unused;
pub(crate) use prepare::{Preparation, Prepared};
pub use retry::{FIRST_RETRY_PAUSE, MAX_FAILURES};
pub use unballoon::{MAX_UNBALLOON_MESSAGE, UNBALLOON_TIMEOUT};

/// The session with a guest after the handshake.
#[derive(Debug)]
pub(crate) struct Session {
    guest_os_id: u64,
    version: Version,
    capabilities: Capabilities,
    activity: Activity,
    outbox: Outbox,
    /// The ID of the device's requests; guests do not echo it.
    transaction_id: u32,
    /// The guest's last report.
    status: Option<StatusReport>,
    /// The guest's room in its ring for the next request.
    room: Room,
    /// Memory that was offered before the last target was set. The guest may be using it, and may
    /// still answer.
    late: Option<Offer>,
    /// Whether the guest has used memory that it was offered.
    is_proven: bool,
    /// The guest's last report, if its size has not changed since.
    fresh_status: Option<StatusReport>,
    /// The guest's last report when it was offered memory.
    status_before: Option<StatusReport>,
    /// How long to wait for a report that tells whether the guest has the memory added before;
    /// `None` unless the machine awaits it.
    confirmed_by: Option<Duration>,
    /// Memory that the guest added and has perhaps not put to use.
    unused: Option<Unused>,
    /// Balloon requests that were given up for another target and may still be answered.
    given_up: u32,
    /// Attempts in a row to get memory for the guest that failed.
    failures: u32,
    /// The ranges of one unballoon message, kept to reuse their memory.
    ranges: RangeList,
}

/// The activity under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Activity {
    /// The guest must not get any request yet.
    Settling { until: Duration },
    /// No transaction open.
    Idle,
    /// No transaction open; the guest gave fewer pages than requested and is left alone for a
    /// while.
    Pausing { until: Duration, short_answers: u32 },
    /// A balloon request is outstanding.
    Ballooning(Asked),
    /// An unballoon request is outstanding, or part of one. It is overdue from `deadline` on, which
    /// is `None` once it is.
    Unballooning { all_sent: bool, deadline: Option<Duration> },
    /// The host prepares memory for the guest, which does not know of it.
    Preparing(Preparation),
    /// A hot-add request is outstanding.
    HotAdding(Offer),
}

/// An input of the state machine.
enum Input<'a> {
    /// A transaction may begin or go on.
    Step,
    /// The operator has set a target.
    TargetSet,
    /// The ring took the message.
    Sent,
    /// The time of [`Activity::deadline`] has come.
    Due,
    /// The host has prepared memory, or could not.
    Prepared { job: JobId, ok: bool },
    /// The guest gives pages.
    Gave(BalloonResponse<'a>),
    /// The guest has taken back pages.
    TookBack,
    /// The guest has taken all, some or none of the new memory.
    Added(HotAddResponse),
}

impl Session {
    /// The state machine: takes an input and moves to the next activity.
    fn take_in(&mut self, machine: &mut Machine, input: Input<'_>) {
        use Activity::{Ballooning, HotAdding, Idle, Pausing, Preparing, Settling, Unballooning};
        let is_sent = self.outbox.is_idle();
        let next = match (input, &self.activity) {
            (Input::Step, &Idle) if is_sent && machine.has_to_do() => self.begin_next(machine),
            (Input::Step, &Unballooning { all_sent: false, .. }) if is_sent => {
                self.return_pages(machine)
            }

            (Input::TargetSet, &Pausing { .. }) => Idle,
            (Input::TargetSet, &Ballooning(Asked { deadline: None, .. })) => {
                self.asked_in_vain(machine)
            }
            (Input::TargetSet, &Unballooning { all_sent: true, deadline: None }) => {
                self.end_transaction(machine)
            }
            (Input::TargetSet, &Unballooning { all_sent: false, deadline: None }) => {
                let deadline = Some(machine.after(UNBALLOON_TIMEOUT));
                Unballooning { all_sent: false, deadline }
            }
            (Input::TargetSet, &HotAdding(offer)) if offer.is_overdue() => {
                self.offered_in_vain(machine, offer)
            }

            (Input::Sent, &Ballooning(asked)) => Ballooning(asked.sent(machine)),
            (Input::Sent, &Unballooning { all_sent, .. }) => {
                Unballooning { all_sent, deadline: Some(machine.after(UNBALLOON_TIMEOUT)) }
            }
            (Input::Sent, &HotAdding(offer)) => HotAdding(offer.sent(machine)),

            (Input::Due, &Settling { .. }) => self.become_ready(machine),
            (Input::Due, &Pausing { short_answers, .. }) => self.ask_again(machine, short_answers),
            (Input::Due, &Ballooning(asked)) => Self::balloon_overdue(machine, asked),
            (Input::Due, &Unballooning { all_sent, .. }) => {
                Self::unballoon_overdue(machine, all_sent)
            }
            (Input::Due, &HotAdding(offer)) => Self::hot_add_overdue(machine, offer),

            (Input::Prepared { job, ok }, &Preparing(at)) if at.job == job => {
                self.made_ready(machine, at.what, ok)
            }

            (Input::Gave(response), &Ballooning(asked)) => self.answered(machine, asked, response),
            (Input::Gave(response), &same) => self.gave_unasked(machine, response, same),

            (Input::TookBack, &Unballooning { all_sent: true, .. }) if is_sent => {
                machine.heard();
                self.end_transaction(machine)
            }
            (Input::TookBack, &same) => {
                self.out_of_state(machine, MessageType::UNBALLOON_RESPONSE, same)
            }

            (Input::Added(response), &HotAdding(Offer { range, since: Some(since), .. })) => {
                self.took(machine, range, response, since)
            }
            (Input::Added(response), &same) => self.took_late(machine, response, same),

            (
                Input::Step | Input::TargetSet | Input::Sent | Input::Due | Input::Prepared { .. },
                _,
            ) => return,
        };
        self.activity = next;
    }

    /// Starts the session after the handshake.
    pub(crate) fn begin(
        machine: &mut Machine,
        guest_os_id: u64,
        version: Version,
        capabilities: Capabilities,
        outbox: Outbox,
    ) -> Self {
        let settle = machine.settle_time(guest_os_id);
        let confirmed_by = machine.awaits_report().then(|| machine.after(CONFIRMATION_WAIT));
        let mut session = Self {
            guest_os_id,
            version,
            capabilities,
            activity: Activity::Settling { until: machine.after(settle) },
            outbox,
            transaction_id: 0,
            status: None,
            room: Room::default(),
            late: None,
            is_proven: false,
            fresh_status: None,
            status_before: None,
            confirmed_by,
            unused: None,
            given_up: 0,
            failures: 0,
            ranges: RangeList::new(),
        };
        session.judge_capabilities(machine);
        if settle.is_zero() {
            session.take_in(machine, Input::Due);
        }
        session
    }

    /// Stops, without waiting for the settle time, a target that this guest's capabilities rule
    /// out.
    fn judge_capabilities(&self, machine: &mut Machine) {
        let Some(goal) = machine.goal else { return };
        if goal.target > machine.ledger.known() && !self.can(Capabilities::HOT_ADD) {
            machine.stop(StopReason::NoHotAddCapability);
        } else if goal.target < machine.ledger.present() && !self.can(Capabilities::BALLOON) {
            machine.stop(StopReason::NoBalloonCapability);
        }
    }

    fn become_ready(&self, machine: &mut Machine) -> Activity {
        machine.notify(Notice::Ready { version: self.version });
        Activity::Idle
    }

    /// Ends the session because the channel is gone. Memory that was offered may be in use, whether
    /// or not the guest has answered. Returns the preparation that is still running, if any.
    pub(crate) fn end(self, machine: &mut Machine) -> Option<Preparation> {
        for offer in self.offer().into_iter().chain(self.late) {
            if offer.is_told() {
                machine.keep_added(offer.range);
            } else {
                machine.removals.add(offer.range);
            }
        }
        self.preparation()
    }

    #[inline]
    pub(crate) fn on_message(&mut self, machine: &mut Machine, body: GuestBody<'_>) {
        match body {
            GuestBody::StatusReport(report) => {
                self.status = Some(report);
                self.fresh_status = Some(report);
                self.look_for_added(machine, report);
                self.look_for_use(machine, report);
                if machine.wants_status_reports() {
                    machine.notify(Notice::StatusReport(report));
                }
            }
            GuestBody::BalloonResponse(response) => self.take_in(machine, Input::Gave(response)),
            GuestBody::UnballoonResponse(_) => self.take_in(machine, Input::TookBack),
            GuestBody::HotAddResponse(response) => self.take_in(machine, Input::Added(response)),
            GuestBody::VersionRequest(_)
            | GuestBody::CapabilitiesReport(_)
            | GuestBody::HotRemoveResponse(_) => {
                machine.out_of_state(body.message_type(), self.name());
            }
        }
    }

    /// The ring took a message: the guest's time to answer starts now.
    pub(crate) fn sent(&mut self, machine: &mut Machine) {
        self.take_in(machine, Input::Sent);
        if let Some(late) = &mut self.late {
            late.since.get_or_insert(machine.now);
        }
    }

    /// Handles the end of a job other than a removal.
    pub(crate) fn job_done(&mut self, machine: &mut Machine, job: JobId, ok: bool) {
        self.take_in(machine, Input::Prepared { job, ok });
        if let Some(pages) = machine.ledger.finish_discard(job, ok)
            && !ok
        {
            machine.notify(Notice::DiscardFailed { pages });
        }
    }

    /// Handles the end of a removal. If it failed, a target that waited for it has failed too.
    pub(crate) fn removed(&self, machine: &mut Machine, ok: bool) {
        if !ok && self.activity == Activity::Idle && !machine.missing_pages().is_zero() {
            machine.stop(StopReason::HostMemory);
        }
    }

    /// The operator has set a target.
    pub(crate) fn target_set(&mut self, machine: &mut Machine) {
        self.room = Room::default();
        self.failures = 0;
        self.unused = None;
        self.take_in(machine, Input::TargetSet);
    }

    /// Ends the transaction, successful or not.
    fn end_transaction(&mut self, machine: &mut Machine) -> Activity {
        machine.retry_held();
        self.fresh_status = None;
        self.transaction_id = self.transaction_id.wrapping_add(1);
        Activity::Idle
    }

    fn out_of_state(
        &self,
        machine: &mut Machine,
        message: MessageType,
        activity: Activity,
    ) -> Activity {
        machine.out_of_state(message, activity.name());
        activity
    }

    fn can(&self, what: Capabilities) -> bool {
        self.capabilities.contains(what)
    }

    /// Whether a transaction or a preparation is under way, which may change the guest's size.
    pub(crate) const fn is_busy(&self) -> bool {
        match self.activity {
            Activity::Settling { .. } | Activity::Idle | Activity::Pausing { .. } => false,
            Activity::Ballooning(_)
            | Activity::Unballooning { .. }
            | Activity::Preparing(_)
            | Activity::HotAdding(_) => true,
        }
    }

    /// Whether nothing is under way and a transaction could begin.
    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.activity, Activity::Idle)
    }

    /// When [`Session::on_deadline`] is due.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let unused = self.unused.and_then(Unused::deadline);
        let others = [self.room.deadline(), unused, self.confirmed_by];
        self.activity.deadline().into_iter().chain(others.into_iter().flatten()).min()
    }

    /// While settling: when the first request may be sent.
    pub(crate) const fn ready_at(&self) -> Option<Duration> {
        match self.activity {
            Activity::Settling { until } => Some(until),
            Activity::Idle
            | Activity::Pausing { .. }
            | Activity::Ballooning(_)
            | Activity::Unballooning { .. }
            | Activity::Preparing(_)
            | Activity::HotAdding(_) => None,
        }
    }

    /// The running preparation.
    pub(crate) const fn preparation(&self) -> Option<Preparation> {
        match self.activity {
            Activity::Preparing(preparation) => Some(preparation),
            Activity::Settling { .. }
            | Activity::Idle
            | Activity::Pausing { .. }
            | Activity::Ballooning(_)
            | Activity::Unballooning { .. }
            | Activity::HotAdding(_) => None,
        }
    }

    /// The outstanding offer of new memory.
    const fn offer(&self) -> Option<Offer> {
        match self.activity {
            Activity::HotAdding(offer) => Some(offer),
            Activity::Settling { .. }
            | Activity::Idle
            | Activity::Pausing { .. }
            | Activity::Ballooning(_)
            | Activity::Unballooning { .. }
            | Activity::Preparing(_) => None,
        }
    }

    pub(crate) const fn name(&self) -> StateName {
        self.activity.name()
    }

    pub(crate) const fn guest_os_id(&self) -> u64 {
        self.guest_os_id
    }

    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    pub(crate) const fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// The alignment of added memory that the guest reported.
    pub(crate) const fn guest_alignment(&self) -> PageCount {
        self.capabilities.hot_add_alignment()
    }

    pub(crate) const fn status(&self) -> Option<StatusReport> {
        self.status
    }

    pub(crate) const fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(crate) const fn outbox_mut(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

impl Activity {
    const fn deadline(self) -> Option<Duration> {
        match self {
            Self::Idle | Self::Preparing(_) => None,
            Self::Settling { until } | Self::Pausing { until, .. } => Some(until),
            Self::Ballooning(asked) => asked.deadline,
            Self::Unballooning { deadline, .. } => deadline,
            Self::HotAdding(offer) => offer.deadline,
        }
    }

    const fn name(self) -> StateName {
        match self {
            Self::Settling { .. } => StateName::Settling,
            Self::Idle => StateName::Idle,
            Self::Pausing { .. } => StateName::Pausing,
            Self::Ballooning(_) => StateName::Ballooning,
            Self::Unballooning { .. } => StateName::Unballooning,
            Self::Preparing(_) => StateName::Preparing,
            Self::HotAdding(_) => StateName::HotAdding,
        }
    }
}
