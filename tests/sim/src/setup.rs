//! The machine, the guest and the operator of a run, as the seed determines them.

use dynmem_protocol::Capabilities;
use guest_model::dynmem::{Ending, HotAddAnswer, Memory, Personality, Shape};
use hv_balloon::{Config, HotAdd, Settle};
use page_range::{Gpfn, PageCount, PageRange, PageRangeSet};
use std::time::Duration;

use crate::dice::Dice;
use crate::vice::Vice;

const PAGES_PER_MIB: u64 = 256;

/// The fewest pages of an honest guest's ring: its control page and two data pages, since a packet
/// with a message of 4096 bytes does not fit into one.
const LEAST_RING: usize = 3;

/// The machine of a run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) boot_ram: PageRangeSet,
    pub(crate) hot_add: Option<HotAdd>,
    pub(crate) unit: PageCount,
    pub(crate) status_reports: bool,
    /// Pages that the kernel uses for itself.
    pub(crate) in_use: PageCount,
    /// Pages of each ring.
    pub(crate) ring_pages: [usize; 2],
    /// The VMM is saved and restored now and then.
    pub(crate) moves: bool,
    /// Discards are forbidden now and then.
    pub(crate) inhibits: bool,
}

impl Setup {
    pub(crate) fn roll(is_honest: bool, dice: &mut Dice) -> Self {
        let unit = PageCount::new(dice.weighted(&[(3, 1), (1, 512)]));
        let boot_ram = boot_ram(dice.pick(&[32, 64, 64, 128, 256]), unit, dice);
        let capacity_mib = dice.pick(&[0, 64, 512, 512, 4096, 4096, 1 << 16]);
        let hot_add = (capacity_mib != 0).then(|| {
            let start = Gpfn::new((1 << 18) + dice.pick(&[0, 1, 300, 512])).unwrap_or_default();
            let start = start.align_up(unit).unwrap_or(start);
            let end = Gpfn::new(1 << 25).unwrap_or_default();
            HotAdd {
                window: PageRange::between(start, end).expect("start is below"),
                capacity: mib(capacity_mib),
                least_alignment: PageCount::new(512),
            }
        });
        let least = if is_honest { LEAST_RING } else { 2 };
        let ring = |dice: &mut Dice| dice.pick(&[least, 3, 4, 5]);
        Self {
            boot_ram,
            hot_add,
            unit,
            status_reports: dice.one_in(2),
            in_use: mib(dice.between(1, 4)),
            ring_pages: [ring(dice), ring(dice)],
            moves: dice.one_in(5),
            inhibits: dice.one_in(6),
        }
    }

    /// The machine after a reset: the same, or with other boot RAM.
    pub(crate) fn reset(&mut self, dice: &mut Dice) {
        if dice.one_in(3) {
            self.boot_ram = boot_ram(dice.pick(&[64, 128, 256]), self.unit, dice);
        }
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            boot_ram: self.boot_ram.clone(),
            settle: Settle::Auto,
            status_reports: self.status_reports,
            hot_add: self.hot_add,
            discard_unit: self.unit,
            inhibited: false,
        }
    }

    /// The guest's memory for its page allocator: all RAM but the rings.
    pub(crate) fn memory(&self) -> Memory {
        let mut ram = self.boot_ram.clone();
        for page in self.ring_places().into_iter().flatten() {
            if let Ok(page) = PageRange::new(page, PageCount::new(1)) {
                ram.remove(page);
            }
        }
        Memory::new(ram, self.in_use)
    }

    /// Makes the rings as large as an honest guest's.
    pub(crate) fn widen_rings(&mut self) {
        self.ring_pages = self.ring_pages.map(|pages| pages.max(LEAST_RING));
    }

    /// Two places for the rings.
    pub(crate) fn ring_places(&self) -> [Vec<Gpfn>; 2] {
        let count = (self.ring_pages[0] + self.ring_pages[1]) as u64;
        let end = self.boot_ram.iter().last().expect("there is RAM").end().get();
        let place = |from: u64| (from..from + count).filter_map(Gpfn::new).collect();
        [place(end - 2 * count), place(end - count)]
    }

    /// The hot-add window, or where one would be.
    pub(crate) fn window(&self) -> PageRange {
        let page = Gpfn::new(1 << 20).unwrap_or_default();
        self.hot_add.map_or_else(
            || PageRange::new(page, PageCount::new(1 << 12)).expect("a range"),
            |hot_add| hot_add.window,
        )
    }
}

