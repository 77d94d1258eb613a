//! Saved state of the server and the rings: once restored, they continue, and anything else is
//! refused.

use std::{fs, path::PathBuf, sync::Arc};

use guest_model::vmbus::{Event, GuestRings, Post, SharedMemory};
use page_range::Gpfn;
use proptest::prelude::*;
use vmbus::{
    FormatError, Offer, RestoreError, SavedServer, SavedState, Server, ServerConfig,
    protocol::{ConnectionId, GpadlId, GuestMessage, Guid, Version, VpIndex, wire},
    ring::{ChannelRings, RingLayout, SavedRings, Sent},
};

use crate::pair::{MEMORY_PAGES, OFFER, Pair, pages};

/// How many bytes come before the payload, and after it.
const FRAME: (usize, usize) = (20, 4);

const CONFIG: ServerConfig = ServerConfig {
    vp_count: 4,
    page_limit: match Gpfn::new(MEMORY_PAGES) {
        Some(limit) => limit,
        None => panic!(),
    },
    max_version: Version::V5_3,
};

type Rings = ChannelRings<Arc<SharedMemory>>;

/// Everything that a guest does with the bus; returns the events that it sees.
fn life(version: Version, saves: bool) -> Vec<Event> {
    let mut pair = Pair::new(Version::V5_3, version);
    pair.saves = saves;
    let relid = pair.connect();
    let (gpadl, mut rings) = pair.open(relid);
    for _ in 0..3 {
        pair.exchange(&mut rings);
    }
    let mut events = Vec::new();
    if version >= Version::V4_1 {
        pair.client.modify(relid, VpIndex::new(2));
        events.extend(pair.run());
        assert_eq!(pair.target_vp, Some(VpIndex::new(2)));
    }
    pair.client.close(relid);
    pair.client.teardown_gpadl(relid, gpadl);
    events.extend(pair.run());
    // More pages than fit into one message, and a channel that is opened again while it closes.
    let gpadl = pair.client.create_gpadl(relid, &pages(10, 200));
    events.extend(pair.run());
    pair.client.open(relid, gpadl, 100, VpIndex::new(0));
    events.extend(pair.run());
    pair.slow_device = true;
    pair.client.close(relid);
    let mut rings = GuestRings::new(pair.mem.clone(), &pages(10, 200), 50);
    pair.client.open(relid, gpadl, 50, VpIndex::NONE);
    events.extend(pair.run());
    pair.finish_closing();
    pair.slow_device = false;
    events.extend(pair.run());
    pair.exchange(&mut rings);
    let other = Offer { instance: Guid::from_digits(2), ..OFFER };
    let other = pair.server.offer(other).unwrap();
    events.extend(pair.run());
    pair.server.rescind(other);
    events.extend(pair.run());
    pair.slow_device = true;
    pair.client.unload();
    events.extend(pair.run());
    pair.finish_closing();
    events.extend(pair.run());
    pair.slow_device = false;
    assert_eq!(pair.connect(), relid);
    let (_, mut rings) = pair.open(relid);
    pair.exchange(&mut rings);
    events.extend(pair.run());
    events
}

#[test]
fn a_guest_does_not_see_that_its_host_is_saved_after_every_message() {
    for version in Version::KNOWN {
        let expected = life(version, false);
        assert!(expected.contains(&Event::Unloaded));
        assert_eq!(life(version, true), expected, "{version}");
    }
}

/// A server in each state, with everything that a server can hold.
fn tour() -> Vec<(&'static str, Server)> {
    let opened = || Pair::opened(Version::V5_3);
    let slow = || {
        let mut all = opened();
        all.0.slow_device = true;
        all
    };
    let mut tour = vec![
        ("new", Pair::new(Version::V5_3, Version::V5_3).server),
        ("connected", Pair::connected(Version::V4_0).0.server),
        ("open", opened().0.server),
    ];

    let (mut pair, relid) = Pair::connected(Version::V5_3);
    pair.client.create_gpadl(relid, &pages(10, 100));
    let post = pair.client.poll_post().unwrap();
    pair.post(post).unwrap();
    tour.push(("assembling", pair.server));

    let (mut pair, relid, gpadl, _) = opened();
    pair.client.close(relid);
    pair.run();
    pair.client.open(relid, gpadl, 4, VpIndex::NONE);
    let post = pair.client.poll_post().unwrap();
    pair.post(post).unwrap();
    tour.push(("opening", pair.server));

    let (mut pair, relid, gpadl, _) = slow();
    pair.client.close(relid);
    pair.client.open(relid, gpadl, 5, VpIndex::new(3));
    pair.run();
    tour.push(("closing-to-open", pair.server));

    let (mut pair, relid, gpadl, _) = slow();
    pair.client.teardown_gpadl(relid, gpadl);
    pair.run();
    tour.push(("tearing-down", pair.server));

    let (mut pair, ..) = slow();
    pair.server.rescind(pair.channel);
    tour.push(("rescinded", pair.server));

    for (name, contact) in [("draining-to-contact", true), ("draining-to-unload", false)] {
        let (mut pair, ..) = slow();
        if contact {
            pair.client.connect();
        } else {
            pair.client.unload();
        }
        while let Some(post) = pair.client.poll_post() {
            pair.post(post).unwrap();
        }
        tour.push((name, pair.server));
    }

    let (mut pair, ..) = opened();
    for _ in 0..5 {
        let message =
            GuestMessage::GpadlTeardown(wire::GpadlTeardown { relid: 1.into(), gpadl: 1.into() });
        let post = Post { connection_id: ConnectionId::MESSAGE, message: message.emit() };
        pair.post(post).unwrap();
    }
    tour.push(("with-messages", pair.server));
    tour
}

