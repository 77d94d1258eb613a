//! Guests that keep no rules: nothing panics, and the next guest finds the bus in order.

use proptest::{collection::vec, prelude::*, sample::select};
use vmbus::{
    Action, MAX_CHANNELS, MAX_QUEUED_MESSAGES,
    protocol::{ConnectionId, GuestMessage, Guid, Version, wire},
};

use crate::pair::{OFFER, Pair};

#[derive(Clone, Debug)]
enum Op {
    /// A message with plausible numbers, cut or with words added.
    Message {
        message: GuestMessage,
        words: Vec<u64>,
        cut: Option<usize>,
    },
    /// Any bytes.
    Bytes(u32, Vec<u8>),
    /// The driver carries out the server's actions.
    Act,
    FinishClosing,
    Rescind,
    Offer(u8),
    Reset,
    /// The driver reports a result that nobody asked for.
    Spurious(bool),
}

fn small() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0_u32..4, 1 => any::<u32>()]
}

fn contact() -> impl Strategy<Value = GuestMessage> {
    let version = prop_oneof![
        8 => select(&Version::KNOWN[..]).prop_map(Version::to_wire),
        1 => any::<u32>()
    ];
    (version, small(), any::<bool>()).prop_map(|(version, vp, sint)| {
        GuestMessage::InitiateContact(wire::InitiateContact {
            version: version.into(),
            target_vp: vp.into(),
            target_sint: if sint { 2 } else { 0 },
            target_vtl: 0,
            reserved: 0.into(),
            feature_flags: 0.into(),
            parent_to_child_monitor: 0.into(),
            child_to_parent_monitor: 0.into(),
        })
    })
}

fn header() -> impl Strategy<Value = GuestMessage> {
    let len = prop_oneof![Just(40_u16), 0_u16..100, any::<u16>()];
    (small(), small(), len, 0_u16..3).prop_map(|(relid, gpadl, len, ranges)| {
        GuestMessage::GpadlHeader(wire::GpadlHeader {
            relid: relid.into(),
            gpadl: gpadl.into(),
            range_buflen: len.into(),
            range_count: ranges.into(),
        })
    })
}

fn open() -> impl Strategy<Value = GuestMessage> {
    (small(), small(), small(), small()).prop_map(|(relid, gpadl, vp, offset)| {
        GuestMessage::Open(wire::Open {
            relid: relid.into(),
            open_id: relid.into(),
            ring_gpadl: gpadl.into(),
            target_vp: vp.into(),
            downstream_offset: offset.into(),
            user_data: [0; 120],
        })
    })
}

