//! The workloads that guests cause for the set of pages, from the usual to the worst case.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::PageSet;

const GIB: u64 = 262_144;
const TIB: u64 = 1024 * GIB;

/// Pages of a huge page.
const HUGE: u64 = 512;

/// The most to take at once: 2 GiB, more than a range of an unballoon message can hold.
const TAKE: u64 = 2 * GIB;

/// The approximate number of ranges that one message returns.
const MANY: usize = 256;

/// The guest's RAM, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Size(u64);

impl Size {
    /// 1 TiB, the size for the huge ranges whatever size is requested.
    pub const TIB: Self = Self(TIB);

    /// The size in whole GiB.
    #[must_use]
    pub const fn gib(self) -> u64 {
        self.0 / GIB
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let gib = text.strip_suffix('G').and_then(|number| number.parse().ok());
        match gib {
            Some(gib @ 1..=1024) => Ok(Self(gib * GIB)),
            _ => Err(format!("`{text}` is not a size such as 16G, from 1G to 1024G")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}G", self.gib())
    }
}

/// Phases that are run one after another on one set.
#[derive(Debug)]
pub struct Work {
    pages: u64,
    phases: Vec<Phase>,
}

/// One kind of operation, done many times.
#[derive(Debug)]
pub struct Phase {
    /// The name in tables.
    pub name: &'static str,
    ops: Ops,
}

#[derive(Debug)]
enum Ops {
    /// Start and count of the ranges to insert. 32 bits hold them, and there may be many.
    Insert(Vec<(u32, u32)>),
    /// Insert every other page below this one; too many to list.
    EveryOther(u64),
    /// Take everything above a page, and the range that contains it.
    TakeAbove(u64),
    /// Take everything, many ranges at a time.
    TakeMany,
}

/// A set's answers to all operations: if two sets agree on them, both did the same work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    /// Pages that were new.
    pub new: u64,
    /// The number of maximal ranges among the pages taken.
    pub ranges: u64,
    /// A hash of everything taken, in order.
    pub taken: u64,
    /// The start of the last range taken.
    below: u64,
}

impl Work {
    /// All workloads.
    pub const NAMES: [&'static str; 8] =
        ["linux", "altasc", "altrnd", "rnd50", "cover", "huge1", "huge2g", "alt1t"];

    /// The workload `name` for a guest of `size`; the huge ranges and `alt1t` always use 1 TiB.
    ///
    /// # Errors
    /// There is no workload of this name.
    pub fn new(name: &str, size: Size) -> Result<Self> {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let every_other = || Phase { name: "insert", ops: Ops::EveryOther(size.0) };
        let (pages, phases) = match name {
            "linux" => (size.0, linux(size.0, &mut random)),
            "altasc" => {
                let listed: Vec<_> = alternate(size.0).collect();
                (size.0, vec![every_other(), again(&listed, &mut random)])
            }
            "altrnd" => {
                let mut listed: Vec<_> = alternate(size.0).collect();
                random.shuffle(&mut listed);
                let again = again(&listed, &mut random);
                (size.0, vec![insert("insert", listed), again])
            }
            "rnd50" => {
                let listed = half(size.0, &mut random);
                let again = again(&listed, &mut random);
                (size.0, vec![insert("insert", listed), again])
            }
            "cover" => (size.0, vec![every_other(), insert("cover", vec![op(0, size.0)])]),
            "huge1" => (TIB, vec![insert("insert", vec![op(0, TIB)])]),
            "huge2g" => {
                let mut listed: Vec<_> = (0..512).map(|i| op(i * TAKE, TAKE)).collect();
                random.shuffle(&mut listed);
                let again = again(&listed, &mut random);
                (TIB, vec![insert("insert", listed), again])
            }
            "alt1t" => (TIB, vec![Phase { name: "insert", ops: Ops::EveryOther(TIB) }]),
            _ => bail!("there is no workload {name}; choose among {}", Self::NAMES.join(", ")),
        };
        let take = Phase { name: "take", ops: Ops::TakeAbove(pages / 2) };
        let take_many = Phase { name: "take many", ops: Ops::TakeMany };
        Ok(Self { pages, phases: phases.into_iter().chain([take, take_many]).collect() })
    }

    /// Pages of the guest.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The phases in order.
    #[must_use]
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// The number of operations in all phases, as far as it is known in advance.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.phases.iter().map(Phase::ops).sum()
    }
}

impl Phase {
    /// The number of operations; 0 if it depends on the content of the set.
    #[must_use]
    pub fn ops(&self) -> u64 {
        match &self.ops {
            Ops::Insert(listed) => listed.len() as u64,
            Ops::EveryOther(pages) => pages / 2,
            Ops::TakeAbove(_) | Ops::TakeMany => 0,
        }
    }

