//! The vices of hostile guests.

use dynmem_protocol::{
    BalloonResponse, Capabilities, CapabilitiesReport, HotAddResponse, HotAddResult, RangeList,
    StatusReport, UnballoonResponse, Version, VersionRequest,
};
use page_range::{Gpa, Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::ring::{PacketDescriptor, READ_INDEX, WRITE_INDEX};
use vmbus::{GuestMemory, MAX_COMPLETIONS};
use zerocopy::IntoBytes;

use crate::dice::Dice;
use crate::guest::{Guest, Stage};
use crate::host::Host;
use crate::memory::Mischief;
use crate::noise;

/// One kind of hostility. A hostile guest has one or more, on top of an honest driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vice {
    /// Names ranges that are meaningless, or larger than memory.
    LiesAboutRanges,
    /// Gives pages that it already gave.
    FreesTwice,
    /// Gives pages that are not RAM.
    GivesForeignPages,
    /// Gives pages of memory that has not been added yet.
    GivesPagesNotAdded,
    /// Gives pages without being asked, including those of its rings.
    GivesUnasked,
    /// Says in each answer that more pages follow.
    EndlessMorePages,
    /// Gives a page just before the request times out, and says that more pages follow.
    Dribbles,
    /// Sends nothing once the handshake is over.
    NeverAnswers,
    /// Reads nothing once the handshake is over.
    NeverReads,
    /// Takes no bus messages once its channel is open.
    TakesNoMessages,
    /// Floods the host with reports, requests and garbage.
    Floods,
    /// Closes, unloads, tears down or reconnects at any moment.
    ClosesMidTransaction,
    /// Changes the ring's indices, before and just after the host looks.
    MovesIndices,
    /// Rewrites a packet just after the host has looked at it.
    RewritesPackets,
    /// Writes packets of wrong lengths and kinds, and asks for completions.
    BadPackets,
    /// Makes rings of duplicate pages, too few pages, and pages that do not exist.
    BadRings,
    /// Posts arbitrary messages to the bus.
    BusNoise,
    /// Answers hot-adds with impossible counts, unasked, and late.
    OddHotAdds,
}

impl Vice {
    /// All vices.
    pub const ALL: [Self; 18] = [
        Self::LiesAboutRanges,
        Self::FreesTwice,
        Self::GivesForeignPages,
        Self::GivesPagesNotAdded,
        Self::GivesUnasked,
        Self::EndlessMorePages,
        Self::Dribbles,
        Self::NeverAnswers,
        Self::NeverReads,
        Self::TakesNoMessages,
        Self::Floods,
        Self::ClosesMidTransaction,
        Self::MovesIndices,
        Self::RewritesPackets,
        Self::BadPackets,
        Self::BadRings,
        Self::BusNoise,
        Self::OddHotAdds,
    ];

    /// The name in traces and tallies.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LiesAboutRanges => "lies about ranges",
            Self::FreesTwice => "frees twice",
            Self::GivesForeignPages => "gives foreign pages",
            Self::GivesPagesNotAdded => "gives pages not added",
            Self::GivesUnasked => "gives unasked",
            Self::EndlessMorePages => "endless more pages",
            Self::Dribbles => "dribbles",
            Self::NeverAnswers => "never answers",
            Self::NeverReads => "never reads",
            Self::TakesNoMessages => "takes no messages",
            Self::Floods => "floods",
            Self::ClosesMidTransaction => "closes mid-transaction",
            Self::MovesIndices => "moves indices",
            Self::RewritesPackets => "rewrites packets",
            Self::BadPackets => "bad packets",
            Self::BadRings => "bad rings",
            Self::BusNoise => "bus noise",
            Self::OddHotAdds => "odd hot-adds",
        }
    }

    /// Whether it consists in not doing, or delaying, what a driver should do.
    pub(crate) const fn is_passive(self) -> bool {
        matches!(
            self,
            Self::NeverAnswers | Self::NeverReads | Self::TakesNoMessages | Self::Dribbles
        )
    }
}

