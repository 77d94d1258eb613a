//! Messages waiting for room in the ring.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use dynmem_protocol::{CapabilitiesReport, HotAddResponse, StatusReport, VersionRequest};

/// A message whose content does not depend on when it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Message {
    Version(VersionRequest),
    Capabilities(CapabilitiesReport),
    Status(StatusReport),
    HotAdd(HotAddResponse),
}

/// Messages with their transaction ids, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox(VecDeque<(u32, Message)>);

impl Outbox {
    pub(super) fn push(&mut self, id: u32, message: Message) {
        self.0.push_back((id, message));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Writes the oldest message to `out`; false if there is none.
    pub(super) fn pop_into(&mut self, out: &mut Vec<u8>) -> bool {
        let Some((id, message)) = self.0.pop_front() else { return false };
        match message {
            Message::Version(request) => request.emit_into(id, out),
            Message::Capabilities(report) => report.emit_into(id, out),
            Message::Status(report) => report.emit_into(id, out),
            Message::HotAdd(response) => response.emit_into(id, out),
        }
        true
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}
