//! Open, handshake, settle, close.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use dynmem_protocol::{
    Capabilities, CapabilitiesReport, CapabilitiesResponse, MessageType, VersionRequest,
    VersionResponse,
};
use page_range::{PageCount, PageRange, PageRangeSet};

use crate::action::Prepare;
use crate::region::Region;
use crate::state::{Preparation, Prepared, Session, State};
use crate::target::{Goal, Pursuit, Refusal};
use crate::{Action, Device, GuestFault, JobId, Notice, StopReason};

/// What a session leaves behind.
struct Leavings {
    /// Discards that run, each of so many pages.
    discards: BTreeMap<JobId, PageCount>,
    /// A preparation that runs.
    preparation: Option<Preparation>,
    /// Pages that the next guest must not touch as they are.
    absent: PageRangeSet,
}

impl Device {
    pub(crate) fn on_channel_opened(&mut self, guest_os_id: u64) {
        if self.state == State::Closed {
            self.transaction_id = 0;
            self.guest_os_id = Some(guest_os_id);
            self.state = State::AwaitVersion { settle: self.settle.time(guest_os_id) };
        }
    }

    /// Takes one of the known versions, whichever the guest names first; it starts with its highest.
    pub(crate) fn on_version_request(&mut self, id: u32, request: VersionRequest) {
        let State::AwaitVersion { settle } = self.state else {
            return self.out_of_state(MessageType::VERSION_REQUEST);
        };
        let version = request.version;
        let is_accepted = version.is_known();
        if !self.answer(|out| VersionResponse { is_accepted }.emit_into(id, out)) {
            return;
        }
        if is_accepted {
            self.state = State::AwaitCaps { settle, version };
        } else {
            let was_last_attempt = request.is_last_attempt;
            self.notify(Notice::VersionRefused { version, was_last_attempt });
        }
    }

    pub(crate) fn on_capabilities_report(&mut self, id: u32, report: CapabilitiesReport) {
        let State::AwaitCaps { settle, version } = self.state else {
            return self.out_of_state(MessageType::CAPABILITIES_REPORT);
        };
        let response = CapabilitiesResponse {
            is_accepted: true,
            hot_remove: false,
            suppress_pressure_reports: !self.status_reports,
        };
        if !self.answer(|out| response.emit_into(id, out)) {
            return;
        }
        let session = Session { version, capabilities: report.capabilities };
        self.judge_capabilities(session);
        if settle.is_zero() {
            self.become_ready(session);
        } else {
            self.state = State::Settling { session, until: self.after(settle) };
        }
    }

    /// Says at once what the settle time would only delay: that a target set before is out of this
    /// guest's reach.
    fn judge_capabilities(&mut self, session: Session) {
        let Some(goal) = self.goal else { return };
        let cannot = |needed| !session.capabilities.contains(needed);
        if goal.target > self.books.assigned() && cannot(Capabilities::HOT_ADD) {
            self.stop(StopReason::NoHotAddCapability);
        } else if goal.target < self.books.present() && cannot(Capabilities::BALLOON) {
            self.stop(StopReason::NoBalloonCapability);
        }
    }

    pub(crate) fn become_ready(&mut self, session: Session) {
        self.state = State::Idle { session };
        self.notify(Notice::Ready { version: session.version });
    }

    /// Ends the session. A guest without a driver, or a new one, uses all RAM, so every page is its
    /// own again; memory added stays (Windows uses it on, and so does a kernel started by kexec). A
    /// target not yet carried out is kept for the next session; one that was is history.
    pub(crate) fn close(&mut self) {
        if let Some(Goal { target, pursuit: Pursuit::Stopping(reason) }) = self.goal {
            self.announce_end(target, reason);
        }
        let leavings = self.end_session();
        self.goal = self.goal.filter(|goal| goal.is_open());
        self.keep_what_was_offered();
        self.await_jobs(leavings);
    }

