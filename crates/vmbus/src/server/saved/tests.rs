//! Tests that each impossible state is refused by name. The states altered are the golden files.

use std::{vec, vec::Vec};

use super::form::{self, ChannelState, Connection, GpadlState, Next, Presence, Queued};
use super::{MAX_MESSAGES, SavedServer, Version as Saved};
use crate::protocol::{HostMessage, Relid, Version};
use crate::{
    MAX_CHANNELS, MAX_GPADL_PAGES, MAX_GPADLS, RestoreError, SavedState, Server, ServerConfig,
};

macro_rules! golden {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/golden/v1/", $name, ".bin"))
    };
}

const NEW: &[u8] = golden!("new");
const OPEN: &[u8] = golden!("open");
const OPENING: &[u8] = golden!("opening");
const ASSEMBLING: &[u8] = golden!("assembling");
const CLOSING: &[u8] = golden!("closing-to-open");
const TEARING_DOWN: &[u8] = golden!("tearing-down");
const RESCINDED: &[u8] = golden!("rescinded");
const DRAINING: &[u8] = golden!("draining-to-contact");

fn config() -> ServerConfig {
    ServerConfig { vp_count: 4, ..ServerConfig::default() }
}

/// The error from restoring the altered state.
#[track_caller]
fn refused(saved: &[u8], alter: impl FnOnce(&mut form::Server), expected: &str) {
    let mut saved = SavedServer::from_bytes(saved).unwrap();
    assert!(Server::restore(config(), &saved).is_ok());
    let SavedServer(Saved::V1(form)) = &mut saved;
    alter(form);
    match Server::restore(config(), &saved) {
        Err(RestoreError::Impossible { reason }) => assert_eq!(reason, expected),
        other => panic!("{other:?} and not {expected}"),
    }
}

fn channel(id: u64) -> form::Channel {
    form::Channel {
        id,
        interface: 1,
        instance: id.into(),
        relid: u32::try_from(id).unwrap().saturating_add(1),
        presence: Presence::Unannounced,
        was_open: false,
        state: ChannelState::Closed,
    }
}

fn gpadl(id: u32, channel: u64, words: u32) -> form::Gpadl {
    form::Gpadl { id, channel, words, state: GpadlState::Ready { pages: vec![1], is_plain: true } }
}

#[test]
fn a_connection_has_a_version_and_a_vp_of_this_machine() {
    let connect = |version, vp| Connection::Connected { version, vp, wants_offers: true };
    let newest = Version::V5_3.to_wire();
    let vp = "a VP that there is not";
    refused(OPEN, |form| form.connection = connect(newest, 4), vp);
    refused(DRAINING, |form| form.connection = Connection::Draining(Next::Refuse { vp: 4 }), vp);
    let unload = Connection::Draining(Next::UnloadResponse { vp: u32::MAX });
    refused(DRAINING, |form| form.connection = unload, vp);
    let version = "a version that is not spoken";
    refused(OPEN, |form| form.connection = connect(0x6_0000, 0), version);
    let accept = Connection::Draining(Next::Accept { vp: 0, version: 1 });
    refused(DRAINING, |form| form.connection = accept, version);
}

#[test]
fn a_connection_that_ends_waits_for_channels_and_has_no_gpadls() {
    let nothing = Connection::Draining(Next::Nothing);
    refused(NEW, |form| form.connection = nothing, "a connection that waits for nothing");
    refused(OPEN, |form| form.connection = nothing, "GPADLs without a connection");
    refused(
        DRAINING,
        |form| form.connection = Connection::Disconnected,
        "a channel that is open to nobody",
    );
}

#[test]
fn channels_are_few_and_each_has_its_own_names() {
    let many = |count: usize| (0..count as u64).map(channel).collect::<Vec<_>>();
    refused(NEW, |form| form.channels = many(MAX_CHANNELS + 1), "too many channels");
    let future = "a channel from the future";
    refused(NEW, |form| form.next_channel = 0, future);
    let names = "more channels than any server has had";
    refused(NEW, |form| form.next_channel = u64::MAX / 2 + 1, names);
    let mut two = many(2);
    two[1].id = 0;
    let add = |form: &mut form::Server, channels| {
        form.next_channel = 9;
        form.channels = channels;
    };
    refused(NEW, |form| add(form, two), "two channels of one name");
    let mut twins = many(2);
    twins[1].instance = twins[0].instance;
    refused(NEW, |form| add(form, twins), "a device with two channels");
    let relids = "a relid that is none, or two channels with one";
    let mut same = many(2);
    same[1].relid = same[0].relid;
    refused(NEW, |form| add(form, same), relids);
    for relid in [0, Relid::MAX.get() + 1] {
        refused(NEW, |form| form.channels[0].relid = relid, relids);
    }
}

