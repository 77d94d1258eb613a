//! The bus: any messages of a guest, in any order, with a quick or a slow driver.

mod driver;
mod guest;

use arbitrary::{Arbitrary, Unstructured};
use vmbus::Server;
use vmbus::protocol::{ConnectionId, GuestMessage, Guid, Version, wire};
use zerocopy::little_endian::U32;

pub(crate) use driver::SAVED_CONFIG;
use driver::{Driver, Kind, OFFERS};

const MAX_STEPS: usize = 300;

/// How many GPADLs a guest names; each has its own pages, so that rings show which GPADL they use.
const GPADLS: u8 = 4;
/// Pages of such a GPADL.
const GPADL_PAGES: u64 = 8;
/// Pages of memory; those above the GPADLs' own are for arbitrary page lists.
const PAGE_LIMIT: u64 = 64;

#[derive(Arbitrary, Debug)]
enum Step {
    Contact {
        version: u8,
        vp: u8,
        sint: u8,
        port: u8,
    },
    RequestOffers,
    Open {
        relid: u8,
        gpadl: u8,
        vp: u8,
        offset: u8,
    },
    Close(u8),
    /// A well-formed GPADL.
    Gpadl {
        relid: u8,
        gpadl: u8,
    },
    GpadlHeader {
        relid: u8,
        gpadl: u8,
        len: u16,
        ranges: u8,
        words: Vec<u16>,
    },
    GpadlBody {
        gpadl: u8,
        words: Vec<u16>,
    },
    Teardown {
        relid: u8,
        gpadl: u8,
    },
    Released(u8),
    Unload,
    OpenReserved(u8),
    CloseReserved(u8),
    TlConnect,
    Modify {
        relid: u8,
        vp: u8,
    },
    Bytes(u8, Vec<u8>),
    /// The driver does its pending work.
    Act,
    FinishClosing,
    Offer(u8),
    Rescind(u8),
    Reset,
    /// The driver reports a result that nobody asked for.
    Spurious(u8),
    /// All messages up to the opening of a channel.
    Begin {
        version: u8,
        gpadl: u8,
    },
}

/// Runs the kind of driver and the steps encoded in `data`.
pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let kind: u8 = input.arbitrary().unwrap_or_default();
    let mut driver = Driver::new(Kind::from(kind));
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        apply(&mut driver, step);
        driver.after_step();
    }
    guest::next_guest_works(driver);
}

/// Like [`run`], but saves and restores the server between steps; `server`, if any, was restored
/// before.
pub(crate) fn go_on(data: &[u8], server: Option<Server>) {
    let mut input = Unstructured::new(data);
    let kind = Kind::from(input.arbitrary::<u8>().unwrap_or_default());
    let mut driver = match server {
        Some(server) => Driver::of_saved(kind, server),
        None => Driver::new(kind),
    };
    driver.save_and_restore();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        match Option::<Step>::arbitrary(&mut input) {
            Ok(Some(step)) => apply(&mut driver, step),
            Ok(None) => driver.save_and_restore(),
            Err(_) => break,
        }
        driver.after_step();
    }
    guest::next_guest_works(driver);
}

fn apply(driver: &mut Driver, step: Step) {
    match step {
        Step::Act => driver.act(),
        Step::FinishClosing => driver.finish_closing(),
        Step::Offer(n) => driver.offer(n % OFFERS),
        Step::Rescind(n) => driver.rescind(n),
        Step::Reset => driver.server.reset(),
        Step::Spurious(n) => driver.spurious(n),
        Step::Bytes(port, bytes) => driver.post(port.into(), &bytes),
        Step::Contact { port, .. } => driver.post(if port == 0 { 4 } else { 1 }, &bytes(&step)),
        Step::Begin { version, gpadl } => {
            for step in [
                Step::Contact { version, vp: 0, sint: 2, port: 1 },
                Step::RequestOffers,
                Step::Gpadl { relid: 1, gpadl },
                Step::Open { relid: 1, gpadl, vp: 0, offset: 4 },
            ] {
                apply(driver, step);
                driver.after_step();
            }
        }
        message => driver.post(ConnectionId::MESSAGE.get(), &bytes(&message)),
    }
}

/// Relids are small, so that they are often valid.
fn relid(n: u8) -> U32 {
    u32::from(n % 6).into()
}

