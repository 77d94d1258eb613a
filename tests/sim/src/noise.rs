//! Noise: arbitrary messages posted to the bus.

use vmbus::protocol::{ConnectionId, GuestMessage, Guid, MAX_MESSAGE_LEN, Message, wire};

use crate::dice::Dice;
use crate::guest::Guest;
use crate::host::Host;

/// Posts some messages that are possible but hardly sensible.
pub(crate) fn make(guest: &mut Guest, host: &mut Host, dice: &mut Dice) {
    let many = dice.one_in(60);
    let takes_answers = many && dice.one_in(2);
    for n in 0..if many { 300 } else { dice.between(1, 6) } {
        let message = if many { lend(guest, n) } else { any_message(guest, dice) };
        let port = dice.pick(&[1, 1, 1, 1, 1, 1, 4, 4, 0, 7]);
        let bytes = message.as_bytes();
        let len = if dice.one_in(12) { dice.index(bytes.len()) } else { bytes.len() };
        let port = if many { 1 } else { port };
        host.post(ConnectionId::new(port), &bytes[..len]);
        host.watch.note(host.now, || format!("guest posts {}", crate::watch::bus_message(bytes)));
        if takes_answers {
            // Otherwise the host would soon take no more messages.
            host.turn();
            guest.take_message(host);
        }
    }
    if dice.one_in(30) {
        host.post(ConnectionId::MESSAGE, &[0; MAX_MESSAGE_LEN + 1]);
    }
}

/// Lends one page; another `n` names another GPADL.
fn lend(guest: &Guest, n: u64) -> Message {
    let header = wire::GpadlHeader {
        relid: guest.relid.map_or(1, |relid| relid.get()).into(),
        gpadl: (0x5000 + u32::try_from(n).unwrap_or(0)).into(),
        range_buflen: 16.into(),
        range_count: 1.into(),
    };
    let mut message = GuestMessage::GpadlHeader(header).emit();
    let _ = message.append(&4096_u64.to_le_bytes());
    let _ = message.append(&8_u64.to_le_bytes());
    message
}

fn any_message(guest: &Guest, dice: &mut Dice) -> Message {
    let known = guest.relid.map_or(1, |relid| relid.get());
    let relid = dice.pick(&[known, known, known, 0, 2, 2047, u32::MAX]).into();
    let of_ring = guest.gpadl.map_or(0, |gpadl| gpadl.get());
    let gpadl = dice.pick(&[of_ring, 1, 2, 3, 0, u32::MAX]).into();
    let vp = dice.pick(&[0, 1, 2, u32::MAX]).into();
    let message = match dice.below(14) {
        0 => GuestMessage::RequestOffers,
        1 => GuestMessage::Open(wire::Open {
            relid,
            open_id: 5.into(),
            ring_gpadl: gpadl,
            target_vp: vp,
            downstream_offset: dice.pick(&[1, 2, 3, 5, u32::MAX]).into(),
            user_data: [0; 120],
        }),
        2 => GuestMessage::Close(wire::Channel { relid }),
        3 | 4 => {
            let header = wire::GpadlHeader {
                relid,
                gpadl,
                range_buflen: dice.pick(&[16, 24, 32, 8, 12, 0, 4096, u16::MAX - 7]).into(),
                range_count: dice.pick(&[1, 1, 1, 2, 0, u16::MAX]).into(),
            };
            let mut message = GuestMessage::GpadlHeader(header).emit();
            let page = guest.ring_pages()[0].get();
            let words =
                [dice.pick(&[4096, 8192, 0, 1 << 32 | 1, u64::MAX]), page, page + 1, dice.any()];
            for word in &words[..dice.index(5)] {
                let _ = message.append(&word.to_le_bytes());
            }
            return message;
        }
        5 => {
            let body = wire::GpadlBody { message_number: 0.into(), gpadl };
            let mut message = GuestMessage::GpadlBody(body).emit();
            let _ = message.append(&[1; 28 * 8]);
            return message;
        }
        6 => GuestMessage::GpadlTeardown(wire::GpadlTeardown { relid, gpadl }),
        7 => GuestMessage::RelidReleased(wire::Channel { relid }),
        8 => GuestMessage::InitiateContact(wire::InitiateContact {
            version: dice.pick(&[0x5_0003, 0x4_0000, 0x2_0004, 9, u32::MAX]).into(),
            target_vp: vp,
            target_sint: dice.pick(&[2, 2, 0, 9]),
            target_vtl: dice.pick(&[0, 0, 0, 1]),
            reserved: 0.into(),
            feature_flags: 0.into(),
            parent_to_child_monitor: dice.any().into(),
            child_to_parent_monitor: dice.any().into(),
        }),
        9 => GuestMessage::Unload,
        10 => GuestMessage::OpenReserved(wire::OpenReserved {
            relid,
            target_vp: vp,
            target_sint: 2.into(),
            ring_gpadl: gpadl,
            downstream_offset: 1.into(),
        }),
        11 => GuestMessage::CloseReserved(wire::CloseReserved {
            relid,
            target_vp: vp,
            target_sint: 2.into(),
        }),
        12 => GuestMessage::TlConnectRequest(wire::TlConnectRequest {
            endpoint: Guid::from_digits(1),
            service: Guid::from_digits(2),
        }),
        _ => GuestMessage::ModifyChannel(wire::ModifyChannel { relid, target_vp: vp }),
    };
    let mut message = message.emit();
    if dice.one_in(10) {
        let _ = message.append(&[0xff; 60]);
    }
    message
}