#[test]
fn an_open_channel_has_rings_that_are_there() {
    let rings = "an open channel without rings, or with a VP that there is not";
    let alter = |form: &mut form::Server, alter: &dyn Fn(&mut form::Rings)| {
        if let ChannelState::Open { rings } | ChannelState::Opening { rings, .. } =
            &mut form.channels[0].state
        {
            alter(rings);
        }
    };
    for saved in [OPEN, OPENING] {
        refused(saved, |form| alter(form, &|rings| rings.target_vp = Some(4)), rings);
        refused(saved, |form| alter(form, &|rings| rings.downstream_offset = 1), rings);
        refused(saved, |form| alter(form, &|rings| rings.gpadl = 1), rings);
        refused(saved, |form| form.gpadls.clear(), rings);
    }
    let not_plain = |form: &mut form::Server| {
        if let GpadlState::Ready { is_plain, .. } = &mut form.gpadls[0].state {
            *is_plain = false;
        }
    };
    refused(OPEN, not_plain, rings);
}

#[test]
fn what_is_open_is_known_to_the_guest() {
    let unknown = "a channel that is open to a guest that does not know it";
    for presence in [Presence::Unannounced, Presence::Released, Presence::Rescinded, Presence::Gone]
    {
        refused(OPEN, |form| form.channels[0].presence = presence, unknown);
    }
    refused(CLOSING, |form| form.channels[0].presence = Presence::Released, unknown);
    refused(CLOSING, |form| form.channels[0].presence = Presence::Unannounced, unknown);
    refused(DRAINING, |form| form.channels[0].presence = Presence::Offered, unknown);
    refused(NEW, |form| form.channels[0].presence = Presence::Gone, unknown);
    refused(NEW, |form| form.channels[0].presence = Presence::Released, unknown);
    let closed = |form: &mut form::Server| {
        form.channels[0].presence = Presence::Gone;
        form.channels[0].state = ChannelState::Closed;
    };
    refused(RESCINDED, closed, unknown);
}

#[test]
fn gpadls_are_few_and_have_a_channel_and_pages() {
    let ids = 0..=u32::try_from(MAX_GPADLS).unwrap();
    let many = ids.map(|id| gpadl(id, 0, 2)).collect();
    refused(ASSEMBLING, |form| form.gpadls = many, "too many GPADLs");
    let owner = "a GPADL of no channel";
    refused(ASSEMBLING, |form| form.gpadls.push(gpadl(1, 9, 2)), owner);
    let twice = |form: &mut form::Server| form.gpadls = vec![gpadl(1, 0, 2), gpadl(1, 0, 2)];
    refused(ASSEMBLING, twice, "two GPADLs of one name");
    let most = u32::try_from(MAX_GPADL_PAGES).unwrap();
    let pages = "GPADLs of too many pages";
    refused(ASSEMBLING, |form| form.gpadls = vec![gpadl(1, 0, most + 1)], pages);
    let two = |form: &mut form::Server| form.gpadls = vec![gpadl(1, 0, most), gpadl(2, 0, 2)];
    refused(ASSEMBLING, two, pages);
    let words = "a GPADL with more pages than words";
    refused(ASSEMBLING, |form| form.gpadls = vec![gpadl(1, 0, 1)], words);
    let state = |page| GpadlState::Ready { pages: vec![page], is_plain: true };
    for page in [1 << 40, u64::MAX] {
        let form = |form: &mut form::Server| form.gpadls[0].state = state(page);
        refused(ASSEMBLING, form, "a page that there is not");
    }
    let list = "a range list that is none, or complete";
    refused(ASSEMBLING, |form| form.gpadls[0].words = 1, list);
    refused(ASSEMBLING, |form| form.gpadls[0].words = 9000, list);
    let end = "a GPADL whose end waits for nothing";
    refused(OPEN, |form| form.gpadls[0].state = GpadlState::TearingDown, end);
    refused(TEARING_DOWN, |form| form.gpadls[0].id = 1, end);
}

#[test]
fn messages_are_few_and_the_hosts() {
    let send = |vp, message: &[u8]| Queued::Send { vp, message: message.to_vec() };
    let message = HostMessage::UnloadResponse.emit();
    let many = |count| (0..count).map(|_| send(0, message.as_bytes())).collect::<Vec<_>>();
    refused(NEW, |form| form.messages = many(MAX_MESSAGES + 1), "too many messages");
    let vp = "a VP that there is not";
    refused(NEW, |form| form.messages = vec![send(4, message.as_bytes())], vp);
    let none = "a message that is none of the host's";
    let longer = [message.as_bytes(), &[0]].concat();
    for bytes in [&[][..], &[3, 0, 0, 0, 0, 0, 0, 0], &[17; 8], &longer[..]] {
        refused(NEW, |form| form.messages = vec![send(0, bytes)], none);
    }
    let reopen = |form: &mut form::Server| {
        if let ChannelState::Closing { reopen, .. } = &mut form.channels[0].state {
            *reopen = Some(vec![0; 139]);
        }
    };
    refused(CLOSING, reopen, "a message of the wrong length");
}
