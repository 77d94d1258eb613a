//! The handshake: the guest requests a version, then reports its capabilities.

use alloc::vec::Vec;

use dynmem_protocol::{
    CapabilitiesReport, CapabilitiesResponse, MessageType, Version, VersionRequest, VersionResponse,
};

use crate::link::Link;
use crate::machine::Machine;
use crate::outbox::Outbox;
use crate::session::Session;
use crate::{GuestFault, Notice, StateName};

/// An open channel whose guest has not reported its capabilities.
#[derive(Debug)]
pub(crate) struct Handshake {
    guest_os_id: u64,
    outbox: Outbox,
    /// The version, once accepted.
    version: Option<Version>,
}

impl Handshake {
    pub(crate) fn new(guest_os_id: u64) -> Self {
        Self::restore(guest_os_id, Outbox::default(), None)
    }

    pub(crate) const fn restore(
        guest_os_id: u64,
        outbox: Outbox,
        version: Option<Version>,
    ) -> Self {
        Self { guest_os_id, outbox, version }
    }

    /// Accepts the first known version that the guest requests; guests start with their highest.
    pub(crate) fn on_version_request(
        &mut self,
        machine: &mut Machine,
        id: u32,
        request: VersionRequest,
    ) {
        if self.version.is_some() {
            return machine.out_of_state(MessageType::VERSION_REQUEST, self.name());
        }
        let version = request.version;
        let is_accepted = version.is_known();
        if !self.answer(machine, |out| VersionResponse { is_accepted }.emit_into(id, out)) {
            return;
        }
        if is_accepted {
            self.version = Some(version);
        } else {
            let was_last_attempt = request.is_last_attempt;
            machine.notify(Notice::VersionRefused { version, was_last_attempt });
        }
    }

    /// Accepts the guest's capabilities, whatever they are.
    pub(crate) fn agree(
        mut self,
        machine: &mut Machine,
        id: u32,
        report: CapabilitiesReport,
    ) -> Link {
        let Some(version) = self.version else {
            machine.out_of_state(MessageType::CAPABILITIES_REPORT, self.name());
            return Link::Handshake(self);
        };
        let response = CapabilitiesResponse {
            is_accepted: true,
            hot_remove: false,
            suppress_pressure_reports: !machine.wants_status_reports() && !machine.needs_report(),
        };
        if !self.answer(machine, |out| response.emit_into(id, out)) {
            return Link::Handshake(self);
        }
        let Self { guest_os_id, outbox, .. } = self;
        let capabilities = report.capabilities;
        Link::Ready(Session::begin(machine, guest_os_id, version, capabilities, outbox))
    }

    /// Queues an answer; returns false if the guest leaves too many unread.
    fn answer(&mut self, machine: &mut Machine, emit: impl FnOnce(&mut Vec<u8>)) -> bool {
        let queued = self.outbox.push(emit).is_ok();
        if !queued {
            machine.fault(GuestFault::Flood);
        }
        queued
    }

    pub(crate) const fn name(&self) -> StateName {
        match self.version {
            None => StateName::AwaitVersion,
            Some(_) => StateName::AwaitCaps,
        }
    }

    pub(crate) const fn guest_os_id(&self) -> u64 {
        self.guest_os_id
    }

    pub(crate) const fn version(&self) -> Option<Version> {
        self.version
    }

    pub(crate) const fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    pub(crate) const fn outbox_mut(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}
