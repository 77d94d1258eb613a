//! The soak, run by `cargo xtask soak`: a real guest is resized and reset and has its driver
//! reloaded, at random and for as long as asked, with its memory and its host under observation.
//!
//! All random choices follow from the seed and the step number. How a guest reacts depends on the
//! machine, so a seed repeats the same steps, but not the same run.
//!
//! After each step:
//!
//! - the checker in the guest has verified all its memory and its file;
//! - the device's books add up, the guest's `MemTotal` agrees with them, and no fault was counted;
//! - the host provides no more memory for the guest than the books say;
//! - with devices, the guest has answered pings and read from its disk what it had stored;
//! - no machine was reset unexpectedly, `hvb` has logged no problem, and its own memory,
//!   descriptors, threads and mappings are no more than at the start.

mod devices;
mod dice;
mod footprint;
mod session;
mod steps;
mod tally;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::MIB;
use dice::Dice;
use session::Session;
use steps::Step;
use tally::Tally;

/// The guest's boot size, and the range of its targets. The least is about what its kernel and the
/// checker need, so the guest may stop short of it.
const BOOT: u64 = 512 * MIB;
const MOST: u64 = 1536 * MIB;
const LEAST: u64 = 224 * MIB;

/// How much memory the host may provide beyond the books: if a huge page of the host is partly
/// ballooned, the next touch of it may bring all of it back.
const OVER_THE_BOOKS: u64 = 32 * MIB;

/// How much more memory of its own `hvb` may have than after the warm-up: at the end, when again
/// nothing is ballooned, and at any time.
const MORE_PRIVATE_AT_END: u64 = MIB;
const MORE_PRIVATE_EVER: u64 = 4 * MIB;

/// How much of that the host may have put into huge pages, beyond what there was after the warm-up: a
/// few of them, each for pages that are used and some that are not.
const MORE_PRIVATE_HUGE: u64 = 8 * MIB;

/// How many steps are printed on a failure.
const TRAIL: usize = 30;

/// How often a soak with progress reports prints one.
const PROGRESS: Duration = Duration::from_secs(30);

/// The plan of a soak.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed of all random choices.
    pub seed: u64,
    /// When to end.
    pub limit: Limit,
    /// Whether the guest keeps its size over a reset.
    pub keep_size: bool,
    /// The backing of the guest's memory, as in [`VmConfig`](crate::VmConfig).
    pub hugepages: Option<&'static str>,
    /// Whether the machine has a disk and a network card, which the guest uses all the time.
    pub devices: bool,
    /// Whether to print progress reports.
    pub progress: bool,
}

/// When a soak ends, unless it fails.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// After this time, including the warm-up.
    Time(Duration),
    /// After this many steps.
    Steps(u64),
}

impl Plan {
    /// The command that takes the same steps. It does not say which kernel the guest has.
    fn command(&self) -> String {
        let mut command = format!("cargo xtask soak --seed {}", self.seed);
        if let Limit::Time(time) = self.limit {
            command += &format!(" --minutes {}", time.as_secs().div_ceil(60));
        }
        if self.keep_size {
            command += " --keep-size";
        }
        if let Some(kind) = self.hugepages {
            command += &format!(" --hugepages {kind}");
        }
        if self.devices {
            command += " --devices";
        }
        command
    }
}

/// Runs a soak and prints the table of its results. Ends early once `stop` is set.
///
/// # Errors
///
/// A check failed; the seed and the last steps were printed.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<()> {
    let mut soak = Soak {
        plan: plan.clone(),
        begin: Instant::now(),
        tally: Tally::default(),
        trail: VecDeque::new(),
        next: 0,
    };
    let outcome = soak.run(stop);
    println!("{}", soak.headline());
    print!("{}", soak.tally);
    if let Err(error) = &outcome {
        println!("failed, with seed {}: {error:#}", plan.seed);
        println!("the last {} steps:", soak.trail.len());
        soak.trail.iter().for_each(|line| println!("  {line}"));
        println!("the same steps, if given the same kernel: {}", plan.command());
    }
    outcome
}