fn bytes(step: &Step) -> Vec<u8> {
    let mut words = Vec::new();
    let message = match step {
        Step::Contact { version, vp, sint, .. } => contact(*version, *vp, *sint),
        Step::Open { relid: n, gpadl, vp, offset } => GuestMessage::Open(wire::Open {
            relid: relid(*n),
            open_id: u32::from(*n).into(),
            ring_gpadl: u32::from(gpadl % GPADLS).into(),
            target_vp: vp_number(*vp).into(),
            downstream_offset: u32::from(*offset).into(),
            user_data: [0; 120],
        }),
        Step::Close(n) => GuestMessage::Close(wire::Channel { relid: relid(*n) }),
        Step::Gpadl { relid: n, gpadl } => {
            let gpadl = gpadl % GPADLS;
            let first = u64::from(gpadl) * GPADL_PAGES;
            words.push(GPADL_PAGES << 12);
            words.extend(first..first + GPADL_PAGES);
            header(*n, gpadl, u16::try_from(words.len() * 8).unwrap(), 1)
        }
        Step::GpadlHeader { relid, gpadl, len, ranges, words: list } => {
            words.extend(list.iter().map(|word| any_word(*word)));
            header(*relid, *gpadl, *len, (*ranges).into())
        }
        Step::GpadlBody { gpadl, words: list } => {
            words.extend(list.iter().map(|word| any_word(*word)));
            GuestMessage::GpadlBody(wire::GpadlBody {
                message_number: 0.into(),
                gpadl: u32::from(*gpadl).into(),
            })
        }
        Step::Teardown { relid: n, gpadl } => GuestMessage::GpadlTeardown(wire::GpadlTeardown {
            relid: relid(*n),
            gpadl: u32::from(*gpadl).into(),
        }),
        Step::Released(n) => GuestMessage::RelidReleased(wire::Channel { relid: relid(*n) }),
        Step::Unload => GuestMessage::Unload,
        Step::OpenReserved(n) => GuestMessage::OpenReserved(wire::OpenReserved {
            relid: relid(*n),
            target_vp: 0.into(),
            target_sint: 2.into(),
            ring_gpadl: 0.into(),
            downstream_offset: 0.into(),
        }),
        Step::CloseReserved(n) => GuestMessage::CloseReserved(wire::CloseReserved {
            relid: relid(*n),
            target_vp: 0.into(),
            target_sint: 2.into(),
        }),
        Step::TlConnect => GuestMessage::TlConnectRequest(wire::TlConnectRequest {
            endpoint: Guid::from_digits(1),
            service: Guid::from_digits(2),
        }),
        Step::Modify { relid: n, vp } => GuestMessage::ModifyChannel(wire::ModifyChannel {
            relid: relid(*n),
            target_vp: vp_number(*vp).into(),
        }),
        _ => GuestMessage::RequestOffers,
    };
    let mut message = message.emit();
    for word in words {
        let _ = message.append(&word.to_le_bytes());
    }
    message.as_bytes().to_vec()
}

fn contact(version: u8, vp: u8, sint: u8) -> GuestMessage {
    let known = Version::KNOWN.get(usize::from(version)).map(|version| version.to_wire());
    GuestMessage::InitiateContact(wire::InitiateContact {
        version: known.unwrap_or(u32::from(version) << 12).into(),
        target_vp: vp_number(vp).into(),
        target_sint: sint,
        target_vtl: 0,
        reserved: 0.into(),
        feature_flags: 0.into(),
        parent_to_child_monitor: 0.into(),
        child_to_parent_monitor: 0.into(),
    })
}

fn header(n: u8, gpadl: u8, len: u16, ranges: u16) -> GuestMessage {
    GuestMessage::GpadlHeader(wire::GpadlHeader {
        relid: relid(n),
        gpadl: u32::from(gpadl).into(),
        range_buflen: len.into(),
        range_count: ranges.into(),
    })
}

/// A VP number; occasionally the one that means no VP.
fn vp_number(vp: u8) -> u32 {
    if vp == u8::MAX { u32::MAX } else { vp.into() }
}

/// The length of a range, or a page that belongs to no GPADL.
fn any_word(word: u16) -> u64 {
    let own = u64::from(GPADLS) * GPADL_PAGES;
    let word = u64::from(word);
    match word {
        0..0x100 => own + word % (PAGE_LIMIT - own),
        0x100..0x1000 => (word & 0xf) << 12,
        0x1000..0x2000 => word << 28,
        _ => word << 12 | word & 0xff,
    }
}
