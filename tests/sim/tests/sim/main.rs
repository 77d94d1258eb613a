//! Simulated runs, which `docs/simulation.md` describes.

mod guests;
mod replay;
mod runs;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use sim::{Tally, Vice};

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Makes the runs of `runs` seeds on all cores, and panics with the first failure. The guests have
/// these vices or, with `None`, those that the seeds determine.
fn make(first: u64, runs: u64, vices: Option<&[Vice]>) -> Tally {
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
            match sim::run_with(first.wrapping_add(n), vices) {
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
