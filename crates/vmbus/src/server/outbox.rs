//! What waits to leave the server.

use alloc::collections::VecDeque;

use super::{Action, ChannelId};
use crate::protocol::{HostMessage, VpIndex};

/// Messages that may wait before [`Server::handle_message`](super::Server::handle_message) refuses
/// more work. Hyper-V promises room for 16 per port; a guest that boots with many devices has a few
/// more under way. One accepted message makes at most one answer, REQUEST_OFFERS one per channel.
pub const MAX_QUEUED_MESSAGES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// About channels. Messages do not hold them up, since a guest may never take its messages.
    /// At most an open, a new target and a close wait per channel.
    channel_actions: VecDeque<Action>,
    pub(super) messages: VecDeque<Action>,
}

impl Outbox {
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= MAX_QUEUED_MESSAGES
    }

    pub(super) fn send(&mut self, vp: VpIndex, message: HostMessage) {
        self.messages.push_back(Action::Send { vp, message: message.emit() });
    }

    /// Forgets the messages, here and at the driver.
    pub(super) fn drop_messages(&mut self) {
        self.messages.clear();
        self.messages.push_back(Action::DropQueuedMessages);
    }

    pub(super) fn push(&mut self, action: Action) {
        self.channel_actions.push_back(action);
    }

    /// Replaces a target that was not taken yet, so that a guest which changes it all the time does
    /// not fill the queue.
    pub(super) fn set_target(&mut self, channel: ChannelId, target_vp: VpIndex) {
        self.channel_actions.retain(|action| {
            !matches!(action, Action::SetTargetVp { channel: other, .. } if *other == channel)
        });
        self.push(Action::SetTargetVp { channel, target_vp });
    }

    pub(super) fn next_channel_action(&mut self) -> Option<Action> {
        self.channel_actions.pop_front()
    }

    pub(super) fn next(&mut self) -> Option<Action> {
        self.channel_actions.pop_front().or_else(|| self.messages.pop_front())
    }
}
