//! The channels and their states.

use alloc::collections::BTreeMap;

use super::{ChannelId, Offer};
use crate::protocol::{ConnectionId, GpadlId, OpenId, Relid, VpIndex, wire};

/// Maximum number of channels of a server, including those that the guest has not released.
pub const MAX_CHANNELS: usize = 128;

/// Connection ID of the (nonexistent) channel with relid 0; the others count up from it. Any value
/// above the IDs of the message ports would do.
const FIRST_CONNECTION_ID: u32 = 0x1000;

#[derive(Debug, Default)]
pub(super) struct Channels {
    pub(super) channels: BTreeMap<ChannelId, Channel>,
    pub(super) next_id: u64,
}

#[derive(Debug)]
pub(super) struct Channel {
    pub(super) offer: Offer,
    pub(super) relid: Relid,
    pub(super) presence: Presence,
    /// Whether the guest had the channel open before, in this connection.
    pub(super) was_open: bool,
    pub(super) state: ChannelState,
}

/// The guest's view of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Unknown to the guest in this connection.
    Unannounced,
    /// Offered.
    Offered,
    /// Offered, then released by the guest.
    Released,
    /// Withdrawn; the relid stays in use until the guest releases it.
    Rescinded,
    /// Withdrawn and unknown to the guest. The channel is removed once it has closed.
    Gone,
}

/// The device's use of the channel's rings.
#[derive(Clone, Copy, Debug)]
pub(super) enum ChannelState {
    /// Nothing.
    Closed,
    /// The driver was told to open.
    Opening { rings: Rings, open_id: OpenId },
    /// In use.
    Open { rings: Rings },
    /// The driver was told to close. The guest may reopen before that is done.
    Closing { gpadl: GpadlId, reopen: Option<wire::Open> },
}

/// The guest's parameters of an open channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rings {
    pub(super) gpadl: GpadlId,
    /// Page of the GPADL at which the host-to-guest ring starts.
    pub(super) downstream_offset: u32,
    /// The VP to signal, if any.
    pub(super) target_vp: Option<VpIndex>,
}

impl Channel {
    pub(super) const fn connection_id(&self) -> ConnectionId {
        ConnectionId::new(FIRST_CONNECTION_ID | self.relid.get())
    }

    pub(super) const fn is_closed(&self) -> bool {
        matches!(self.state, ChannelState::Closed)
    }

    /// The GPADL that the device may still use.
    pub(super) const fn ring_gpadl(&self) -> Option<GpadlId> {
        match self.state {
            ChannelState::Closed => None,
            ChannelState::Opening { rings, .. } | ChannelState::Open { rings } => Some(rings.gpadl),
            ChannelState::Closing { gpadl, .. } => Some(gpadl),
        }
    }

    /// Starts closing the channel. Returns whether the driver must be told.
    pub(super) const fn close(&mut self) -> bool {
        match self.state {
            ChannelState::Closed | ChannelState::Closing { .. } => false,
            ChannelState::Opening { rings, .. } | ChannelState::Open { rings } => {
                self.state = ChannelState::Closing { gpadl: rings.gpadl, reopen: None };
                self.was_open = true;
                true
            }
        }
    }

    /// The OPEN that the driver is carrying out.
    pub(super) const fn opening(&self) -> Option<OpenId> {
        match self.state {
            ChannelState::Opening { open_id, .. } => Some(open_id),
            ChannelState::Closed | ChannelState::Open { .. } | ChannelState::Closing { .. } => None,
        }
    }

    /// Cancels a pending reopen by the guest, and returns its ID.
    pub(super) fn cancel_reopen(&mut self) -> Option<OpenId> {
        match &mut self.state {
            ChannelState::Closing { reopen, .. } => {
                reopen.take().map(|open| OpenId::new(open.open_id.get()))
            }
            ChannelState::Closed | ChannelState::Opening { .. } | ChannelState::Open { .. } => None,
        }
    }

    /// Whether the channel is the device with this identity and is not withdrawn.
    pub(super) fn is_live(&self, offer: &Offer) -> bool {
        self.offer == *offer && !matches!(self.presence, Presence::Rescinded | Presence::Gone)
    }
}

impl Channels {
    /// Adds a channel with the lowest free relid; `None` if there are too many.
    pub(super) fn add(&mut self, offer: Offer) -> Option<ChannelId> {
        if self.channels.len() >= MAX_CHANNELS {
            return None;
        }
        let relid = (Relid::MIN.get()..=Relid::MAX.get()).map(Relid::new).find(|relid| {
            let mut channels = self.channels.values();
            channels.all(|channel| channel.relid != *relid)
        })?;
        let id = ChannelId(self.next_id);
        self.next_id = self.next_id.saturating_add(1);
        let (presence, state) = (Presence::Unannounced, ChannelState::Closed);
        self.channels.insert(id, Channel { offer, relid, presence, was_open: false, state });
        Some(id)
    }

    pub(super) fn has_live(&self, offer: &Offer) -> bool {
        self.channels.values().any(|channel| channel.is_live(offer))
    }

    pub(super) fn get(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: ChannelId) -> Option<&mut Channel> {
        self.channels.get_mut(&id)
    }

    pub(super) fn remove(&mut self, id: ChannelId) {
        self.channels.remove(&id);
    }

    /// The channel that the guest knows by `relid`, even if withdrawn.
    pub(super) fn by_relid(&mut self, relid: u32) -> Option<(ChannelId, &mut Channel)> {
        self.channels.iter_mut().find_map(|(id, channel)| {
            let known = matches!(channel.presence, Presence::Offered | Presence::Rescinded);
            (known && channel.relid.get() == relid).then_some((*id, channel))
        })
    }

    /// Takes the next channel to offer to the guest. A channel that replaces a withdrawn one waits
    /// until the guest has released the old one, because Linux drops an offer of a device that it
    /// still has.
    pub(super) fn announce_next(&mut self) -> Option<&Channel> {
        let id = self.channels.iter().find_map(|(id, channel)| {
            let unknown = channel.presence == Presence::Unannounced;
            let replaced = self
                .channels
                .values()
                .any(|other| other.presence == Presence::Rescinded && other.offer == channel.offer);
            (unknown && !replaced).then_some(*id)
        })?;
        let channel = self.channels.get_mut(&id)?;
        channel.presence = Presence::Offered;
        Some(channel)
    }

    /// Resets the guest's view, starts closing open channels, and removes withdrawn ones. Calls
    /// `tell` for each channel whose driver must be told to close.
    pub(super) fn disconnect(&mut self, mut tell: impl FnMut(ChannelId)) {
        self.channels.retain(|id, channel| {
            if channel.close() {
                tell(*id);
            }
            // The guest that would wait for its result is gone.
            let _ = channel.cancel_reopen();
            channel.was_open = false;
            let withdrawn = matches!(channel.presence, Presence::Rescinded | Presence::Gone);
            channel.presence = if withdrawn { Presence::Gone } else { Presence::Unannounced };
            !(withdrawn && channel.is_closed())
        });
    }

    pub(super) fn all_closed(&self) -> bool {
        self.channels.values().all(Channel::is_closed)
    }
}