/// What a hostile guest knows about its machine.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    pub(crate) boot_ram: PageRangeSet,
    /// Where memory may be added.
    pub(crate) window: PageRange,
}

/// Does something hostile.
pub(crate) fn act(vice: Vice, guest: &mut Guest, host: &mut Host, dice: &mut Dice, at: &Places) {
    host.watch.note(host.now, || format!("guest {}", vice.name()));
    match vice {
        Vice::LiesAboutRanges => lie(guest, host, dice, at),
        Vice::FreesTwice => free_twice(guest, host, dice),
        Vice::GivesForeignPages => {
            let words =
                words(dice, |dice| word(dice.between(1 << 25, 1 << 39), dice.between(1, 9)));
            give(guest, host, dice, &words);
        }
        Vice::GivesPagesNotAdded => {
            let (start, count) = (at.window.start().get(), at.window.count().get().min(1 << 19));
            let words = words(dice, |dice| word(start + dice.below(count), dice.between(1, 2000)));
            give(guest, host, dice, &words);
        }
        Vice::GivesUnasked => give_unasked(guest, host, dice, at),
        Vice::EndlessMorePages | Vice::Dribbles => {
            let page = in_ram(dice, at);
            let is_empty = vice == Vice::EndlessMorePages && dice.one_in(2);
            let words: &[u64] = if is_empty { &[] } else { &[word(page, 1)] };
            guest.send(&response(words, true), host);
        }
        Vice::Floods => flood(guest, host, dice),
        Vice::ClosesMidTransaction => close_somehow(guest, host, dice),
        Vice::MovesIndices | Vice::RewritesPackets => {
            if vice == Vice::MovesIndices && dice.one_in(3) {
                move_index(guest, dice, host);
            }
            let mischief = Mischief {
                dice: dice.fork(),
                rewrites: vice == Vice::RewritesPackets || dice.one_in(4),
                moves_words: vice == Vice::MovesIndices,
            };
            guest.ram().set_mischief(Some(mischief));
        }
        Vice::BadPackets => write_bad_packet(guest, host, dice),
        Vice::BadRings => spoil_rings(guest, host, dice, at),
        Vice::BusNoise => noise::make(guest, host, dice),
        Vice::OddHotAdds => {
            let pages = dice.pick(&[0, 1, 255, 256, 512, 32_768, 1 << 30, u64::MAX]);
            let result = HotAddResult::from_wire(u32::try_from(dice.below(3)).unwrap_or(0));
            guest.send(&HotAddResponse { pages: PageCount::new(pages), result }.emit(1), host);
        }
        Vice::NeverAnswers | Vice::NeverReads | Vice::TakesNoMessages => {}
    }
}

/// A range word, whether or not it names pages.
const fn word(start: u64, count: u64) -> u64 {
    start & ((1 << 40) - 1) | count << 40
}

fn words(dice: &mut Dice, mut each: impl FnMut(&mut Dice) -> u64) -> Vec<u64> {
    (0..dice.between(1, 6)).map(|_| each(dice)).collect()
}

