//! Builds the server from its saved form, which comes from a file and may contain anything.

use alloc::vec::Vec;

use page_range::Gpfn;
use zerocopy::FromBytes;

use super::form::{self, Queued};
use super::{MAX_CHANNELS, MAX_GPADLS, MAX_MESSAGES};
use crate::protocol::{GpadlId, Guid, HostMessage, OpenId, Relid, Version, VpIndex, wire};
use crate::saved::{RestoreError, Result, ensure};
use crate::server::channels::{Channel, ChannelState, Presence, Rings};
use crate::server::connection::{Connection, Next};
use crate::server::gpadl::{Assembly, GpadlPages};
use crate::server::gpadl_table::{Gpadl, GpadlState};
use crate::server::{Action, ChannelId, MAX_GPADL_PAGES, Offer, Server, ServerConfig};

pub(super) fn server(form: &form::Server, config: ServerConfig) -> Result<Server> {
    let mut server = Server::new(config);
    server.connection = connection(form.connection, &config)?;
    server.faults = form.faults;
    ensure(form.channels.len() <= MAX_CHANNELS, "too many channels")?;
    // IDs are never reused, so enough of them must be left.
    ensure(form.next_channel <= u64::MAX / 2, "more channels than any server has had")?;
    server.channels.next_id = form.next_channel;
    for channel in &form.channels {
        add_channel(&mut server, channel)?;
    }
    ensure(form.gpadls.len() <= MAX_GPADLS, "too many GPADLs")?;
    for gpadl in &form.gpadls {
        add_gpadl(&mut server, gpadl)?;
    }
    check(&server)?;
    ensure(form.messages.len() <= MAX_MESSAGES, "too many messages")?;
    for queued in &form.messages {
        server.outbox.messages.push_back(message(queued, &config)?);
    }
    tell_again(&mut server);
    Ok(server)
}

/// Repeats the driver's unfinished actions.
fn tell_again(server: &mut Server) {
    let ids: Vec<ChannelId> = server.channels.channels.keys().copied().collect();
    for channel in ids {
        match server.channels.get(channel).map(|channel| &channel.state) {
            Some(ChannelState::Opening { .. }) => server.tell_to_open(channel),
            Some(ChannelState::Closing { .. }) => server.outbox.push(Action::Close { channel }),
            _ => {}
        }
    }
}

/// Checks the consistency of the parts with each other.
fn check(server: &Server) -> Result<()> {
    let is_connected = matches!(server.connection, Connection::Connected { .. });
    ensure(is_connected || server.gpadls.gpadls.is_empty(), "GPADLs without a connection")?;
    let is_draining = matches!(server.connection, Connection::Draining(_));
    let all_closed = server.channels.all_closed();
    ensure(!is_draining || !all_closed, "a connection that waits for nothing")?;
    ensure(is_draining || is_connected || all_closed, "a channel that is open to nobody")?;
    for (&id, channel) in &server.channels.channels {
        let may_be = match (channel.presence, &channel.state) {
            (
                Presence::Offered,
                ChannelState::Opening { rings, .. } | ChannelState::Open { rings },
            ) => {
                let are_rings = server.layout(id, *rings).is_some();
                ensure(are_rings, "an open channel without rings, or with a VP that there is not")?;
                is_connected
            }
            (Presence::Offered | Presence::Rescinded, ChannelState::Closing { .. })
            | (
                Presence::Offered | Presence::Released | Presence::Rescinded,
                ChannelState::Closed,
            ) => is_connected,
            (Presence::Unannounced, ChannelState::Closing { .. }) => is_draining,
            (Presence::Unannounced, ChannelState::Closed)
            | (Presence::Gone, ChannelState::Closing { .. }) => true,
            _ => false,
        };
        ensure(may_be, "a channel that is open to a guest that does not know it")?;
    }
    Ok(())
}

fn connection(form: form::Connection, config: &ServerConfig) -> Result<Connection> {
    Ok(match form {
        form::Connection::Disconnected => Connection::Disconnected,
        form::Connection::Draining(next) => Connection::Draining(match next {
            form::Next::Nothing => Next::Nothing,
            form::Next::UnloadResponse { vp: of } => Next::UnloadResponse { vp: vp(of, config)? },
            form::Next::Accept { vp: of, version: number } => {
                Next::Accept { vp: vp(of, config)?, version: version(number, config)? }
            }
            form::Next::Refuse { vp: of } => Next::Refuse { vp: vp(of, config)? },
        }),
        form::Connection::Connected { version: number, vp: of, wants_offers } => {
            let (version, vp) = (version(number, config)?, vp(of, config)?);
            Connection::Connected { version, vp, wants_offers }
        }
    })
}

fn vp(number: u32, config: &ServerConfig) -> Result<VpIndex> {
    ensure(number < config.vp_count, "a VP that there is not")?;
    Ok(VpIndex::new(number))
}

fn version(number: u32, config: &ServerConfig) -> Result<Version> {
    let version = Version::from_wire(number);
    ensure(version.is_known() && version <= config.max_version, "a version that is not spoken")?;
    Ok(version)
}