pub(crate) const fn mib(mib: u64) -> PageCount {
    PageCount::new(mib * PAGES_PER_MIB)
}

/// RAM in one piece, or with the holes that it has in a PC.
fn boot_ram(size_mib: u64, unit: PageCount, dice: &mut Dice) -> PageRangeSet {
    let size = mib(size_mib).get();
    let between = |start, end| {
        PageRange::between(Gpfn::new(start).unwrap_or_default(), Gpfn::new(end).unwrap_or_default())
            .expect("start is below end")
    };
    if unit.get() > 1 || dice.one_in(2) {
        return std::iter::once(between(0, size)).collect();
    }
    let low = size / 2;
    [between(0, 0xa0), between(0x100, low), between(1 << 17, (1 << 17) + size - low + 0x60)]
        .into_iter()
        .collect()
}

/// A guest that keeps the rules, perhaps in a way in which no known guest does.
pub(crate) fn honest(dice: &mut Dice) -> Personality {
    let all = Personality::all();
    let mut personality = all[dice.index(all.len())].clone();
    if dice.one_in(2) {
        personality.ballooning.ranges_per_message = dice.pick(&[1, 2, 7, 64, 508]);
        personality.ballooning.ending = dice.pick(&[Ending::WithPages, Ending::Separate]);
        // With short messages of short ranges, a guest would take for ever.
        if personality.ballooning.ranges_per_message < 64 || dice.one_in(2) {
            personality.ballooning.shape = Shape::Runs;
        }
    }
    if dice.one_in(3) {
        personality.hot_add.answer = match dice.below(6) {
            0 => HotAddAnswer::AtMost(mib(dice.below(1000))),
            1 => HotAddAnswer::Refuses,
            2 => HotAddAnswer::Fails { times: 1 },
            3 => HotAddAnswer::FailsAlways,
            4 => HotAddAnswer::Silent,
            _ => HotAddAnswer::Late(Duration::from_secs(dice.below(200))),
        };
    }
    if dice.one_in(6) {
        let without = dice.pick(&[Capabilities::BALLOON, Capabilities::HOT_ADD]);
        let word = personality.capabilities.to_wire() & !without.to_wire();
        personality.capabilities = Capabilities::from_wire(word);
    }
    personality
}

/// The driver of a guest with these vices.
pub(crate) fn hostile(vices: &[Vice], dice: &mut Dice) -> Personality {
    let mut personality = dice.pick(&[
        Personality::linux_6_1 as fn() -> Personality,
        Personality::linux_without_auto_online,
        Personality::windows_server_2016,
        Personality::windows_8,
    ])();
    if dice.one_in(4) {
        personality = personality.with_alignment(u8::try_from(dice.below(16)).unwrap_or(0));
    }
    if vices.contains(&Vice::OddHotAdds) {
        personality.hot_add.answer = match dice.below(4) {
            0 => HotAddAnswer::ClaimsMore(mib(dice.below(1 << 20))),
            1 => HotAddAnswer::ClaimsOdd,
            2 => HotAddAnswer::Late(Duration::from_secs(dice.below(400))),
            _ => HotAddAnswer::Silent,
        };
    }
    if vices.contains(&Vice::NeverAnswers) {
        personality.ignores_requests = true;
        personality.hot_add.answer = HotAddAnswer::Silent;
    }
    personality
}