    /// As [`Device::close`], but memory added goes and so does the target.
    pub(crate) fn on_system_reset(&mut self) {
        match self.goal.take() {
            Some(Goal { target, pursuit: Pursuit::Open }) => {
                self.announce_end(target, StopReason::Reset);
            }
            Some(Goal { target, pursuit: Pursuit::Stopping(reason) }) => {
                self.announce_end(target, reason);
            }
            _ => {}
        }
        let Leavings { discards, mut preparation, .. } = self.end_session();
        self.books.restart(self.boot_ram.clone());
        // What is being prepared lies in the region, all of which goes.
        if let Some(preparation) = &mut preparation {
            preparation.what = Prepared::Returned;
        }
        self.removals.waiting.clear();
        self.removals.waiting.extend(self.region.as_mut().and_then(Region::reset));
        self.await_jobs(Leavings { discards, preparation, absent: PageRangeSet::new() });
    }

    /// Says what became of a target that nothing will be done for any more, with the size that there
    /// is: what is still being discarded goes back to the guest.
    fn announce_end(&mut self, target: PageCount, reason: StopReason) {
        let actual = self.books.actual();
        if actual == target {
            self.notify(Notice::TargetReached { actual });
        } else {
            self.last_refusal = Some((target, Refusal::Stopped(reason)));
            self.notify(Notice::StoppedShort { target, actual, reason });
        }
    }

    /// Forgets what the guest gave; says what runs on.
    fn end_session(&mut self) -> Leavings {
        let (mut discards, mut absent) = self.books.forget();
        let preparation = match &mut self.state {
            State::Closing { discards: earlier, preparation, absent: of_earlier } => {
                discards.append(earlier);
                absent.insert_set(of_earlier);
                preparation.take()
            }
            State::Preparing { preparation, .. } => Some(*preparation),
            _ => None,
        };
        Leavings { discards, preparation, absent }
    }

    /// Memory the guest was told of may be in use, whether or not it said so.
    fn keep_what_was_offered(&mut self) {
        match self.state {
            State::HotAdding { range, since: None, .. } => {
                self.removals.waiting.insert(range);
            }
            State::HotAdding { range, since: Some(_), .. } => self.keep_added(range),
            _ => {}
        }
        match self.region.as_mut().and_then(|region| region.unanswered.take()) {
            Some(late) if late.is_told => self.keep_added(late.range),
            Some(late) => {
                self.removals.waiting.insert(late.range);
            }
            None => {}
        }
        if let Some(region) = &mut self.region {
            region.is_proven = false;
        }
    }

    fn await_jobs(&mut self, Leavings { discards, preparation, absent }: Leavings) {
        self.removals.retry();
        self.outbox.clear();
        self.status = None;
        self.guest_os_id = None;
        self.state = State::Closing { discards, preparation, absent };
        self.finish_close();
    }

    /// Ends a close for which nothing is in flight any more.
    pub(crate) fn finish_close(&mut self) {
        let State::Closing { discards, preparation: None, .. } = &self.state else { return };
        if !discards.is_empty() || self.removals.is_busy() || self.begin_removals() {
            return;
        }
        let State::Closing { preparation, absent, .. } = &mut self.state else { return };
        if !absent.is_empty() {
            let ranges: Vec<PageRange> = absent.iter().collect();
            let job = self.jobs.next();
            *preparation = Some(Preparation { job, what: Prepared::Absent });
            return self.act(Action::Prepare { id: job, what: Prepare::Return(ranges) });
        }
        self.state = State::Closed;
        // A stale one would be mistaken for the next close's.
        self.actions.retain(|action| *action != Action::CloseFinished);
        self.act(Action::CloseFinished);
    }

    /// Queues an answer; false where the guest asks more than it reads.
    fn answer(&mut self, emit: impl FnOnce(&mut Vec<u8>)) -> bool {
        let queued = self.outbox.push(emit).is_ok();
        if !queued {
            self.fault(GuestFault::Flood);
        }
        queued
    }
}
