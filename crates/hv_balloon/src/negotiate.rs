//! Open, handshake, settle, close.

use alloc::vec::Vec;

use dynmem_protocol::{
    CapabilitiesReport, CapabilitiesResponse, MessageType, VersionRequest, VersionResponse,
};

use crate::state::{Session, State};
use crate::{Action, Device, DiscardId, GuestFault, Notice};

impl Device {
    pub(crate) fn on_channel_opened(&mut self, guest_os_id: u64) {
        if self.state == State::Closed {
            self.transaction_id = 0;
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
        if !self.answer(VersionResponse { is_accepted }.emit(id)) {
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
        if !self.answer(response.emit(id)) {
            return;
        }
        let session = Session { version, capabilities: report.capabilities };
        if settle.is_zero() {
            self.become_ready(session);
        } else {
            self.state = State::Settling { session, until: self.after(settle) };
        }
    }

    pub(crate) fn become_ready(&mut self, session: Session) {
        self.state = State::Idle { session };
        self.notify(Notice::Ready { version: session.version });
    }

    /// Ends the session. A guest without a driver, or a new one, uses all RAM, so every page is its
    /// own again. A target not yet carried out is kept for the next session.
    pub(crate) fn close(&mut self) {
        let mut discards = self.books.forget();
        if let State::Closing { discards: earlier } = &mut self.state {
            discards.append(earlier);
        }
        self.outbox.clear();
        self.status = None;
        self.state = State::Closing { discards };
        self.finish_close();
    }

    pub(crate) fn on_system_reset(&mut self) {
        self.goal = None;
        self.close();
    }

    pub(crate) fn on_discarded(&mut self, id: DiscardId, ok: bool) {
        if let State::Closing { discards } = &mut self.state {
            discards.remove(&id);
            return self.finish_close();
        }
        if let Some(pages) = self.books.finish_discard(id, ok)
            && !ok
        {
            self.notify(Notice::DiscardFailed { pages });
        }
    }

    fn finish_close(&mut self) {
        if let State::Closing { discards } = &self.state
            && discards.is_empty()
        {
            self.state = State::Closed;
            self.act(Action::CloseFinished);
        }
    }

    /// Queues an answer; false where the guest asks more than it reads.
    fn answer(&mut self, message: Vec<u8>) -> bool {
        let queued = self.outbox.push(message).is_ok();
        if !queued {
            self.fault(GuestFault::Flood);
        }
        queued
    }
}
