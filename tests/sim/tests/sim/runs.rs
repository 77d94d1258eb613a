//! The runs: a hundred thousand seeds, or one of them again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use hv_balloon::StateName;
use sim::{SEED, Tally, Vice};

/// How many runs there are.
const RUNS: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// `HV_BALLOON_SEED=N` names the run; without it there is nothing to do.
#[test]
fn replay() {
    let Some(seed) = number(SEED) else { return };
    match sim::replay(seed) {
        Ok((_, trace)) => println!("{}\nseed {seed}: all held", trace.join("\n")),
        Err(failure) => {
            failure.trace.iter().for_each(|line| println!("{line}"));
            panic!("seed {seed}: {}", failure.what);
        }
    }
}

/// `HV_BALLOON_RUNS=N` makes another number of runs, `HV_BALLOON_FIRST=N` begins with another seed.
#[test]
fn all_holds_in_every_run() {
    let runs = number("HV_BALLOON_RUNS").unwrap_or(RUNS);
    let first = number("HV_BALLOON_FIRST").unwrap_or(0);
    let start = Instant::now();
    let tally = make(first, runs);
    println!("{tally}{runs} runs in {:.1} s", start.elapsed().as_secs_f64());
    if runs >= RUNS {
        gets_about(&tally);
    }
}

/// Makes the runs on all cores and ends with the first failure.
fn make(first: u64, runs: u64) -> Tally {
    let next = AtomicU64::new(0);
    let total = Mutex::new(Tally::default());
    let failure = Mutex::new(None);
    let work = || {
        let mut tally = Tally::default();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= runs || failure.lock().unwrap().is_some() {
                break total.lock().unwrap().add(&tally);
            }
            match sim::run(first.wrapping_add(n)) {
                Ok(seen) => tally.add(&seen),
                Err(found) => *failure.lock().unwrap() = Some(found),
            }
        }
    };
    thread::scope(|scope| {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    if let Some(failure) = failure.into_inner().unwrap() {
        panic!("\n{failure}");
    }
    total.into_inner().unwrap()
}

/// A simulation that gets nowhere finds nothing: all of these must have been come across.
fn gets_about(tally: &Tally) {
    for state in StateName::ALL {
        assert!(tally.states(state) > 0, "never {state}");
    }
    for vice in Vice::ALL {
        assert!(tally.count("vice", vice.name()) > 0, "no guest {}", vice.name());
    }
}
