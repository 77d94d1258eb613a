//! One round of one peer: boot, shrink, return, hot-add.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::{MIB, PATIENCE};
use serde::{Deserialize, Serialize};

use crate::contestant::{Contestant, Step, Total};
use e2e::peer::{Machine, Peer};

/// The guest's boot size.
pub(crate) const BOOT: u64 = 4096 * MIB;

/// The size to shrink it to.
pub(crate) const SMALL: u64 = 1024 * MIB;

/// The size to grow it to.
pub(crate) const MOST: u64 = 7168 * MIB;

/// The target set as soon as the process exists.
const FIRST_TARGET: u64 = 3584 * MIB;

/// The tolerance for the guest's `MemTotal`: the pages around a step that the kernel takes for
/// itself.
const SLACK: u64 = MIB;

/// The conditions for all rounds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The longest time that a step may take.
    pub(crate) limit: Duration,
    /// Whether the guest's kernel clears pages as it allocates them.
    pub(crate) clears: bool,
}

/// The results of a round; times in seconds, sizes in bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Round {
    /// The program that ran the guest.
    pub(crate) peer: Peer,
    /// Its version.
    pub(crate) version: String,
    /// From the guest's first instruction until its agent was up, by the guest's clock.
    pub(crate) booted: f64,
    /// From the start of the process until a target that was set at once took effect.
    pub(crate) first_effect: f64,
    /// CPU time of the device's threads for one monitor query.
    pub(crate) question: f64,
    /// Resident memory of the process before the first step.
    pub(crate) resident: u64,
    /// The part of it in huge pages.
    pub(crate) huge: u64,
    /// Shrinking by 3 GiB, after all the guest's memory was written.
    pub(crate) shrink: Step,
    /// Giving the 3 GiB back.
    pub(crate) give_back: Step,
    /// Adding 3 GiB, if the peer supports it.
    pub(crate) add: Option<Step>,
}

impl Round {
    /// Measures a peer.
    ///
    /// # Errors
    ///
    /// The guest does not come up, or a step takes too long.
    pub(crate) fn measure(peer: Peer, terms: Terms) -> Result<Self> {
        let most = if peer.can_add() { MOST } else { BOOT };
        let machine = Machine {
            cpus: 2,
            boot: BOOT,
            most,
            clears: terms.clears,
            append: "",
            devices: None,
            group: None,
        };
        let mut guest = Contestant::start(peer, machine)?;
        let round = Self::of(peer, &mut guest, terms.limit);
        if round.is_err() {
            println!("{}", guest.last_words());
        }
        round
    }

    fn of(peer: Peer, guest: &mut Contestant, limit: Duration) -> Result<Self> {
        let first_effect = first_effect(guest)?;
        // The agent has been up for long; its output is still there to read.
        let booted = guest.vm.agent.wait_up()?;
        let full = settle_at_boot_size(guest)?;
        let question = guest.price_question()?;
        guest.vm.agent.dirty_free_memory()?;
        let (resident, huge) = (guest.memory("Rss")?, guest.memory("AnonHugePages")?);

        let gone = Total::Most(full - (BOOT - SMALL) + SLACK);
        let shrink = guest.resize("shrink", SMALL, gone, limit)?;
        let give_back = guest.resize("return", BOOT, Total::Least(full - SLACK), limit)?;
        // The kernel uses part of the new memory to manage it.
        let added = Total::Least(full + (MOST - BOOT) * 95 / 100);
        let add = match peer.can_add() {
            true => Some(guest.resize("hot-add", MOST, added, limit)?),
            false => None,
        };
        Ok(Self {
            peer,
            version: guest.version(),
            booted: booted.as_secs_f64(),
            first_effect: first_effect.as_secs_f64(),
            question,
            resident,
            huge,
            shrink,
            give_back,
            add,
        })
    }
}

/// The time from the start of the process until a target set at once has its first effect. The
/// target is set repeatedly, since a peer may forget one set before the guest's driver starts.
fn first_effect(guest: &mut Contestant) -> Result<Duration> {
    while guest.actual()? == BOOT {
        guest.set_target(FIRST_TARGET)?;
        ensure!(guest.vm.started.elapsed() < 2 * PATIENCE, "a target has no effect");
        sleep(Duration::from_millis(100));
    }
    Ok(guest.vm.started.elapsed())
}

/// Brings the guest back to its boot size; returns its `MemTotal` in bytes once it is there.
fn settle_at_boot_size(guest: &mut Contestant) -> Result<u64> {
    guest.set_target(BOOT)?;
    let mut before = 0;
    loop {
        let total = guest.vm.agent.meminfo()?.total;
        if guest.actual()? == BOOT && total == before {
            return Ok(total);
        }
        before = total;
        ensure!(guest.vm.started.elapsed() < 4 * PATIENCE, "MemTotal stays at {} MiB", total / MIB);
        sleep(Duration::from_millis(500));
    }
}