/// Rings with packets that were copied out but not received, and with one that does not fit.
fn busy_rings() -> (Rings, Arc<SharedMemory>) {
    let (mut pair, _, _, mut guest) = Pair::opened(Version::V5_3);
    for number in 0..5_u8 {
        guest.send(&[number; 40], number.into()).unwrap();
    }
    let mut host = pair.rings.take().unwrap();
    host.receive().unwrap().unwrap();
    while host.send(&[7; 1000], 7).unwrap() != Sent::Full {}
    (host, pair.mem)
}

fn layout() -> RingLayout {
    RingLayout::new(&pages(10, 10), 5).unwrap()
}

fn restore_rings(mem: &Arc<SharedMemory>, saved: &SavedRings) -> Result<Rings, RestoreError> {
    ChannelRings::restore(mem.clone(), &layout(), saved)
}

/// Restores a server from bytes; `None` if decoding or restoring refuses them.
fn server_of(bytes: &[u8]) -> Option<Server> {
    Server::restore(CONFIG, &SavedServer::from_bytes(bytes).ok()?).ok()
}

fn rings_of(mem: &Arc<SharedMemory>, bytes: &[u8]) -> Option<Rings> {
    restore_rings(mem, &SavedRings::from_bytes(bytes).ok()?).ok()
}

fn golden(name: &str) -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.join(format!("../../crates/vmbus/tests/golden/v1/{name}.bin"))
}

#[test]
#[ignore = "writes the golden files of the newest version, which may change only before a release"]
fn write_golden_files() {
    fs::create_dir_all(golden("x").parent().unwrap()).unwrap();
    for (name, server) in tour() {
        fs::write(golden(name), server.save().to_bytes()).unwrap();
    }
    fs::write(golden("rings"), busy_rings().0.save().to_bytes()).unwrap();
}

#[test]
fn version_1_is_written_as_ever() {
    for (name, server) in tour() {
        let expected = fs::read(golden(name)).unwrap();
        assert!(server.save().to_bytes() == expected, "{name}: the form of version 1 changed");
    }
    assert!(busy_rings().0.save().to_bytes() == fs::read(golden("rings")).unwrap(), "rings");
}

#[test]
fn version_1_is_restored_as_ever() {
    for (name, mut server) in tour() {
        let saved = fs::read(golden(name)).unwrap();
        let mut restored = server_of(&saved).unwrap();
        assert!(restored.save().to_bytes() == saved, "{name}");
        assert_eq!(restored.version(), server.version(), "{name}");
        assert_eq!(restored.faults(), server.faults(), "{name}");
        let channel = server.channel_of(&OFFER);
        assert_eq!(restored.channel_of(&OFFER), channel, "{name}");
        assert_eq!(
            channel.and_then(|channel| restored.opened(channel)),
            channel.and_then(|channel| server.opened(channel)),
            "{name}"
        );
        let told = std::iter::from_fn(|| server.poll_action()).collect::<Vec<_>>();
        let again = std::iter::from_fn(|| restored.poll_action()).collect::<Vec<_>>();
        assert!(again.ends_with(&told), "{name}: {again:?}, not {told:?}");
    }
    let (mut rings, mem) = busy_rings();
    let mut restored = rings_of(&mem, &fs::read(golden("rings")).unwrap()).unwrap();
    for _ in 0..5 {
        assert_eq!(restored.receive(), rings.receive());
    }
    assert_eq!(restored.end_receive(), rings.end_receive());
}

