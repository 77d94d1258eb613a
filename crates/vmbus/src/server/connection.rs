//! The connection: contact, offers and unload.

use core::mem::replace;

use super::{Action, Channel, Server, count};
use crate::protocol::{ConnectionId, HostMessage, Version, VpIndex, wire};

/// The SINT for all messages and signals.
const SINT: u8 = 2;

#[derive(Clone, Copy, Debug)]
pub(super) enum Connection {
    /// No guest is connected.
    Disconnected,
    /// The last connection is over; its channels are closing.
    Draining(Next),
    /// A guest is connected.
    Connected {
        version: Version,
        /// The VP that takes the messages.
        vp: VpIndex,
        /// Whether offers are sent as they are made.
        wants_offers: bool,
    },
}

/// What to do when all channels have closed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Next {
    /// Nothing: the machine was reset.
    Nothing,
    /// The answer to UNLOAD.
    UnloadResponse { vp: VpIndex },
    /// The answer to INITIATE_CONTACT: yes, with a version.
    Accept { vp: VpIndex, version: Version },
    /// The answer to INITIATE_CONTACT: no.
    Refuse { vp: VpIndex },
}

impl Server {
    /// Forgets the guest, because the machine restarts. An [`Action::Close`] follows for each open
    /// channel, and no later guest is answered before they are closed.
    pub fn reset(&mut self) {
        self.disconnect(Next::Nothing);
    }

    pub(super) fn has_port(&self, id: ConnectionId) -> bool {
        id == ConnectionId::MESSAGE
            || id == ConnectionId::CONTACT_V5 && self.config.max_version >= Version::V5_0
    }

    /// A contact at any time ends the previous connection, because firmware and kdump kernels leave
    /// without unloading. A contact before the last one was answered replaces it.
    ///
    /// Only [`ConnectionId::CONTACT_V5`] gives the SINT and the VTL a meaning: firmware posts its
    /// newest version to the old port with other data in their place. A contact for a SINT or VTL
    /// that nobody serves is not addressed to this server, and leaves a live connection alone.
    pub(super) fn on_contact(&mut self, port: ConnectionId, contact: &wire::InitiateContact) {
        let version = Version::from_wire(contact.version.get());
        let asked_vp = if version >= Version::V3_0 { contact.target_vp.get() } else { 0 };
        let has_vp = asked_vp < self.config.vp_count;
        let vp = VpIndex::new(if has_vp { asked_vp } else { 0 });
        let is_named = port == ConnectionId::CONTACT_V5;
        let has_sint = !is_named || version < Version::V5_0 || contact.target_sint == SINT;
        let has_vtl = !is_named || version < Version::V5_1 || contact.target_vtl == 0;
        let is_for_us = has_sint && has_vtl;
        if !is_for_us && !matches!(self.connection, Connection::Disconnected) {
            return count(&mut self.faults.contacts_refused);
        }
        let speaks = version.is_known() && version <= self.config.max_version;
        // No offer has a monitor, so the pages are never read; but there are two of them or none.
        let (there, back) = (contact.parent_to_child_monitor, contact.child_to_parent_monitor);
        let has_both_or_none = (there.get() == 0) == (back.get() == 0);
        let next = if speaks && has_vp && is_for_us && has_both_or_none {
            Next::Accept { vp, version }
        } else {
            count(&mut self.faults.contacts_refused);
            Next::Refuse { vp }
        };
        self.disconnect(next);
    }

    pub(super) fn on_unload(&mut self) {
        match self.connection {
            // A crashing kernel does not know whether its contact would have been accepted, and
            // waits for the answer to UNLOAD.
            Connection::Connected { vp, .. }
            | Connection::Draining(
                Next::UnloadResponse { vp } | Next::Accept { vp, .. } | Next::Refuse { vp },
            ) => self.disconnect(Next::UnloadResponse { vp }),
            Connection::Disconnected | Connection::Draining(Next::Nothing) => {
                count(&mut self.faults.out_of_state);
            }
        }
    }

    /// Linux posts this once per connection; a repeated request gets only new offers.
    pub(super) fn on_request_offers(&mut self) {
        if let Connection::Connected { wants_offers, .. } = &mut self.connection
            && replace(wants_offers, true)
        {
            count(&mut self.faults.out_of_state);
        }
        self.announce();
        self.send(HostMessage::AllOffersDelivered);
    }

    /// Offers all channels that the guest does not know of, if it wants offers.
    pub(super) fn announce(&mut self) {
        let Connection::Connected { wants_offers: true, vp, .. } = self.connection else { return };
        while let Some(channel) = self.channels.announce_next() {
            self.outbox.send(vp, HostMessage::Offer(offer(channel)));
        }
    }

    /// Continues if a connection is ending and all its channels have closed.
    pub(super) fn finish_drain(&mut self) {
        let Connection::Draining(next) = self.connection else { return };
        if !self.channels.all_closed() {
            return;
        }
        self.connection = Connection::Disconnected;
        match next {
            Next::Nothing => {}
            Next::UnloadResponse { vp } => self.outbox.send(vp, HostMessage::UnloadResponse),
            Next::Refuse { vp } => self.outbox.send(vp, refusal()),
            Next::Accept { vp, version } => {
                self.outbox.send(vp, acceptance(version));
                self.connection = Connection::Connected { version, vp, wants_offers: false };
            }
        }
    }

    /// Ends the connection, whatever it is doing, and does `next` when all channels have closed.
    fn disconnect(&mut self, next: Next) {
        self.outbox.drop_messages();
        self.gpadls.clear();
        let outbox = &mut self.outbox;
        self.channels.disconnect(|channel| outbox.push(Action::Close { channel }));
        self.connection = Connection::Draining(next);
        self.finish_drain();
    }
}

/// Monitors are never allocated: a guest with a monitor would write to its page instead of
/// signalling.
fn offer(channel: &Channel) -> wire::Offer {
    wire::Offer {
        interface: channel.offer.interface,
        instance: channel.offer.instance,
        reserved: [0; 16],
        flags: 0.into(),
        mmio_megabytes: 0.into(),
        user_defined: [0; 120],
        subchannel_index: 0.into(),
        optional_mmio_megabytes: 0.into(),
        relid: channel.relid.get().into(),
        monitor_id: wire::NO_MONITOR,
        monitor_allocated: 0,
        interrupt_flags: wire::DEDICATED_INTERRUPT.into(),
        connection_id: channel.connection_id().get().into(),
    }
}

fn acceptance(version: Version) -> HostMessage {
    let named = version >= Version::V5_0;
    // Before 5.0 Hyper-V repeats the version in this place.
    version_response(1, if named { ConnectionId::MESSAGE.get() } else { version.to_wire() })
}

fn refusal() -> HostMessage {
    version_response(0, 0)
}

fn version_response(supported: u8, connection_id: u32) -> HostMessage {
    HostMessage::VersionResponse(wire::VersionResponse {
        supported,
        connection_state: 0,
        reserved: 0.into(),
        connection_id: connection_id.into(),
    })
}
