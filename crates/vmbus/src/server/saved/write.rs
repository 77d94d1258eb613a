//! Writes the server's saved form.

use zerocopy::IntoBytes;

use super::form::{self, Queued};
use crate::protocol::VpIndex;
use crate::server::channels::{Channel, ChannelState, Presence, Rings};
use crate::server::connection::{Connection, Next};
use crate::server::gpadl_table::{Gpadl, GpadlState};
use crate::server::{Action, ChannelId, Server};

pub(super) fn server(server: &Server) -> form::Server {
    let channels = server.channels.channels.iter();
    let gpadls = server.gpadls.gpadls.iter();
    form::Server {
        connection: connection(server.connection),
        channels: channels.map(|(id, of)| channel(*id, of)).collect(),
        next_channel: server.channels.next_id,
        gpadls: gpadls.map(|(id, of)| gpadl(id.get(), of)).collect(),
        messages: server.outbox.messages.iter().filter_map(queued).collect(),
        faults: server.faults,
    }
}

const fn connection(connection: Connection) -> form::Connection {
    match connection {
        Connection::Disconnected => form::Connection::Disconnected,
        Connection::Draining(next) => form::Connection::Draining(match next {
            Next::Nothing => form::Next::Nothing,
            Next::UnloadResponse { vp } => form::Next::UnloadResponse { vp: vp.get() },
            Next::Accept { vp, version } => {
                form::Next::Accept { vp: vp.get(), version: version.to_wire() }
            }
            Next::Refuse { vp } => form::Next::Refuse { vp: vp.get() },
        }),
        Connection::Connected { version, vp, wants_offers } => {
            form::Connection::Connected { version: version.to_wire(), vp: vp.get(), wants_offers }
        }
    }
}

fn channel(id: ChannelId, channel: &Channel) -> form::Channel {
    form::Channel {
        id: id.0,
        interface: channel.offer.interface.digits(),
        instance: channel.offer.instance.digits(),
        relid: channel.relid.get(),
        presence: match channel.presence {
            Presence::Unannounced => form::Presence::Unannounced,
            Presence::Offered => form::Presence::Offered,
            Presence::Released => form::Presence::Released,
            Presence::Rescinded => form::Presence::Rescinded,
            Presence::Gone => form::Presence::Gone,
        },
        was_open: channel.was_open,
        state: match &channel.state {
            ChannelState::Closed => form::ChannelState::Closed,
            ChannelState::Opening { rings: of, open_id } => {
                form::ChannelState::Opening { rings: rings(*of), open_id: open_id.get() }
            }
            ChannelState::Open { rings: of } => form::ChannelState::Open { rings: rings(*of) },
            ChannelState::Closing { gpadl, reopen } => form::ChannelState::Closing {
                gpadl: gpadl.get(),
                reopen: reopen.as_ref().map(|open| open.as_bytes().to_vec()),
            },
        },
    }
}

fn rings(rings: Rings) -> form::Rings {
    form::Rings {
        gpadl: rings.gpadl.get(),
        downstream_offset: rings.downstream_offset,
        target_vp: rings.target_vp.map(VpIndex::get),
    }
}

fn gpadl(id: u32, gpadl: &Gpadl) -> form::Gpadl {
    form::Gpadl {
        id,
        channel: gpadl.channel.0,
        // At most `MAX_GPADL_PAGES`.
        words: u32::try_from(gpadl.words).unwrap_or(u32::MAX),
        state: match &gpadl.state {
            GpadlState::Assembling(list) => {
                form::GpadlState::Assembling { ranges: list.ranges, words: list.words.clone() }
            }
            GpadlState::Ready(of) => form::GpadlState::Ready {
                pages: of.pages.iter().map(|page| page.get()).collect(),
                is_plain: of.is_plain,
            },
            GpadlState::TearingDown => form::GpadlState::TearingDown,
        },
    }
}

/// Only messages and their end are among the messages.
fn queued(action: &Action) -> Option<Queued> {
    match action {
        Action::Send { vp, message } => {
            Some(Queued::Send { vp: vp.get(), message: message.as_bytes().to_vec() })
        }
        Action::DropQueuedMessages => Some(Queued::Drop),
        Action::Open { .. } | Action::Close { .. } | Action::SetTargetVp { .. } => None,
    }
}