#[test]
fn a_device_that_was_opening_is_opened_again_and_one_that_was_closing_closed() {
    let first = |name| {
        let saved = fs::read(golden(name)).unwrap();
        server_of(&saved).unwrap().poll_action()
    };
    let (pair, relid, ..) = Pair::opened(Version::V5_3);
    let Some(vmbus::Action::Open { channel, rings, target_vp, relid: of, connection_id, .. }) =
        first("opening")
    else {
        panic!("not opened")
    };
    assert_eq!((channel, target_vp, of), (pair.channel, None, relid));
    assert_eq!((rings.incoming(), connection_id.get()), (&pages(10, 4)[..], 0x1001));
    for name in ["closing-to-open", "tearing-down", "rescinded", "draining-to-unload"] {
        assert_eq!(first(name), Some(vmbus::Action::Close { channel }), "{name}");
    }
}

#[test]
fn cut_off_anywhere_or_with_any_bit_flipped_it_is_refused() {
    let (rings, mem) = busy_rings();
    let refuses_server = |bytes: &[u8]| server_of(bytes).is_none();
    let refuses_rings = |bytes: &[u8]| rings_of(&mem, bytes).is_none();
    let servers = tour().into_iter().map(|(name, server)| (name, server.save().to_bytes()));
    for (name, saved) in servers.chain([("rings", rings.save().to_bytes())]) {
        let refused: &dyn Fn(&[u8]) -> bool =
            if name == "rings" { &refuses_rings } else { &refuses_server };
        for len in 0..saved.len() {
            assert!(refused(&saved[..len]), "{name}: {len}");
        }
        for bit in 0..saved.len() * 8 {
            let mut saved = saved.clone();
            saved[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&saved), "{name}: bit {bit}");
        }
    }
}

#[test]
fn newer_versions_and_other_kinds_are_named() {
    let error = SavedServer::from_bytes(&SavedServer::FORMAT.frame(2, &[])).unwrap_err();
    assert_eq!(error, FormatError::Version { found: 2, newest: 1 });
    let error = SavedRings::from_bytes(&SavedRings::FORMAT.frame(9, &[])).unwrap_err();
    assert_eq!(error, FormatError::Version { found: 9, newest: 1 });
    let error = SavedServer::from_bytes(&busy_rings().0.save().to_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "this is not the saved state of a VMBus server");
}

#[test]
fn a_machine_with_fewer_vps_less_memory_or_older_versions_is_refused() {
    let saved = Pair::opened(Version::V5_3).0.server.save();
    for other in [
        ServerConfig { vp_count: 3, ..CONFIG },
        ServerConfig { page_limit: Gpfn::new(19).unwrap(), ..CONFIG },
        ServerConfig { max_version: Version::V5_2, ..CONFIG },
    ] {
        let error = Server::restore(other, &saved).unwrap_err();
        assert!(matches!(error, RestoreError::Impossible { .. }), "{error}");
    }
    let larger = ServerConfig { vp_count: 64, page_limit: Gpfn::MAX, ..CONFIG };
    assert!(Server::restore(larger, &saved).is_ok());
}

#[test]
fn rings_need_their_memory_and_their_layout() {
    let (rings, _) = busy_rings();
    let saved = rings.save();
    let small = Arc::new(SharedMemory::new(12));
    assert!(matches!(restore_rings(&small, &saved), Err(RestoreError::Access(_))));
    let memory = Arc::new(SharedMemory::new(20));
    let short = RingLayout::new(&pages(10, 4), 2).unwrap();
    let error = ChannelRings::restore(memory, &short, &saved).unwrap_err();
    assert!(matches!(error, RestoreError::Impossible { .. }), "{error}");
}

fn reframed<T: SavedState>(saved: &[u8], changes: &[(prop::sample::Index, u8, u8)]) -> Vec<u8> {
    let mut payload = saved[FRAME.0..saved.len() - FRAME.1].to_vec();
    for &(at, value, kind) in changes {
        let at = at.index(payload.len());
        match kind {
            0 => payload.insert(at, value),
            1 if payload.len() > 1 => drop(payload.remove(at)),
            2 => payload[at] ^= 1 << (value % 8),
            _ => payload[at] = value,
        }
    }
    T::FORMAT.frame(1, &payload)
}

