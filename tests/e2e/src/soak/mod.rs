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
//! - no machine was reset unexpectedly, `hvb` has logged no problem, and its own memory,
//!   descriptors, threads and mappings are no more than at the start.

mod dice;
mod footprint;
mod loss;
mod session;
mod steps;
mod tally;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail, ensure};

use crate::MIB;
use dice::Dice;
use loss::Loss;
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

/// How many steps are printed on a failure.
const TRAIL: usize = 30;

/// How many steps are repeated after the emulation lost a guest.
const TAKEN_AGAIN: u64 = 10;

/// The average time in which the emulation may lose one guest.
const PER_LOSS: Duration = Duration::from_secs(200);

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
        again_until: None,
    };
    let outcome = soak.run(stop);
    println!("{}", soak.headline());
    print!("{}", soak.tally);
    if let Err(error) = &outcome {
        println!("failed, with seed {}: {error:#}", plan.seed);
        println!("the last {} steps:", soak.trail.len());
        soak.trail.iter().for_each(|line| println!("  {line}"));
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
    /// Steps before this one are repeated, because the emulation lost the guest at it.
    again_until: Option<u64>,
}

impl Soak {
    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !self.is_over(stop) {
            let mut session = None;
            let outcome = self.guest(&mut session, stop);
            let Err(error) = outcome else { return Ok(()) };
            let loss = match session.as_mut() {
                Some(session) => session.lost(),
                None => None,
            };
            self.go_on_after(loss, error)?;
        }
        Ok(())
    }

    /// Runs one guest, until the soak ends or the guest is lost.
    fn guest(&mut self, slot: &mut Option<Session>, stop: &AtomicBool) -> Result<()> {
        let session = slot.insert(Session::start(&self.plan)?);
        self.tally.host.begin_anew();
        session.warm_up(&mut self.tally).context("while warming up")?;
        let mut shown = Instant::now();
        while !self.is_over(stop) {
            self.step(session)?;
            if self.plan.progress && shown.elapsed() > PROGRESS {
                shown = Instant::now();
                println!("  {}", self.progress());
            }
        }
        session.wind_up(&mut self.tally).context("at the end")?;
        slot.take().map_or(Ok(()), Session::end)
    }

    fn step(&mut self, session: &mut Session) -> Result<()> {
        let number = self.next;
        let step = Step::choose(&mut Dice::new(self.plan.seed, number), session.is_worn_out());
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

    /// Repeats the last steps with another guest if the emulation lost this one, unless that
    /// happened at the same place before, or too often.
    fn go_on_after(&mut self, loss: Option<Loss>, error: Error) -> Result<()> {
        let Some(loss) = loss else { return Err(error) };
        let words = format!("step {}: {loss}: {error:#}", self.next);
        println!("  lost a guest, as can happen in emulation: {words}");
        self.tally.losses.push(words);
        let allowed = 1 + self.begin.elapsed().as_secs() / PER_LOSS.as_secs();
        if self.again_until.is_some_and(|until| self.next <= until) {
            bail!("lost a second guest at the same steps: {error:#}");
        }
        ensure!(self.tally.losses.len() as u64 <= allowed, "lost too many guests: {error:#}");
        self.again_until = Some(self.next);
        self.next = self.next.saturating_sub(TAKEN_AGAIN);
        Ok(())
    }

    /// Whether the soak ends now. Steps that must be repeated come first, whatever the time.
    fn is_over(&self, stop: &AtomicBool) -> bool {
        if stop.load(Ordering::Relaxed) {
            return true;
        }
        let again = self.again_until.is_some_and(|until| self.next <= until);
        !again
            && match self.plan.limit {
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
             after a reset",
            time / 60,
            time % 60,
            self.plan.seed,
            BOOT / MIB,
            LEAST / MIB,
            MOST / MIB,
            if self.plan.keep_size { "its own size" } else { "boot size" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soak(next: u64) -> Soak {
        let plan = Plan {
            seed: 1,
            limit: Limit::Steps(100),
            keep_size: false,
            hugepages: None,
            progress: false,
        };
        Soak {
            plan,
            begin: Instant::now(),
            tally: Tally::default(),
            trail: VecDeque::new(),
            next,
            again_until: None,
        }
    }

    #[test]
    fn what_is_no_loss_to_emulation_ends_the_soak() {
        let mut soak = soak(50);
        assert!(soak.go_on_after(None, Error::msg("x")).is_err());
    }

    #[test]
    fn a_loss_is_made_good_by_the_same_steps_and_ends_the_soak_if_it_comes_back() {
        let mut soak = soak(50);
        soak.go_on_after(Some(Loss::Silence), Error::msg("x")).unwrap();
        assert_eq!((soak.next, soak.tally.losses.len()), (50 - TAKEN_AGAIN, 1));
        soak.next = 49;
        let error = soak.go_on_after(Some(Loss::Silence), Error::msg("x")).unwrap_err();
        assert!(error.to_string().contains("at the same steps"), "{error}");
    }

    #[test]
    fn too_many_losses_end_the_soak() {
        let mut soak = soak(50);
        soak.go_on_after(Some(Loss::TripleFault), Error::msg("x")).unwrap();
        soak.next = 80;
        let error = soak.go_on_after(Some(Loss::TripleFault), Error::msg("x")).unwrap_err();
        assert!(error.to_string().contains("too many"), "{error}");
    }

    #[test]
    fn steps_that_are_to_be_taken_again_are_also_when_time_is_up() {
        let never = AtomicBool::new(false);
        let mut soak = soak(100);
        assert!(soak.is_over(&never));
        soak.again_until = Some(100);
        assert!(!soak.is_over(&never) && soak.is_over(&AtomicBool::new(true)));
        soak.next = 101;
        assert!(soak.is_over(&never));
    }
}
