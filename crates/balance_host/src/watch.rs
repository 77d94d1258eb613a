//! The watch over monitors of which nothing is wanted but reports: one thread for all of them.
//!
//! A VM's own thread attaches, asks and orders, which takes as long as the monitor likes. In between, it
//! leaves its [`Visit`] here. The watch does only what takes no time: it reads the socket once, and
//! notes what the report says if no command is needed for that. For anything else it calls the thread.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use qmp::Client;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::board::{Bell, Clock, STACK_BYTES, Slot, lock};
use crate::machine::{AttachError, Machine, Meaning};
use crate::rate::Rate;

/// A VM whose events are no reason to read it is read this often. Guests report each second, and each
/// report is a reason.
const PERIOD_MS: u64 = 1500;

/// At least so long lies between two looks for those who have not been heard of for that time.
const SWEEP_MS: u64 = 250;

/// Where monitors speak one after the other, the watch waits so long for the next ones: to wake up costs it
/// more than to hear what they say.
const PAUSE_MS: u64 = 14;

/// At most so many monitors that have something to say are taken at a time.
const BATCH: usize = 64;

/// A connection to a machine.
pub(crate) struct Visit {
    pub(crate) client: Client,
    pub(crate) machine: Machine,
    rate: Rate,
    /// When the machine is to be read at the latest.
    read_at_ms: u64,
}

impl Visit {
    /// Begins at a machine that has yet to be read.
    pub(crate) fn new(client: Client, machine: Machine) -> Self {
        Self { client, machine, rate: Rate::default(), read_at_ms: 0 }
    }

    /// Whether the machine is to be read.
    pub(crate) const fn is_due(&self, now_ms: u64) -> bool {
        now_ms >= self.read_at_ms
    }

    /// Has the machine read as soon as possible.
    pub(crate) const fn hurry(&mut self) {
        self.read_at_ms = 0;
    }

    /// The machine has been read.
    pub(crate) const fn was_read(&mut self, now_ms: u64) {
        self.read_at_ms = now_ms.saturating_add(PERIOD_MS);
    }

    /// Takes the events at hand; what the most important one means, and `None` if there are none.
    pub(crate) fn take_events(&mut self, now_ms: u64) -> Result<Option<Meaning>, AttachError> {
        let mut meaning = None;
        for event in self.client.events_at_hand()? {
            self.rate.event(now_ms)?;
            meaning = meaning.max(Some(self.machine.take(&event, now_ms)));
        }
        Ok(meaning)
    }
}

/// The watch. Its thread ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    poll: OwnedFd,
    visits: Mutex<HashMap<u64, Watched>>,
    last_token: AtomicU64,
}

/// When the watch does what.
#[derive(Debug, Default)]
struct Pace {
    /// When somebody last spoke.
    heard_at_ms: u64,
    /// Monitors speak one after the other.
    is_brisk: bool,
    /// When to look for those who have not been heard of.
    sweep_at_ms: u64,
}

impl Pace {
    /// So many spoke now. A pause that brought no more than one was in vain.
    const fn heard(&mut self, count: usize, now_ms: u64) {
        let is_close = now_ms.saturating_sub(self.heard_at_ms) < PAUSE_MS;
        self.is_brisk = count > 1 || (count == 1 && is_close && !self.is_brisk);
        if count > 0 {
            self.heard_at_ms = now_ms;
        }
    }
}

/// A visit that is watched over.
struct Watched {
    visit: Visit,
    slot: Arc<Slot>,
    /// What the VM's thread was called for.
    outcome: Option<Result<Meaning, AttachError>>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("client", &self.visit.client).finish_non_exhaustive()
    }
}

impl Watch {
    /// Starts the thread.
    pub(crate) fn start(clock: Clock, bell: Arc<Bell>) -> io::Result<Self> {
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let shared = Shared { poll, visits: Mutex::default(), last_token: AtomicU64::new(0) };
        let shared = Arc::new(shared);
        let seen = Arc::downgrade(&shared);
        let builder = Builder::new().name("reports".to_owned()).stack_size(STACK_BYTES);
        let thread = builder.spawn(move || {
            let mut pace = Pace::default();
            while let Some(shared) = seen.upgrade() {
                shared.round(clock, &bell, &mut pace);
            }
        })?;
        Ok(Self { shared, thread })
    }

