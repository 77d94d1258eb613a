//! Resizes the same guest under `hvb` and under QEMU's hv-balloon, and prints what each step took:
//! what `cargo xtask bench-peers` runs.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Contestant, MIB, PATIENCE, Peer, Sizes};

const BOOT: u64 = 4096 * MIB;
const SMALL: u64 = 1024 * MIB;
const MOST: u64 = 7168 * MIB;
const FIRST_TARGET: u64 = 3584 * MIB;

/// One round of one peer, times in seconds.
struct Round {
    booted: f64,
    first_effect: f64,
    shrink: f64,
    returned: f64,
    returned_in_guest: f64,
    added: f64,
    added_in_guest: f64,
    resident_before: u64,
    resident_after: u64,
}

fn main() -> ExitCode {
    match rounds().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn rounds() -> Result<usize> {
    std::env::args()
        .nth(1)
        .context("give the number of rounds; or run cargo xtask bench-peers")
        .and_then(|text| Ok(text.parse()?))
}

fn run(rounds: usize) -> Result<()> {
    println!(
        "The same Linux guest, 2 vCPUs, {} MiB at boot, all of it written before each shrink;\n\
         times in seconds until the monitor says so, and until the guest's MemTotal has followed.\n",
        BOOT / MIB
    );
    let mut results: Vec<(Peer, Round)> = Vec::new();
    for round in 1..=rounds {
        for peer in Peer::ALL {
            println!("round {round} of {rounds}: {}", peer.name());
            results.push((peer, measure(peer).with_context(|| peer.name())?));
        }
    }
    table(&results);
    Ok(())
}

fn measure(peer: Peer) -> Result<Round> {
    let mut guest = Contestant::start(peer, Sizes { boot: BOOT, most: MOST })?;
    let first_effect = first_effect(&mut guest)?;
    // The agent spoke long ago; what it said is still there to read.
    let booted = guest.agent.wait_up()?;
    guest.resize(BOOT)?;
    let full = guest.agent.meminfo()?.total;

    guest.agent.dirty_free_memory()?;
    let resident_before = guest.resident()?;
    let shrink = guest.resize(SMALL)?;
    let resident_after = guest.resident()?;

    let begin = Instant::now();
    let returned = guest.resize(BOOT)?;
    let returned_in_guest = guest.total_reaches(full, begin)?;

    let begin = Instant::now();
    let added = guest.resize(MOST)?;
    // What the kernel needs to manage the new memory is taken from it.
    let added_in_guest = guest.total_reaches(full + (MOST - BOOT) * 95 / 100, begin)?;
    let seconds = |time: Duration| time.as_secs_f64();
    Ok(Round {
        booted: seconds(booted),
        first_effect: seconds(first_effect),
        shrink: seconds(shrink),
        returned: seconds(returned),
        returned_in_guest: seconds(returned_in_guest),
        added: seconds(added),
        added_in_guest: seconds(added_in_guest),
        resident_before,
        resident_after,
    })
}

/// How long after the start of the process a target set at once has its first effect. It is
/// repeated, since a peer may forget one that comes before the guest's driver.
fn first_effect(guest: &mut Contestant) -> Result<Duration> {
    while guest.actual()? == BOOT {
        guest.set_target(FIRST_TARGET)?;
        ensure!(guest.started.elapsed() < 2 * PATIENCE, "a target has no effect");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(guest.started.elapsed())
}

fn table(results: &[(Peer, Round)]) {
    type Column = (&'static str, fn(&Round) -> f64);
    let columns: [Column; 7] = [
        ("boot until the guest is up (its own clock)", |round| round.booted),
        ("start until a target has an effect", |round| round.first_effect),
        ("3 GiB ballooned", |round| round.shrink),
        ("3 GiB returned", |round| round.returned),
        ("3 GiB returned, MemTotal", |round| round.returned_in_guest),
        ("3 GiB hot-added", |round| round.added),
        ("3 GiB hot-added, MemTotal", |round| round.added_in_guest),
    ];
    let of = |peer: Peer| results.iter().filter(move |(of, _)| *of == peer).map(|(_, round)| round);
    println!("\n{:<44}{:>22}{:>22}", "median (least to most)", "hvb", "QEMU hv-balloon");
    for (name, value) in columns {
        let cell = |peer| spread(of(peer).map(value).collect());
        println!("{name:<44}{:>22}{:>22}", cell(Peer::Hvb), cell(Peer::Qemu));
    }
    for (name, value) in [
        ("resident before the shrink, MiB", (|round| round.resident_before) as fn(&Round) -> u64),
        ("resident after it, MiB", |round| round.resident_after),
    ] {
        let cell = |peer| {
            let mut sizes: Vec<u64> = of(peer).map(|round| value(round) / MIB).collect();
            sizes.sort_unstable();
            sizes.get(sizes.len() / 2).map_or_else(String::new, u64::to_string)
        };
        println!("{name:<44}{:>22}{:>22}", cell(Peer::Hvb), cell(Peer::Qemu));
    }
}

fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    match (values.first(), values.get(values.len() / 2), values.last()) {
        (Some(least), Some(median), Some(most)) => format!("{median:.3} ({least:.2}-{most:.2})"),
        _ => String::new(),
    }
}
