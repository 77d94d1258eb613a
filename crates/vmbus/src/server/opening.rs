//! Opening and closing channels.

use super::{
    Action, ChannelId, Server,
    channels::{Channel, ChannelState, Presence, Rings},
    count,
};
use crate::{
    protocol::{ConnectionId, GpadlId, HostMessage, OpenId, Relid, Version, VpIndex, wire},
    ring::RingLayout,
};

/// The parameters of an open channel, as in [`Action::Open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenChannel {
    /// Guest pages of the rings.
    pub rings: RingLayout,
    /// The VP to signal, or none if the guest wants no signals.
    pub target_vp: Option<VpIndex>,
    /// The event flag by which to signal the guest.
    pub relid: Relid,
    /// The connection ID that the guest uses in HvSignalEvent.
    pub connection_id: ConnectionId,
    /// Whether the guest had the channel open before in this connection, and so with this kernel.
    pub is_reopened: bool,
}

impl Server {
    /// Reports that the driver has carried out [`Action::Open`], or could not, because the rings
    /// were not in guest memory or held impossible indices. Ignored if the channel is already
    /// closing.
    pub fn open_finished(&mut self, id: ChannelId, ok: bool) {
        let Some(channel) = self.channels.get_mut(id) else { return };
        let ChannelState::Opening { rings, open_id } = channel.state else { return };
        channel.state = if ok { ChannelState::Open { rings } } else { ChannelState::Closed };
        let relid = channel.relid.get();
        if !ok {
            count(&mut self.faults.opens_refused);
        }
        self.send_open_result(relid, open_id, ok);
    }

    /// Reports that the driver has carried out [`Action::Close`]: the device is quiet and no longer
    /// accesses its rings. Ignored if the channel was not closing.
    pub fn close_finished(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(id) else { return };
        let ChannelState::Closing { reopen, .. } = channel.state else { return };
        channel.state = ChannelState::Closed;
        while let Some(gpadl) = self.gpadls.take_torn_down(id) {
            self.send_torndown(gpadl);
        }
        if let Some(open) = reopen {
            self.on_open(&open);
        }
        self.remove_if_gone(id);
        self.finish_drain();
    }

    pub(super) fn on_open(&mut self, open: &wire::Open) {
        match self.channels.by_relid(open.relid.get()) {
            // Like Hyper-V, do not answer; the guest stops waiting when it sees the rescind.
            Some((_, channel)) if channel.presence == Presence::Rescinded => return,
            Some((_, channel)) => {
                if let ChannelState::Closing { reopen: reopen @ None, .. } = &mut channel.state {
                    *reopen = Some(*open);
                    return;
                }
            }
            None => count(&mut self.faults.unknown_channels),
        }
        match self.check_open(open) {
            Some((channel, rings)) => {
                let open_id = OpenId::new(open.open_id.get());
                if let Some(channel) = self.channels.get_mut(channel) {
                    channel.state = ChannelState::Opening { rings, open_id };
                }
                self.tell_to_open(channel);
            }
            None => {
                count(&mut self.faults.opens_refused);
                let open_id = OpenId::new(open.open_id.get());
                self.send_open_result(open.relid.get(), open_id, false);
            }
        }
    }

    fn check_open(&mut self, open: &wire::Open) -> Option<(ChannelId, Rings)> {
        let (id, channel) = self.channels.by_relid(open.relid.get())?;
        if !channel.is_closed() {
            return None;
        }
        let vp = VpIndex::new(open.target_vp.get());
        let rings = Rings {
            gpadl: GpadlId::new(open.ring_gpadl.get()),
            downstream_offset: open.downstream_offset.get(),
            target_vp: (vp != VpIndex::NONE).then_some(vp),
        };
        self.layout(id, rings).is_some().then_some((id, rings))
    }

    /// The pages of a channel's rings, if they form rings and their VP exists.
    pub(super) fn layout(&self, id: ChannelId, rings: Rings) -> Option<RingLayout> {
        let Rings { gpadl, downstream_offset, target_vp } = rings;
        if target_vp.is_some_and(|vp| vp.get() >= self.config.vp_count) {
            return None;
        }
        let pages = self.gpadls.pages(gpadl, id).filter(|pages| pages.is_plain)?;
        RingLayout::new(&pages.pages, usize::try_from(downstream_offset).ok()?).ok()
    }

    /// The parameters of an open channel. A driver needs them after [`Server::restore`]; otherwise
    /// it gets them from [`Action::Open`].
    #[must_use]
    pub fn opened(&self, id: ChannelId) -> Option<OpenChannel> {
        let channel = self.channels.get(id)?;
        let ChannelState::Open { rings } = channel.state else { return None };
        self.open_channel(id, channel, rings)
    }