/// A balloon response with these range words.
fn response(words: &[u64], more_pages: bool) -> Vec<u8> {
    let mut list = RangeList::new();
    let any = PageRange::new(Gpfn::default(), PageCount::new(1)).expect("a page");
    for _ in words {
        list.push(any).expect("there is room");
    }
    let mut bytes = BalloonResponse::emit(1, more_pages, &list);
    let start = bytes.len() - size_of_val(words);
    for (at, word) in bytes[start..].chunks_exact_mut(8).zip(words) {
        at.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn give(guest: &mut Guest, host: &mut Host, dice: &mut Dice, words: &[u64]) {
    guest.send(&response(words, dice.one_in(2)), host);
}

/// A page of boot RAM.
fn in_ram(dice: &mut Dice, at: &Places) -> u64 {
    let ranges: Vec<_> = at.boot_ram.iter().collect();
    let range = dice.pick(&ranges);
    range.start().get() + dice.below(range.count().get())
}

fn lie(guest: &mut Guest, host: &mut Host, dice: &mut Dice, at: &Places) {
    let words = words(dice, |dice| match dice.below(6) {
        0 => dice.any(),
        1 => word(in_ram(dice, at), 0),
        2 => word(0, (1 << 24) - 1),
        3 => word((1 << 40) - 1, 2),
        4 => word(in_ram(dice, at), dice.between(1, 5000)),
        _ => word(dice.below(1 << 18), dice.between(1, 40)),
    });
    let mut bytes = response(&words, dice.one_in(2));
    if dice.one_in(5) {
        let at = dice.index(bytes.len());
        bytes[at] ^= 1 << dice.below(8);
    }
    if dice.one_in(9) {
        // Scattered pages: more pieces than the host is willing to remember.
        let start = if dice.one_in(2) { 1 << 30 } else { in_ram(dice, at) };
        let words: Vec<_> = (0..500).map(|n| word(start + 2 * n, 1)).collect();
        bytes = response(&words, true);
    }
    guest.send(&bytes, host);
}

fn free_twice(guest: &mut Guest, host: &mut Host, dice: &mut Dice) {
    let given: Vec<_> = guest.driver.memory().ballooned().iter().take(8).collect();
    if given.is_empty() {
        return;
    }
    let words = words(dice, |dice| {
        let range = dice.pick(&given);
        word(range.start().get() + dice.below(range.count().get()), dice.between(1, 600))
    });
    give(guest, host, dice, &words);
}

fn give_unasked(guest: &mut Guest, host: &mut Host, dice: &mut Dice, at: &Places) {
    let ring = guest.ring_pages().to_vec();
    let words = words(dice, |dice| match dice.one_in(6) {
        true => word(dice.pick(&ring).get(), dice.between(1, 3)),
        false => word(in_ram(dice, at), dice.between(1, 700)),
    });
    give(guest, host, dice, &words);
}

/// Requests completions that it does not read, until there is no room for more.
pub(crate) fn fill_ring(guest: &mut Guest, host: &mut Host) {
    /// More than fit into the largest ring and the host's queue.
    const PACKETS: usize = 1000;
    guest.asks_for_all = true;
    for _ in 0..PACKETS {
        if host.is_blocked() && guest.awaited.len() > 2 * MAX_COMPLETIONS {
            break;
        }
        if !guest.send(&StatusReport::default().emit(1), host) {
            break;
        }
        host.signalled = true;
        host.turn();
    }
    guest.asks_for_all = false;
}

fn flood(guest: &mut Guest, host: &mut Host, dice: &mut Dice) {
    if dice.one_in(8) {
        return fill_ring(guest, host);
    }
    let kind = dice.below(5);
    // An accepted version ends the negotiation, so most requests name an unknown one.
    let version = Version::from_wire(if dice.one_in(9) { 0x2_0000 } else { 7 });
    for _ in 0..dice.between(5, 80) {
        let bytes = match kind {
            0 => StatusReport::default().emit(1),
            1 => VersionRequest { version, is_last_attempt: dice.one_in(2) }.emit(1),
            2 => CapabilitiesReport {
                capabilities: Capabilities::from_wire(dice.below(8)),
                minimum_pages: PageCount::ZERO,
                highest_page: dice.any(),
            }
            .emit(1),
            3 => UnballoonResponse.emit(1),
            _ => (0..dice.below(40)).map(|n| u8::try_from(n).unwrap_or(0)).collect(),
        };
        if !guest.send(&bytes, host) {
            return;
        }
    }
}

fn close_somehow(guest: &mut Guest, host: &mut Host, dice: &mut Dice) {
    let (relid, gpadl) = (guest.relid, guest.gpadl);
    match dice.below(9) {
        0 => guest.unload(host),
        1 => guest.kexec(host, dice.pick(&crate::guest::MAPS)),
        2 => guest.crash(host),
        3 => guest.boot(host),
        4 => guest.bus.unload(),
        5 => {
            // Its driver goes on as if nothing had happened.
            relid.into_iter().for_each(|relid| guest.bus.close(relid));
        }
        6 => {
            if let (Some(relid), Some(gpadl)) = (relid, gpadl) {
                guest.bus.teardown_gpadl(relid, gpadl);
            }
        }
        7 => {
            if let (Some(relid), Some(gpadl)) = (relid, gpadl) {
                guest.bus.close(relid);
                let offset = u32::try_from(guest.downstream_offset).unwrap_or(0);
                guest.bus.open(relid, gpadl, offset, vmbus::protocol::VpIndex::new(0));
            }
        }
        _ => {
            guest.forget_channel(host);
            guest.stage = Stage::Unloaded;
            guest.load();
        }
    }
}

/// Writes an odd value to a word of a control page.
fn move_index(guest: &Guest, dice: &mut Dice, host: &mut Host) {
    let pages = guest.ring_pages();
    let control = dice.pick(&[pages[0], pages[guest.downstream_offset.min(pages.len() - 1)]]);
    let word = dice.pick(&[WRITE_INDEX, READ_INDEX, 8, 12, 64]);
    let value = dice.pick(&[0, 8, 4, 4096, 8192, u32::MAX, 0x7fff_fff8, 40]);
    host.watch.lost_ring = true;
    host.signalled = true;
    if let Some(gpa) = control.gpa().checked_add(word) {
        let _ = guest.ram().store_u32(gpa, value, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Writes a packet as no driver would, over what is in the ring.
fn write_bad_packet(guest: &Guest, host: &mut Host, dice: &mut Dice) {
    let [control, data, ..] = *guest.ring_pages() else { return };
    let mem = guest.ram();
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    let index = |word| control.gpa().checked_add(word).unwrap_or(Gpa::new(0));
    let Ok(start) = mem.load_u32(index(WRITE_INDEX), relaxed) else { return };
    // Stay in the first data page, so that sound packets need no wrapping.
    if start > 3000 || !guest.has_sound_rings(host) {
        return;
    }
    let is_sound = dice.one_in(2);
    let len8 = if is_sound { 4 } else { dice.pick(&[0, 1, 2, 3, 600, u16::MAX]) };
    let descriptor = PacketDescriptor {
        kind: dice.pick(&[6, 7, 8, 9, 0xb, 0]).into(),
        data_offset8: if is_sound { 2 } else { dice.pick(&[0, 1, 2, 3, 5, 700]) }.into(),
        len8: len8.into(),
        flags: dice.pick(&[0, 1, 1, 0xffff]).into(),
        transaction_id: dice.any().into(),
    };
    host.expected = None;
    host.signalled = true;
    if !is_sound {
        host.watch.lost_ring = true;
    }
    let Some(gpa) = data.gpa().checked_add(start.into()) else { return };
    let _ = mem.write(gpa, descriptor.as_bytes());
    let _ = mem.store_u32(index(WRITE_INDEX), start + 40, relaxed);
}

/// Closes the channel, and opens it with rings of odd pages.
fn spoil_rings(guest: &mut Guest, host: &mut Host, dice: &mut Dice, at: &Places) {
    let outside = at.window.end().get();
    let page = |dice: &mut Dice| match dice.below(8) {
        0 => outside + dice.below(1 << 20),
        1 => at.window.start().get() + dice.below(4096),
        2 => 3,
        _ => in_ram(dice, at),
    };
    let count = dice.pick(&[1, 2, 3, 4, 5, 9]);
    let pages: Vec<Gpfn> = (0..count).map(|_| Gpfn::new(page(dice)).unwrap_or_default()).collect();
    let offset = dice.pick(&[0, 1, 2, 3, count, 100]);
    guest.forget_channel(host);
    if let Some(relid) = guest.relid {
        guest.bus.close(relid);
    }
    guest.use_place(pages, usize::try_from(offset).unwrap_or(0));
    guest.stage = Stage::Unloaded;
    guest.load();
}