fn other() -> impl Strategy<Value = GuestMessage> {
    (0..11, small(), small()).prop_map(|(kind, relid, other)| {
        let channel = wire::Channel { relid: relid.into() };
        let (relid, number) = (relid.into(), other.into());
        match kind {
            0 => GuestMessage::RequestOffers,
            1 => GuestMessage::Close(channel),
            2 => GuestMessage::RelidReleased(channel),
            3 => GuestMessage::Unload,
            4 => GuestMessage::GpadlTeardown(wire::GpadlTeardown { relid, gpadl: number }),
            5 => GuestMessage::ModifyChannel(wire::ModifyChannel { relid, target_vp: number }),
            6 => GuestMessage::TlConnectRequest(wire::TlConnectRequest {
                endpoint: Guid::from_digits(1),
                service: Guid::from_digits(2),
            }),
            7 => GuestMessage::CloseReserved(wire::CloseReserved {
                relid,
                target_vp: number,
                target_sint: 2.into(),
            }),
            _ => {
                GuestMessage::GpadlBody(wire::GpadlBody { message_number: 0.into(), gpadl: number })
            }
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let page = prop_oneof![6 => 0_u64..0x20, 1 => any::<u64>()];
    let words = prop_oneof![
        Just(vec![0x4000, 1, 2, 3, 4]),
        vec(prop_oneof![Just(0x4000_u64), page], 0..24)
    ];
    let message = prop_oneof![1 => contact(), 3 => header(), 3 => open(), 5 => other(), 2 => Just(GuestMessage::RequestOffers)];
    let cut = prop_oneof![9 => Just(None), 1 => (0_usize..240).prop_map(Some)];
    prop_oneof![
        20 => (message, words, cut).prop_map(|(message, words, cut)| Op::Message { message, words, cut }),
        2 => (0_u32..6, vec(prop_oneof![0_u8..32, any::<u8>()], 0..250)).prop_map(|(id, bytes)| Op::Bytes(id, bytes)),
        6 => Just(Op::Act),
        3 => Just(Op::FinishClosing),
        1 => Just(Op::Rescind),
        1 => (0_u8..3).prop_map(Op::Offer),
        1 => Just(Op::Reset),
        1 => any::<bool>().prop_map(Op::Spurious),
    ]
}

fn step(pair: &mut Pair, op: Op) {
    match op {
        Op::Message { message, words, cut } => {
            let mut bytes = message.emit();
            for word in words {
                let _ = bytes.append(&word.to_le_bytes());
            }
            let bytes = &bytes.as_bytes()[..cut.unwrap_or(240).min(bytes.as_bytes().len())];
            let _ = pair.server.handle_message(ConnectionId::MESSAGE, bytes);
        }
        Op::Bytes(id, bytes) => {
            let _ = pair.server.handle_message(ConnectionId::new(id), &bytes);
        }
        Op::Act => pair.act(),
        Op::FinishClosing => pair.finish_closing(),
        Op::Rescind => pair.server.rescind(pair.channel),
        Op::Offer(n) => {
            let offer = vmbus::Offer { instance: Guid::from_digits(n.into()), ..OFFER };
            pair.channel = pair.server.offer(offer).unwrap_or(pair.channel);
        }
        Op::Reset => pair.server.reset(),
        Op::Spurious(true) => pair.server.open_finished(pair.channel, true),
        Op::Spurious(false) => pair.server.close_finished(pair.channel),
    }
}

/// Takes the queued actions without carrying them out.
fn queued(pair: &mut Pair) -> Vec<Action> {
    std::iter::from_fn(|| pair.server.poll_action()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn after_any_guest_the_next_one_works(slow in any::<bool>(), ops in vec(op(), 0..120)) {
        let mut pair = Pair::new(Version::V5_3, Version::V5_3);
        pair.connect();
        pair.slow_device = slow;
        for op in ops {
            step(&mut pair, op);
        }
        pair.act();
        pair.slow_device = false;
        pair.finish_closing();
        pair.run();
        pair.channel = pair.server.offer(OFFER).unwrap_or(pair.channel);
        let relid = offered_relid(&mut pair);
        let (_, mut rings) = pair.open(relid);
        pair.exchange(&mut rings);
    }

    #[test]
    fn a_driver_that_takes_nothing_has_a_bounded_queue(ops in vec(op(), 0..400)) {
        let mut pair = Pair::new(Version::V5_3, Version::V5_3);
        pair.connect();
        for op in ops {
            match op {
                Op::Message { .. } | Op::Bytes(..) => step(&mut pair, op),
                _ => {}
            }
        }
        let actions = queued(&mut pair).len();
        prop_assert!(actions <= MAX_QUEUED_MESSAGES + 2 * MAX_CHANNELS, "{actions}");
    }
}

fn offered_relid(pair: &mut Pair) -> vmbus::protocol::Relid {
    pair.client.connect();
    pair.run();
    pair.client.request_offers();
    let events = pair.run();
    let relid = events.iter().find_map(|event| match event {
        guest_model::vmbus::Event::Offered(offer) if offer.instance == OFFER.instance => {
            Some(vmbus::protocol::Relid::new(offer.relid.get()))
        }
        _ => None,
    });
    relid.unwrap_or_else(|| panic!("{events:?}"))
}