    fn open_channel(&self, id: ChannelId, channel: &Channel, rings: Rings) -> Option<OpenChannel> {
        Some(OpenChannel {
            rings: self.layout(id, rings)?,
            target_vp: rings.target_vp,
            relid: channel.relid,
            connection_id: channel.connection_id(),
            is_reopened: channel.was_open,
        })
    }

    /// Tells the driver to open a channel that is opening.
    pub(super) fn tell_to_open(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get(id) else { return };
        let ChannelState::Opening { rings, .. } = channel.state else { return };
        if let Some(open) = self.open_channel(id, channel, rings) {
            let OpenChannel { rings, target_vp, relid, connection_id, is_reopened } = open;
            self.outbox.push(Action::Open {
                channel: id,
                rings,
                target_vp,
                relid,
                connection_id,
                is_reopened,
            });
        }
    }

    /// There is no answer. Guests normally close rescinded channels that are already closed.
    pub(super) fn on_close(&mut self, relid: u32) {
        let Some((id, channel)) = self.channels.by_relid(relid) else {
            return count(&mut self.faults.unknown_channels);
        };
        if channel.is_closed() && channel.presence != Presence::Rescinded {
            count(&mut self.faults.out_of_state);
        }
        let reopening = channel.cancel_reopen();
        self.fail_open(id, reopening);
        self.close_for_guest(id);
    }

    /// Closes a channel because the guest asked for it, by CLOSE or by taking the rings back.
    pub(super) fn close_for_guest(&mut self, id: ChannelId) {
        let opening = self.channels.get(id).and_then(Channel::opening);
        self.fail_open(id, opening);
        self.close(id);
    }

    /// Answers an OPEN that will not be carried out: the guest may be waiting for the result, and
    /// nothing else would end its wait. (After a rescind it does not wait.)
    fn fail_open(&mut self, id: ChannelId, unanswered: Option<OpenId>) {
        let (Some(open_id), Some(channel)) = (unanswered, self.channels.get(id)) else { return };
        if channel.presence == Presence::Offered {
            let relid = channel.relid.get();
            count(&mut self.faults.opens_refused);
            self.send_open_result(relid, open_id, false);
        }
    }

    pub(super) fn close(&mut self, channel: ChannelId) {
        if self.channels.get_mut(channel).is_some_and(|channel| channel.close()) {
            self.outbox.push(Action::Close { channel });
        }
    }

    /// From 5.3 on the guest waits for the answer; older guests expect none.
    pub(super) fn on_modify_channel(&mut self, modify: &wire::ModifyChannel) {
        let vp = VpIndex::new(modify.target_vp.get());
        let has_vp = vp.get() < self.config.vp_count;
        // A channel that was withdrawn is closing or closed.
        let channel =
            self.channels.by_relid(modify.relid.get()).and_then(|(id, channel)| match &mut channel
                .state
            {
                // A channel opened without a VP has no interrupt to move.
                ChannelState::Opening { rings, .. } | ChannelState::Open { rings } => {
                    rings.target_vp.is_some().then_some((id, rings))
                }
                ChannelState::Closed | ChannelState::Closing { .. } => None,
            });
        let status = match channel {
            Some((id, rings)) if has_vp => {
                rings.target_vp = Some(vp);
                self.outbox.set_target(id, vp);
                wire::STATUS_SUCCESS
            }
            _ => {
                count(&mut self.faults.changes_refused);
                wire::STATUS_FAILURE
            }
        };
        if self.version() >= Some(Version::V5_3) {
            self.send(HostMessage::ModifyChannelResponse(wire::ModifyChannelResponse {
                relid: modify.relid,
                status: status.into(),
            }));
        }
    }

    /// Refused: crash dumps go to storage, which is not supported.
    pub(super) fn on_open_reserved(&mut self, open: &wire::OpenReserved) {
        count(&mut self.faults.opens_refused);
        self.send_open_result(open.relid.get(), OpenId::new(0), false);
    }

    /// Answered anyway, because the guest waits.
    pub(super) fn on_close_reserved(&mut self, close: &wire::CloseReserved) {
        count(&mut self.faults.out_of_state);
        self.send(HostMessage::CloseReservedResponse(wire::CloseReservedResponse {
            relid: close.relid,
        }));
    }

    fn send_open_result(&mut self, relid: u32, open_id: OpenId, ok: bool) {
        let status = if ok { wire::STATUS_SUCCESS } else { wire::STATUS_FAILURE };
        self.send(HostMessage::OpenResult(wire::OpenResult {
            relid: relid.into(),
            open_id: open_id.get().into(),
            status: status.into(),
        }));
    }
}
