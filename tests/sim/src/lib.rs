#![forbid(unsafe_code)]
//! Simulation of the VSP, the bus and guests in one thread and in virtual time, driven by a seed.
//!
//! A run ([`run`]) is a machine with a guest, honest or hostile, and an operator. One generator
//! chooses among everything that can happen next, so that a seed determines the run.
//! `docs/simulation.md` says what is simulated and what must hold.
//!
//! Reading order: `world` (what can happen), `oracle` and `watch` (what must hold), `host` (the
//! loop around VSP and bus), `guest`, `vice` (the misbehaviour of hostile guests).

mod dice;
mod guest;
mod host;
mod memory;
mod moving;
mod noise;
mod oracle;
mod setup;
mod synic;
mod tally;
mod trace;
mod vice;
mod watch;
mod world;

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use oracle::Oracle;
pub use tally::Tally;
pub use vice::Vice;

use trace::Trace;
use world::World;

/// The environment variable that names the seed to replay.
pub const SEED: &str = "HV_BALLOON_SEED";

/// The environment variable that lists the vices of the guest to replay, separated by commas, if
/// they do not come from the seed.
pub const VICES: &str = "HV_BALLOON_VICES";

/// A run in which something did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// The guest's vices, if they do not come from the seed.
    pub vices: Option<Vec<Vice>>,
    /// What did not hold.
    pub what: String,
    /// The trace up to that point, oldest line first.
    pub trace: Vec<String>,
}

/// Makes the run of a seed.
///
/// # Errors
/// What did not hold, with the trace of a second run.
pub fn run(seed: u64) -> Result<Tally, Box<Failure>> {
    run_with(seed, None)
}

/// Makes the run of a seed, but with a guest that has exactly these vices; without any, it is
/// honest.
///
/// # Errors
/// What did not hold, with the trace of a second run.
pub fn run_with(seed: u64, vices: Option<&[Vice]>) -> Result<Tally, Box<Failure>> {
    match attempt(seed, vices, &Trace::default()) {
        Ok(tally) => Ok(tally),
        Err(_) => replay(seed, vices).map(|(tally, _)| tally),
    }
}

/// Like [`run_with`], but also returns the trace.
///
/// # Errors
/// What did not hold.
pub fn replay(seed: u64, vices: Option<&[Vice]>) -> Result<(Tally, Vec<String>), Box<Failure>> {
    let trace = Trace::kept();
    match attempt(seed, vices, &trace) {
        Ok(tally) => Ok((tally, trace.lines())),
        Err(what) => {
            let vices = vices.map(<[Vice]>::to_vec);
            Err(Box::new(Failure { seed, vices, what, trace: trace.lines() }))
        }
    }
}

fn attempt(seed: u64, vices: Option<&[Vice]>, trace: &Trace) -> Result<Tally, String> {
    let run = || {
        let mut world = World::new(seed, vices, trace.clone());
        world.run();
        world.into_tally()
    };
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message").into()
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LAST: usize = 120;
        let hidden = self.trace.len().saturating_sub(LAST);
        if hidden > 0 {
            writeln!(f, "… {hidden} earlier lines")?;
        }
        for line in &self.trace[hidden..] {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        write!(f, "to replay it: {SEED}={}", self.seed)?;
        if let Some(vices) = &self.vices {
            let names: Vec<_> = vices.iter().map(|vice| vice.name()).collect();
            write!(f, " {VICES}=\"{}\"", names.join(","))?;
        }
        write!(f, " cargo test -p sim replay -- --nocapture")
    }
}