    /// Whether there is no watch any more. It ends by itself only in a panic.
    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Watches over a visit until the VM's thread is called; what there is to do, if the call came from
    /// the monitor.
    pub(crate) fn over(
        &self,
        visit: Visit,
        slot: &Arc<Slot>,
    ) -> Result<(Visit, Meaning), AttachError> {
        let shared = &self.shared;
        let token = shared.last_token.fetch_add(1, Ordering::Relaxed);
        {
            // Whatever the monitor says from here on is looked for under the token.
            let mut visits = lock(&shared.visits);
            epoll::add(&shared.poll, &visit.client, EventData::new_u64(token), EventFlags::IN)
                .map_err(|e| AttachError::Unfit(format!("cannot wait for its monitor: {e}")))?;
            visits.insert(token, Watched { visit, slot: Arc::clone(slot), outcome: None });
        }
        slot.wait(None);
        let watched = lock(&shared.visits).remove(&token);
        let Some(Watched { visit, outcome, .. }) = watched else {
            return Err(AttachError::Unfit("its monitor is not watched any more".to_owned()));
        };
        if outcome.is_none() {
            shared.let_go(&visit);
        }
        Ok((visit, outcome.unwrap_or(Ok(Meaning::Nothing))?))
    }
}

impl Shared {
    /// Waits for monitors and takes what they say.
    fn round(&self, clock: Clock, bell: &Bell, pace: &mut Pace) {
        if pace.is_brisk {
            thread::sleep(Duration::from_millis(PAUSE_MS));
        }
        let mut ready = Vec::with_capacity(BATCH);
        let patience_ms = pace.sweep_at_ms.saturating_sub(clock.now_ms()).min(PERIOD_MS);
        let patience = Timespec::try_from(Duration::from_millis(patience_ms)).ok();
        // Woken by a signal is woken for nothing.
        let _ = epoll::wait(&self.poll, spare_capacity(&mut ready), patience.as_ref());
        let now_ms = clock.now_ms();
        pace.heard(ready.len(), now_ms);
        let mut visits = lock(&self.visits);
        for event in ready {
            // It may have been taken back meanwhile.
            let Some(watched) = visits.get_mut(&event.data.u64()) else { continue };
            match watched.take(now_ms, bell) {
                Ok(Meaning::Nothing) => {}
                outcome => self.call(watched, outcome),
            }
        }
        if now_ms >= pace.sweep_at_ms {
            let mut next_ms = now_ms.saturating_add(PERIOD_MS);
            for watched in visits.values_mut() {
                if watched.visit.is_due(now_ms) {
                    self.call(watched, Ok(Meaning::Read));
                } else {
                    next_ms = next_ms.min(watched.visit.read_at_ms);
                }
            }
            pace.sweep_at_ms = next_ms.max(now_ms.saturating_add(SWEEP_MS));
        }
    }

    /// Calls the VM's thread.
    fn call(&self, watched: &mut Watched, outcome: Result<Meaning, AttachError>) {
        if watched.outcome.is_none() {
            // What else the monitor says is the thread's affair.
            self.let_go(&watched.visit);
            watched.outcome = Some(outcome);
            watched.slot.tell(|_| {});
        }
    }

    fn let_go(&self, visit: &Visit) {
        if let Err(error) = epoll::delete(&self.poll, &visit.client) {
            tracing::error!("cannot stop waiting for a monitor: {error}");
        }
    }
}

impl Watched {
    /// Takes what the monitor has said; what is left to do.
    fn take(&mut self, now_ms: u64, bell: &Bell) -> Result<Meaning, AttachError> {
        let visit = &mut self.visit;
        let Some(meaning) = visit.take_events(now_ms)? else {
            visit.rate.empty(now_ms)?;
            return Ok(Meaning::Nothing);
        };
        if meaning == Meaning::Read
            && let Some(reading) = visit.machine.at_hand(now_ms)
        {
            visit.was_read(now_ms);
            self.slot.publish(reading, bell);
            return Ok(Meaning::Nothing);
        }
        Ok(meaning)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many reports a second, evenly spread, the number of times that the watch wakes up.
    fn wakes(reports: u64) -> u64 {
        let at = |report: u64| report * 1000 / reports;
        let (mut pace, mut taken, mut wakes, mut now) = (Pace::default(), 0, 0, 0);
        while taken < reports {
            if pace.is_brisk {
                now += PAUSE_MS;
                wakes += 1;
            }
            if at(taken) > now {
                now = at(taken);
                wakes += 1;
            }
            let before = taken;
            while taken < reports && at(taken) <= now {
                taken += 1;
            }
            pace.heard(usize::try_from(taken - before).unwrap(), now);
        }
        wakes
    }

    #[test]
    fn many_reports_are_taken_together_and_few_cost_no_more_than_one_wake_each() {
        assert!(wakes(1) <= 1 && wakes(20) <= 20 && wakes(50) <= 50, "{}", wakes(50));
        for reports in [60, 70, 100] {
            assert!(wakes(reports) <= reports + reports / 2, "{reports}: {}", wakes(reports));
        }
        assert!(wakes(200) <= 90 && wakes(900) <= 90, "{} {}", wakes(200), wakes(900));
    }
}