fn add_channel(server: &mut Server, form: &form::Channel) -> Result<()> {
    let offer = Offer {
        interface: Guid::from_digits(form.interface),
        instance: Guid::from_digits(form.instance),
    };
    let channel = Channel {
        offer,
        relid: Relid::new(form.relid),
        presence: match form.presence {
            form::Presence::Unannounced => Presence::Unannounced,
            form::Presence::Offered => Presence::Offered,
            form::Presence::Released => Presence::Released,
            form::Presence::Rescinded => Presence::Rescinded,
            form::Presence::Gone => Presence::Gone,
        },
        was_open: form.was_open,
        state: channel_state(&form.state)?,
    };
    let is_live = channel.is_live(&offer);
    ensure(!is_live || !server.channels.has_live(&offer), "a device with two channels")?;
    let mut others = server.channels.channels.values();
    let is_relid = (Relid::MIN..=Relid::MAX).contains(&channel.relid);
    let is_free = others.all(|other| other.relid != channel.relid);
    ensure(is_relid && is_free, "a relid that is none, or two channels with one")?;
    ensure(form.id < server.channels.next_id, "a channel from the future")?;
    let before = server.channels.channels.insert(ChannelId(form.id), channel);
    ensure(before.is_none(), "two channels of one name")
}

fn channel_state(form: &form::ChannelState) -> Result<ChannelState> {
    Ok(match form {
        form::ChannelState::Closed => ChannelState::Closed,
        form::ChannelState::Opening { rings: of, open_id } => {
            ChannelState::Opening { rings: rings(*of), open_id: OpenId::new(*open_id) }
        }
        form::ChannelState::Open { rings: of } => ChannelState::Open { rings: rings(*of) },
        form::ChannelState::Closing { gpadl, reopen } => {
            let reopen = reopen.as_ref().map(|open| wire::Open::read_from_bytes(open));
            let Ok(reopen) = reopen.transpose() else {
                return Err(RestoreError::Impossible { reason: "a message of the wrong length" });
            };
            ChannelState::Closing { gpadl: GpadlId::new(*gpadl), reopen }
        }
    })
}

/// The VP is checked with the rings.
fn rings(form: form::Rings) -> Rings {
    Rings {
        gpadl: GpadlId::new(form.gpadl),
        downstream_offset: form.downstream_offset,
        target_vp: form.target_vp.map(VpIndex::new),
    }
}

fn add_gpadl(server: &mut Server, form: &form::Gpadl) -> Result<()> {
    let channel = ChannelId(form.channel);
    let owner = server.channels.get(channel);
    let owner = owner.ok_or(RestoreError::Impossible { reason: "a GPADL of no channel" })?;
    let (relid, ring_gpadl) = (owner.relid, owner.ring_gpadl());
    let id = GpadlId::new(form.id);
    let words = usize::try_from(form.words).unwrap_or(usize::MAX);
    let state = gpadl_state(&form.state, words, server.config.page_limit)?;
    let is_closing = matches!(owner.state, ChannelState::Closing { .. });
    let may_be = !matches!(state, GpadlState::TearingDown) || is_closing && ring_gpadl == Some(id);
    ensure(may_be, "a GPADL whose end waits for nothing")?;
    let table = &mut server.gpadls;
    table.words = table.words.saturating_add(words);
    ensure(table.words <= MAX_GPADL_PAGES, "GPADLs of too many pages")?;
    let before = table.gpadls.insert(id, Gpadl { channel, relid, words, state });
    ensure(before.is_none(), "two GPADLs of one name")
}

fn gpadl_state(form: &form::GpadlState, wanted: usize, limit: Gpfn) -> Result<GpadlState> {
    Ok(match form {
        form::GpadlState::Assembling { ranges, words } => {
            let list = Assembly::restore(*ranges, wanted, words.clone());
            let reason = "a range list that is none, or complete";
            GpadlState::Assembling(list.ok_or(RestoreError::Impossible { reason })?)
        }
        form::GpadlState::Ready { pages, is_plain } => {
            ensure(pages.len() < wanted, "a GPADL with more pages than words")?;
            let pages = pages.iter().map(|page| Gpfn::new(*page).filter(|page| *page < limit));
            let pages: Option<Vec<Gpfn>> = pages.collect();
            let reason = "a page that there is not";
            let pages = pages.ok_or(RestoreError::Impossible { reason })?;
            GpadlState::Ready(GpadlPages { pages, is_plain: *is_plain })
        }
        form::GpadlState::TearingDown => GpadlState::TearingDown,
    })
}

fn message(form: &Queued, config: &ServerConfig) -> Result<Action> {
    let Queued::Send { vp: of, message } = form else { return Ok(Action::DropQueuedMessages) };
    match HostMessage::parse(message, Version::V5_3) {
        Ok((message, [])) => Ok(Action::Send { vp: vp(*of, config)?, message: message.emit() }),
        _ => Err(RestoreError::Impossible { reason: "a message that is none of the host's" }),
    }
}