    /// Runs the phase and returns the number of operations.
    pub fn run<S: PageSet>(&self, set: &mut S, answers: &mut Answers) -> u64 {
        match &self.ops {
            Ops::Insert(listed) => {
                for &(start, count) in listed {
                    answers.new += set.insert(start.into(), count.into());
                }
            }
            Ops::EveryOther(pages) => {
                for start in (0..*pages).step_by(2) {
                    answers.new += set.insert(start, 1);
                }
            }
            Ops::TakeAbove(page) => return take_above(set, *page, answers),
            Ops::TakeMany => return take_many(set, answers),
        }
        self.ops()
    }
}

impl Answers {
    fn took(&mut self, start: u64, count: u64) {
        self.ranges += u64::from(start + count != self.below || self.ranges == 0);
        self.below = start;
        self.taken = (self.taken ^ start).wrapping_mul(0x100_0000_01b3) ^ count;
    }
}

fn take_above<S: PageSet>(set: &mut S, page: u64, answers: &mut Answers) -> u64 {
    let mut ops = 0;
    while let Some((start, count)) = set.take_last(TAKE) {
        ops += 1;
        answers.took(start, count);
        if start <= page {
            break;
        }
    }
    ops
}

fn take_many<S: PageSet>(set: &mut S, answers: &mut Answers) -> u64 {
    let mut ops = 0;
    let mut more = true;
    while more {
        more = set.take_some(TAKE, MANY, |start, count| {
            ops += 1;
            answers.took(start, count);
        });
    }
    ops
}

fn insert(name: &'static str, listed: Vec<(u32, u32)>) -> Phase {
    Phase { name, ops: Ops::Insert(listed) }
}

/// A random tenth of what was inserted.
fn again(listed: &[(u32, u32)], random: &mut Random) -> Phase {
    let count = listed.len().div_ceil(10);
    insert("again", (0..count).filter_map(|_| random.of(listed)).collect())
}

fn op(start: u64, count: u64) -> (u32, u32) {
    let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
    (narrow(start), narrow(count))
}

/// A Linux guest's ranges: 70 % of its RAM in 2 MiB pieces, one GiB after another in random order,
/// upwards or downwards with some pieces out of turn, then single pages.
fn linux(pages: u64, random: &mut Random) -> Vec<Phase> {
    let mut zones: Vec<u64> = (0..pages / GIB).collect();
    random.shuffle(&mut zones);
    let wanted = usize::try_from(pages / HUGE * 7 / 10).unwrap_or(usize::MAX);
    let mut pieces = Vec::new();
    for zone in zones {
        let mut some: Vec<_> = (0..500).map(|i| op(zone * GIB + i * HUGE, HUGE)).collect();
        if random.below(2) == 0 {
            some.reverse();
        }
        for i in 1..some.len() {
            if random.below(100) < 3 {
                some.swap(i - 1, i);
            }
        }
        pieces.append(&mut some);
    }
    pieces.truncate(wanted);
    let singles: Vec<_> =
        (0..(pages / 64).min(1 << 20)).map(|_| op(random.below(pages), 1)).collect();
    let all: Vec<_> = pieces.iter().chain(&singles).copied().collect();
    let again = again(&all, random);
    vec![insert("2M", pieces), insert("4K tail", singles), again]
}

fn alternate(pages: u64) -> impl Iterator<Item = (u32, u32)> {
    (0..pages).step_by(2).map(|page| op(page, 1))
}

/// Random pages, some of them repeatedly, until half of all pages are in the set.
fn half(pages: u64, random: &mut Random) -> Vec<(u32, u32)> {
    let mut seen = vec![false; usize::try_from(pages).unwrap_or(usize::MAX)];
    let mut left = pages / 2;
    let mut listed = Vec::new();
    while left > 0 {
        let page = random.below(pages);
        listed.push(op(page, 1));
        let seen = usize::try_from(page).ok().and_then(|page| seen.get_mut(page));
        if seen.is_some_and(|seen| !std::mem::replace(seen, true)) {
            left -= 1;
        }
    }
    listed
}

/// Reproducible random numbers: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        let scaled = (u128::from(self.next()) * u128::from(end)) >> 64;
        u64::try_from(scaled).unwrap_or(0)
    }

    fn of<T: Copy>(&mut self, listed: &[T]) -> Option<T> {
        let i = self.below(listed.len().max(1) as u64);
        listed.get(usize::try_from(i).ok()?).copied()
    }

    fn shuffle<T>(&mut self, listed: &mut [T]) {
        for i in (1..listed.len()).rev() {
            let with = usize::try_from(self.below(i as u64 + 1)).unwrap_or(i);
            listed.swap(i, with);
        }
    }
}
