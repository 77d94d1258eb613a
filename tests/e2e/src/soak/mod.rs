//! A real guest that is resized, reset and left by its driver at random for as long as asked, with
//! its memory and its host under watch: what `cargo xtask soak` runs.
//!
//! All that is random follows from seed and number of the step. What a guest makes of it depends on
//! the machine, so that a seed gives the same steps again, not the same run.
//!
//! After each step:
//!
//! - the checker in the guest has verified all its memory and its file;
//! - the device's books add up, the guest's `MemTotal` agrees with them, and no fault was counted;
//! - the host provides no more memory for the guest than it has by the books;
//! - no machine was reset that was not to be, `hvb` has nothing to complain of, and its own memory,
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

/// What the guest boots with, and the range of its targets. The least is about what its kernel and
/// the checker need; it may well stop before.
const BOOT: u64 = 512 * MIB;
const MOST: u64 = 1536 * MIB;
const LEAST: u64 = 224 * MIB;

/// How much more memory than by the books the host may provide for a guest: where a huge page of
/// the host is partly ballooned, the next touch of it may bring all of it back.
const OVER_THE_BOOKS: u64 = 32 * MIB;

/// How much more memory of its own `hvb` may have than after the warm-up: at the end, with nothing
/// ballooned as at the start, and ever.
const MORE_PRIVATE_AT_END: u64 = MIB;
const MORE_PRIVATE_EVER: u64 = 4 * MIB;

/// How many steps are shown when something is wrong.
const TRAIL: usize = 30;

/// How many steps are taken again when emulation lost a guest.
const TAKEN_AGAIN: u64 = 10;

/// The time for which emulation may lose a guest once, on average.
const PER_LOSS: Duration = Duration::from_secs(200);

/// How often a soak that shows its progress says how far it is.
const PROGRESS: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What all chance follows from.
    pub seed: u64,
    /// When to end.
    pub limit: Limit,
    /// Whether the guest keeps its size over a reset.
    pub keep_size: bool,
    /// What backs the guest's memory, as in [`VmConfig`](crate::VmConfig).
    pub hugepages: Option<&'static str>,
    /// Whether to say now and then how far it is.
    pub progress: bool,
}

/// When a soak ends, unless something is wrong.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// After so much time, warm-up and all.
    Time(Duration),
    /// After so many steps.
    Steps(u64),
}

/// Does it, and prints the table of what it came to; ends early where `stop` is set.
///
/// # Errors
///
/// Something is wrong: seed and last steps were printed.
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
        println!("wrong, with seed {}: {error:#}", plan.seed);
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
    /// Steps before this one are taken again, as emulation lost the guest at it.
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

    /// One guest, from its boot to the soak's end, or its own.
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

    /// Takes the last steps again with another guest if emulation lost this one, unless that was so
    /// at the same place before, or too often.
    fn go_on_after(&mut self, loss: Option<Loss>, error: Error) -> Result<()> {
        let Some(loss) = loss else { return Err(error) };
        let words = format!("step {}: {loss}: {error:#}", self.next);
        println!("  lost a guest, as emulation may: {words}");
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

    /// Whether it ends now. Steps that are to be taken again are, whatever the time.
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
