//! The return of a large amount of memory: only accounting and messages, without real memory.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use guest_ram::{GuestRam, RamConfig};
use page_range::{Gpa, Gpfn, PageCount, PageRange, PageRangeSet};
use serde::Serialize;

use crate::host::{Host, Usage};
use crate::scenario::Pieces;

/// The guest's size.
const GUEST: PageCount = PageCount::from_bytes(256 << 30);

/// How much is taken and given back.
pub(crate) const BALLOON: PageCount = PageCount::from_bytes(200 << 30);

/// The cost of taking and giving back [`BALLOON`], one entry for each round.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct LargeReturn {
    pub(crate) shrink: Vec<Usage>,
    pub(crate) grow: Vec<Usage>,
}

/// Measures this many rounds.
pub(crate) fn measure(rounds: u32) -> Result<LargeReturn> {
    let mut large = LargeReturn::default();
    for _ in 0..rounds {
        // This memory is only for the rings.
        let size = PageCount::from_bytes(2 << 20);
        let ram = Arc::new(GuestRam::new(&RamConfig { size, ..Default::default() })?);
        let boot_ram: PageRangeSet =
            [PageRange::new(Gpfn::default(), GUEST)?].into_iter().collect();
        let start = Gpa::new(4 << 30).gpfn().context("small")?;
        let pieces = Pieces::Large.of(PageRange::new(start, BALLOON)?);
        let mut host = Host::without_memory(ram, boot_ram, pieces)?;
        large.shrink.push(host.resize(GUEST.saturating_sub(BALLOON))?);
        large.grow.push(host.resize(GUEST)?);
        ensure!(host.returned() == BALLOON, "not all pages came back");
    }
    Ok(large)
}
