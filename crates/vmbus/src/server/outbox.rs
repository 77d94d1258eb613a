//! The queue of actions that leave the server.

use alloc::collections::VecDeque;

use super::{Action, ChannelId};
use crate::protocol::{HostMessage, VpIndex};

/// Number of waiting messages at which [`Server::handle_message`](super::Server::handle_message)
/// refuses more work. Hyper-V promises room for 16 per port; a guest that boots with many devices
/// needs slightly more. An accepted message produces at most one answer, except REQUEST_OFFERS,
/// which produces one per channel.
pub const MAX_QUEUED_MESSAGES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Actions on channels. Messages do not delay them, because a guest may never take its
    /// messages. At most an open, a new target and a close wait per channel.
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

    /// Discards the messages, here and in the driver.
    pub(super) fn drop_messages(&mut self) {
        self.messages.clear();
        self.messages.push_back(Action::DropQueuedMessages);
    }

    pub(super) fn push(&mut self, action: Action) {
        self.channel_actions.push_back(action);
    }

    /// Replaces a target that was not taken yet, so that a guest cannot fill the queue by changing
    /// it repeatedly.
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