/// Sends the server various messages; after each, its state must be one that can be restored.
fn go_on(mut server: Server) {
    let teardown = wire::GpadlTeardown { relid: 1.into(), gpadl: 0xe1e10.into() };
    let messages = [
        GuestMessage::GpadlTeardown(teardown),
        GuestMessage::RequestOffers,
        GuestMessage::Close(wire::Channel { relid: 1.into() }),
        GuestMessage::RelidReleased(wire::Channel { relid: 1.into() }),
        GuestMessage::Unload,
    ];
    for message in messages {
        let _ = server.handle_message(ConnectionId::MESSAGE, message.emit().as_bytes());
        while let Some(action) = server.poll_action() {
            match action {
                vmbus::Action::Open { channel, .. } => server.open_finished(channel, true),
                vmbus::Action::Close { channel } => server.close_finished(channel),
                _ => {}
            }
        }
        assert!(Server::restore(CONFIG, &server.save()).is_ok(), "it cannot be restored again");
    }
    assert_eq!(server.version(), None);
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4_u8), 1..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a_payload_altered_anyhow_makes_a_sound_server_or_none(
        which: prop::sample::Index,
        changes in changes(),
    ) {
        let names = ["connected", "open", "assembling", "opening", "closing-to-open",
            "tearing-down", "rescinded", "draining-to-contact", "with-messages"];
        let saved = fs::read(golden(which.get::<&str>(&names))).unwrap();
        if let Some(server) = server_of(&reframed::<SavedServer>(&saved, &changes)) {
            go_on(server);
        }
    }

    #[test]
    fn payloads_altered_anyhow_make_rings_that_end_or_none(changes in changes()) {
        let mem = Arc::new(SharedMemory::new(20));
        let saved = fs::read(golden("rings")).unwrap();
        if let Some(mut rings) = rings_of(&mem, &reframed::<SavedRings>(&saved, &changes)) {
            // As many packets as the rings have room for, and one more.
            for _ in 0..5 * 4096 / 16 {
                if !matches!(rings.receive(), Ok(Some(_))) {
                    break;
                }
            }
            let _ = rings.end_receive();
            let _ = rings.send(&[1; 100], 1);
        }
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(server_of(&bytes).is_none());
        if let Some(server) = server_of(&SavedServer::FORMAT.frame(1, &bytes)) {
            go_on(server);
        }
        let mem = Arc::new(SharedMemory::new(20));
        prop_assert!(rings_of(&mem, &bytes).is_none());
        let _ = rings_of(&mem, &SavedRings::FORMAT.frame(1, &bytes));
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    GuestSends(usize),
    HostReceives,
    HostSends(usize),
    GuestReceives,
    Save,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3000_usize).prop_map(Step::GuestSends),
        3 => Just(Step::HostReceives),
        3 => (0..3000_usize).prop_map(Step::HostSends),
        3 => Just(Step::GuestReceives),
        3 => Just(Step::Save),
    ]
}

/// The results of all steps, with the host saved in between or never.
fn talk(steps: &[Step], saves: bool) -> Vec<String> {
    let (mut pair, _, _, mut guest) = Pair::opened(Version::V5_3);
    let mut host = pair.rings.take().unwrap();
    let mut said = Vec::new();
    for (number, &step) in (0_u8..).zip(steps) {
        said.push(match step {
            Step::GuestSends(len) => format!("{:?}", guest.send(&vec![number; len], 1)),
            Step::HostReceives => {
                let packet = format!("{:?}", host.receive());
                format!("{packet} {}", host.end_receive())
            }
            Step::HostSends(len) => format!("{:?}", host.send(&vec![number; len], 2)),
            Step::GuestReceives => format!("{:?}", guest.receive()),
            Step::Save if saves => {
                host = restore_rings(&pair.mem, &host.save()).unwrap();
                continue;
            }
            Step::Save => continue,
        });
    }
    said
}

proptest! {
    #[test]
    fn a_guest_does_not_see_that_rings_are_saved(steps in prop::collection::vec(step(), 1..100)) {
        prop_assert_eq!(talk(&steps, true), talk(&steps, false));
    }
}

#[test]
fn a_gpadl_id_in_use_stays_in_use() {
    let (mut pair, relid, gpadl, _) = Pair::opened(Version::V5_3);
    pair.save_and_restore();
    let header = wire::GpadlHeader {
        relid: relid.get().into(),
        gpadl: gpadl.get().into(),
        range_buflen: 16.into(),
        range_count: 1.into(),
    };
    let mut message = GuestMessage::GpadlHeader(header).emit();
    message.append(&0x1000_u64.to_le_bytes()).unwrap();
    message.append(&9_u64.to_le_bytes()).unwrap();
    pair.client.post(message);
    assert_eq!(pair.run(), [Event::GpadlCreated(GpadlId::new(gpadl.get()), false)]);
}
