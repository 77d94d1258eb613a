//! Messages of the bus on their way to the guest: a queue and one slot (TLFS 11.8).

use std::collections::VecDeque;

use vmbus::protocol::Message;

/// The most messages that may wait for a VP, as in `kvm_hyperv::synic`.
const MAX_QUEUED: usize = 64;

/// The SynIC of the only VP.
#[derive(Debug, Default)]
pub(crate) struct Synic {
    queue: VecDeque<Message>,
    /// The message slot, which the guest reads.
    slot: Option<Message>,
}

impl Synic {
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUED
    }

    pub(crate) fn post(&mut self, message: Message) {
        self.queue.push_back(message);
        assert!(self.queue.len() <= MAX_QUEUED, "too many messages wait for the guest");
    }

    /// Drops the queued messages; the one in the slot already belongs to the guest.
    pub(crate) fn drop_queued(&mut self) {
        self.queue.clear();
    }

    /// A kernel enables its message page.
    pub(crate) fn enable(&mut self) {
        self.queue.clear();
        self.slot = None;
    }

    /// Whether the guest has a message to take, now or once the slot is filled.
    pub(crate) fn has_message(&self) -> bool {
        self.slot.is_some() || !self.queue.is_empty()
    }

    /// Fills the slot if it is free, as the vCPU's thread does before it enters the guest.
    pub(crate) fn deliver(&mut self) {
        if self.slot.is_none() {
            self.slot = self.queue.pop_front();
        }
    }

    /// The guest takes its message.
    pub(crate) fn take(&mut self) -> Option<Message> {
        self.deliver();
        self.slot.take()
    }
}
