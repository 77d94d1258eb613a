//! The device: any order of actions by guest, driver and operator, against a model of each page.

use arbitrary::{Arbitrary, Unstructured};
use dynmem_protocol::{
    BalloonResponse, Capabilities, CapabilitiesReport, HotAddResponse, HotAddResult, RangeList,
    StatusReport, UnballoonResponse, Version, VersionRequest,
};
use page_range::{PageCount, PageRange};

use crate::world::{Op, World, range};

/// The most steps of a run: enough for several sessions.
const MAX_STEPS: usize = 1000;

/// A step in the fuzzer's encoding: few bytes, and most values are meaningful.
#[derive(Arbitrary, Debug)]
pub(crate) enum Step {
    Open,
    Close,
    Reset,
    Version(u8),
    Capabilities(u8),
    Give(Vec<(u16, u8)>, bool),
    /// Every nth page from this one on: many ranges in few bytes.
    Comb(u8, u8),
    Obey(i8),
    Confirm,
    Status,
    Garbage(Vec<u8>),
    Target(u16),
    Blocks(u8, u8),
    Added(u16, u8),
    Prepared(bool),
    Write,
    Discarded(bool),
    Wait(u8),
    /// The handshake of a guest that accepts requests.
    Begin,
}

/// The input encodes the size of the host's pages, and the steps.
pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let unit = if input.arbitrary().unwrap_or_default() { 8 } else { 1 };
    let mut world = World::new(unit);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        for op in step.ops() {
            world.apply(op);
        }
    }
}

impl Step {
    pub(crate) fn ops(self) -> Vec<Op> {
        let op = match self {
            Self::Open => Op::Open,
            Self::Close => Op::Close,
            Self::Reset => Op::Reset,
            Self::Version(0) => Op::Version(3),
            Self::Version(1) => Op::Version(0x1_0000),
            Self::Version(2) => Op::Version(0x2_0000),
            Self::Version(other) => Op::Version(u32::from(other) << 16),
            Self::Capabilities(bits) => Op::Capabilities(bits.into()),
            Self::Give(ranges, more) => Op::Give(
                ranges
                    .into_iter()
                    .take(64)
                    .map(|(start, count)| range((start % 1024).into(), 1 + u64::from(count) % 256))
                    .collect(),
                more,
            ),
            Self::Comb(start, step) => {
                let step = 1 + u64::from(step % 16);
                Op::Give((0..64).map(|n| range(u64::from(start) + n * step, 1)).collect(), true)
            }
            Self::Obey(extra) => Op::Obey(extra),
            Self::Confirm => Op::Confirm,
            Self::Status => Op::Status,
            Self::Garbage(bytes) => Op::Garbage(bytes),
            Self::Target(pages) => Op::Target((pages % 1200).into()),
            Self::Blocks(blocks, verdict) => {
                Op::Added(u64::from(blocks % 5) * 256, u32::from(verdict % 3))
            }
            Self::Added(pages, verdict) => Op::Added((pages % 1200).into(), verdict.into()),
            Self::Prepared(ok) => Op::Prepared(ok),
            Self::Write => Op::Write,
            Self::Discarded(ok) => Op::Discarded(ok),
            // These are not steps of their own, which would change the meaning of earlier inputs.
            Self::Wait(u8::MAX) => Op::Restore,
            Self::Wait(254) => Op::Removed(true),
            Self::Wait(253) => Op::Removed(false),
            Self::Wait(252) => Op::Inhibit(true),
            Self::Wait(251) => Op::Inhibit(false),
            Self::Wait(seconds) => Op::Wait(seconds.into()),
            Self::Begin => {
                return vec![
                    Op::Open,
                    Op::Version(0x2_0000),
                    Op::Write,
                    Op::Capabilities(3),
                    Op::Write,
                ];
            }
        };
        vec![op]
    }
}

/// The guest's message, if the step is one; `asked` is how many pages the guest was last asked for.
pub(crate) fn message(op: &Op, asked: u64) -> Option<Vec<u8>> {
    Some(match *op {
        Op::Version(version) => {
            let version = Version::from_wire(version);
            VersionRequest { version, is_last_attempt: false }.emit(1)
        }
        Op::Capabilities(bits) => CapabilitiesReport {
            capabilities: Capabilities::from_wire(bits),
            minimum_pages: PageCount::ZERO,
            highest_page: 0,
        }
        .emit(2),
        Op::Give(ref ranges, more) => pages(ranges, more),
        Op::Obey(extra) => {
            let given = asked.saturating_add_signed(extra.into()).max(1);
            pages(&[range(0, given)], false)
        }
        Op::Confirm => UnballoonResponse.emit(3),
        Op::Status => StatusReport::default().emit(4),
        Op::Garbage(ref bytes) => bytes.clone(),
        Op::Added(pages, verdict) => {
            let (pages, result) = (PageCount::new(pages), HotAddResult::from_wire(verdict));
            HotAddResponse { pages, result }.emit(6)
        }
        Op::Open
        | Op::Close
        | Op::Reset
        | Op::Target(_)
        | Op::Removed(_)
        | Op::Inhibit(_)
        | Op::Prepared(_)
        | Op::Write
        | Op::Discarded(_)
        | Op::Wait(_)
        | Op::Restore => return None,
    })
}

fn pages(ranges: &[PageRange], more: bool) -> Vec<u8> {
    let mut list = RangeList::new();
    for range in ranges {
        list.push(*range).unwrap();
    }
    BalloonResponse::emit(5, more, &list)
}