struct Soak {
    plan: Plan,
    begin: Instant,
    tally: Tally,
    trail: VecDeque<String>,
    /// The number of the next step.
    next: u64,
}

impl Soak {
    /// Runs a guest until the soak ends. If anything fails, dropping the session prints the guest's
    /// evidence.
    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut session = Session::start(&self.plan)?;
        session.warm_up(&mut self.tally).context("while warming up")?;
        let mut shown = Instant::now();
        while !self.is_over(stop) {
            self.step(&mut session)?;
            if self.plan.progress && shown.elapsed() > PROGRESS {
                shown = Instant::now();
                println!("  {}", self.progress());
            }
        }
        session.wind_up(&mut self.tally).context("at the end")?;
        session.end()
    }

    fn step(&mut self, session: &mut Session) -> Result<()> {
        let number = self.next;
        let step = Step::choose(
            &mut Dice::new(self.plan.seed, number),
            session.is_worn_out(),
            self.plan.devices,
        );
        let at = self.begin.elapsed().as_secs_f64();
        if self.trail.len() == TRAIL {
            self.trail.pop_front();
        }
        self.trail.push_back(format!("{number} at {at:.1} s: {step}"));
        self.tally.count(&step);
        session.take(&step, number, &mut self.tally).with_context(|| format!("step {number}"))?;
        self.next += 1;
        Ok(())
    }

    /// Whether the soak ends now.
    fn is_over(&self, stop: &AtomicBool) -> bool {
        stop.load(Ordering::Relaxed)
            || match self.plan.limit {
                Limit::Time(time) => self.begin.elapsed() >= time,
                Limit::Steps(steps) => self.next >= steps,
            }
    }

    fn progress(&self) -> String {
        let (time, tally) = (self.begin.elapsed().as_secs(), &self.tally);
        format!(
            "{}:{:02}  {} steps, {} resets, {} driver reloads, {} checks, {} mismatches",
            time / 60,
            time % 60,
            tally.steps(),
            tally.resets(),
            tally.reloads,
            tally.checks.asked,
            tally.checks.mismatches
        )
    }

    fn headline(&self) -> String {
        let time = self.begin.elapsed().as_secs();
        format!(
            "soak of {}:{:02} minutes, seed {}: a guest of 2 vCPUs, {} MiB at boot, {} to {} MiB, {} \
             after a reset{}",
            time / 60,
            time % 60,
            self.plan.seed,
            BOOT / MIB,
            LEAST / MIB,
            MOST / MIB,
            if self.plan.keep_size { "its own size" } else { "boot size" },
            if self.plan.devices { ", with a disk and a network card" } else { "" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(limit: Limit) -> Plan {
        Plan { seed: 7, limit, keep_size: false, hugepages: None, devices: false, progress: false }
    }

    #[test]
    fn a_soak_ends_after_its_steps_or_when_told_to() {
        let mut soak = Soak {
            plan: plan(Limit::Steps(100)),
            begin: Instant::now(),
            tally: Tally::default(),
            trail: VecDeque::new(),
            next: 99,
        };
        let never = AtomicBool::new(false);
        assert!(!soak.is_over(&never) && soak.is_over(&AtomicBool::new(true)));
        soak.next = 100;
        assert!(soak.is_over(&never));
    }

    #[test]
    fn the_command_that_repeats_has_all_of_the_plan() {
        assert_eq!(plan(Limit::Steps(20)).command(), "cargo xtask soak --seed 7");
        let mut plan = plan(Limit::Time(Duration::from_secs(600)));
        (plan.keep_size, plan.hugepages, plan.devices) = (true, Some("off"), true);
        let command =
            "cargo xtask soak --seed 7 --minutes 10 --keep-size --hugepages off --devices";
        assert_eq!(plan.command(), command);
    }
}
