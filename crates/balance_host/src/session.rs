//! One VM's monitor, on a thread of its own.
//!
//! The thread waits for the monitor and for the loop, and for nothing else. Whatever the monitor does,
//! it costs this thread only: an answer has a time limit, a message a length, and messages a rate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use qmp::{Client, ClientError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::board::{Bell, Clock, Process, Slot};
use crate::machine::{AttachError, Machine, Meaning};
use crate::reading::{Link, short};

/// The time limit for an answer. A busy QEMU takes seconds.
const ANSWER: Duration = Duration::from_secs(5);

/// The longest message accepted. The longest needed, QEMU's list of devices, has a few KB.
const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// A VM whose events are no reason to read it is read this often. Guests report each second, and each
/// report is a reason.
const PERIOD_MS: u64 = 1500;

/// The pauses between attempts to connect double from the first to the last.
const FIRST_PAUSE_MS: u64 = 250;
const LAST_PAUSE_MS: u64 = 8000;

/// A monitor that wakes this thread more often than this in a second is cut off. One that shrinks its
/// guest as fast as it can sends some fifty messages.
const MAX_WAKES: u32 = 200;

/// The same for events, of which many may come at one time.
const MAX_EVENTS: u32 = 4000;

/// Events are taken for so long before the thread looks at what else there is to do.
const EVENTS_MS: u64 = 100;

const STACK_BYTES: usize = 256 << 10;

/// A VM's thread and what it shares with the loop.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) slot: Arc<Slot>,
    thread: JoinHandle<()>,
}

impl Session {
    /// Starts the thread for the VM behind `socket`.
    pub(crate) fn start(
        name: &str,
        socket: &Path,
        (clock, bell, dry): (Clock, Arc<Bell>, bool),
    ) -> io::Result<Self> {
        let slot = Arc::new(Slot::new()?);
        let shared = Arc::clone(&slot);
        let mut attendant = Attendant {
            name: name.to_owned(),
            socket: socket.to_owned(),
            slot: shared,
            clock,
            bell,
            dry,
        };
        let builder = Builder::new().name("vm".to_owned()).stack_size(STACK_BYTES);
        let thread = builder.spawn(move || attendant.run())?;
        Ok(Self { slot, thread })
    }

    /// Asks the thread to end.
    pub(crate) fn end(&self) {
        self.slot.tell(|state| state.end = true);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

struct Attendant {
    name: String,
    socket: PathBuf,
    slot: Arc<Slot>,
    clock: Clock,
    bell: Arc<Bell>,
    dry: bool,
}

impl Attendant {
    fn run(&mut self) {
        let mut pause_ms = FIRST_PAUSE_MS;
        while !self.slot.lock().end {
            let begun_ms = self.clock.now_ms();
            match self.attend() {
                Ok(()) => return,
                Err(error) => self.set_link(link_of(&error)),
            }
            // A connection that lasted was no failed attempt.
            if self.clock.now_ms().saturating_sub(begun_ms) > LAST_PAUSE_MS {
                pause_ms = FIRST_PAUSE_MS;
            }
            if self.rest(pause_ms) {
                pause_ms = FIRST_PAUSE_MS;
            } else {
                pause_ms = pause_ms.saturating_mul(2).min(LAST_PAUSE_MS);
            }
        }
    }

    /// Waits before the next attempt; whether somebody said that it is time.
    fn rest(&self, pause_ms: u64) -> bool {
        let until_ms = self.clock.now_ms().saturating_add(pause_ms);
        loop {
            let left_ms = until_ms.saturating_sub(self.clock.now_ms());
            let mut state = self.slot.lock();
            if std::mem::take(&mut state.hurry) || state.end {
                return true;
            }
            drop(state);
            if left_ms == 0 {
                return false;
            }
            self.wait(None, left_ms);
        }
    }

    /// Connects, and attends to the VM until the end.
    fn attend(&mut self) -> Result<(), AttachError> {
        let mut client = Client::connect_limited(&self.socket, ANSWER, MAX_MESSAGE_BYTES)?;
        self.meet(client.server_process());
        let mut machine = Machine::attach(&mut client, self.dry)?;
        self.slot.lock().kind = machine.describe();
        let mut rate = Rate::default();
        let mut read_at_ms = self.clock.now_ms();
        loop {
            if self.carry_out(&mut client)? {
                // What it has now decides what others can have.
                machine.disturb();
                read_at_ms = 0;
            }
            let is_over = {
                let state = self.slot.lock();
                state.end && state.pending().is_none()
            };
            if is_over {
                machine.detach(&mut client);
                return Ok(());
            }
            let now_ms = self.clock.now_ms();
            if now_ms >= read_at_ms {
                self.read(&mut machine, &mut client)?;
                read_at_ms = self.clock.now_ms().saturating_add(PERIOD_MS);
            }
            // An answer may have brought events with it.
            let mut meaning = self.events(&mut machine, &mut client, &mut rate)?;
            if meaning == Meaning::Nothing {
                machine.caught_up();
                let left_ms = read_at_ms.saturating_sub(self.clock.now_ms());
                if self.wait(Some(&client), left_ms) {
                    rate.woken(self.clock.now_ms())?;
                    meaning = self.events(&mut machine, &mut client, &mut rate)?;
                }
            }
            match meaning {
                Meaning::Nothing => {}
                Meaning::Read => read_at_ms = 0,
                Meaning::Reset => {
                    machine.reset();
                    self.slot.lock().begin_life();
                    read_at_ms = 0;
                }
            }
        }
    }

    /// Takes the events that are there, for [`EVENTS_MS`] at most; what the most important one means.
    fn events(
        &self,
        machine: &mut Machine,
        client: &mut Client,
        rate: &mut Rate,
    ) -> Result<Meaning, AttachError> {
        let mut meaning = Meaning::Nothing;
        let until_ms = self.clock.now_ms().saturating_add(EVENTS_MS);
        while let Some(event) = client.next_event(Duration::ZERO)? {
            rate.event(self.clock.now_ms())?;
            match machine.take(&event, self.clock.now_ms()) {
                Meaning::Nothing => {}
                Meaning::Read if meaning == Meaning::Reset => {}
                other => meaning = other,
            }
            if self.clock.now_ms() >= until_ms {
                // The others are taken after the next answer.
                return Ok(if meaning == Meaning::Nothing { Meaning::Read } else { meaning });
            }
        }
        Ok(meaning)
    }

    /// Notes whose monitor this is. Another process is another VM.
    fn meet(&self, pid: Option<u32>) {
        let mut state = self.slot.lock();
        let before = state.process.as_ref().map(|process| process.pid);
        if state.life == 0 || pid.is_none() || before != pid {
            state.begin_life();
            state.process = pid.map(Process::new);
        }
    }

    fn read(&self, machine: &mut Machine, client: &mut Client) -> Result<(), AttachError> {
        match machine.read(client, || self.clock.now_ms()) {
            Ok(reading) => {
                self.set_link(Link::Up);
                let is_urgent = self.slot.lock().publish(reading);
                if is_urgent {
                    self.bell.ring(|calls| calls.decide = true);
                }
                Ok(())
            }
            // The monitor is well, and its guest may be later.
            Err(error @ ClientError::Command { .. }) => {
                self.set_link(Link::Down(short(&error.to_string())));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Carries the order out that waits; whether there was one.
    fn carry_out(&self, client: &mut Client) -> Result<bool, AttachError> {
        let pending = self.slot.lock().pending();
        let Some(target) = pending else { return Ok(false) };
        let refusal = match Machine::order(client, target.kib) {
            Ok(()) => None,
            Err(ClientError::Command { desc, .. }) => Some(short(&desc)),
            Err(error) => return Err(error.into()),
        };
        self.slot.lock().carried_out(target, refusal);
        Ok(true)
    }

    /// Waits for the loop, or for the monitor; whether it was the monitor.
    fn wait(&self, client: Option<&Client>, ms: u64) -> bool {
        let wake = self.slot.wake();
        let mut watched = [
            PollFd::from_borrowed_fd(wake, PollFlags::IN),
            match client {
                Some(client) => PollFd::new(client, PollFlags::IN),
                None => PollFd::from_borrowed_fd(wake, PollFlags::empty()),
            },
        ];
        let ms = i64::try_from(ms).unwrap_or(i64::MAX);
        let timeout = Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 };
        // Woken for nothing is as good as woken by a signal.
        let _ = poll(&mut watched, Some(&timeout));
        let [wake, monitor] = watched.map(|fd| fd.revents());
        if !wake.is_empty() {
            self.slot.awake();
        }
        client.is_some() && !monitor.is_empty()
    }

    fn set_link(&self, link: Link) {
        let mut state = self.slot.lock();
        if state.link == link {
            return;
        }
        // Once for each change, so that a VM that is away does not fill the log.
        match (&link, state.link.problem()) {
            (Link::Down(reason), _) => tracing::warn!("{}: {reason}", self.name),
            (Link::Gone(reason), _) => tracing::info!("{}: {reason}", self.name),
            (_, Some(_)) => tracing::info!("{}: its monitor answers again", self.name),
            _ => {}
        }
        if matches!(link, Link::Gone(_)) {
            // Whoever listens here next is another.
            state.begin_life();
            state.process = None;
        }
        state.link = link;
    }
}

fn link_of(error: &AttachError) -> Link {
    match error {
        AttachError::Client(ClientError::NoSocket { .. } | ClientError::NobodyListens { .. }) => {
            Link::Gone(short(&error.to_string()))
        }
        _ => Link::Down(short(&error.to_string())),
    }
}

/// Counts how often the monitor wakes this thread, and its events.
#[derive(Debug, Default)]
struct Rate {
    second: u64,
    wakes: u32,
    events: u32,
}

impl Rate {
    fn woken(&mut self, now_ms: u64) -> Result<(), AttachError> {
        self.count(now_ms, 1, 0)
    }

    fn event(&mut self, now_ms: u64) -> Result<(), AttachError> {
        self.count(now_ms, 0, 1)
    }

    fn count(&mut self, now_ms: u64, wakes: u32, events: u32) -> Result<(), AttachError> {
        let second = now_ms / 1000;
        if self.second != second {
            *self = Self { second, wakes: 0, events: 0 };
        }
        self.wakes += wakes;
        self.events += events;
        if self.wakes <= MAX_WAKES && self.events <= MAX_EVENTS {
            return Ok(());
        }
        let text = "its monitor sends without end and was cut off";
        Err(AttachError::Unfit(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_that_floods_is_cut_off_and_one_that_is_busy_is_not() {
        let mut rate = Rate::default();
        for second in 0..5 {
            for _ in 0..MAX_WAKES {
                rate.woken(second * 1000).unwrap();
            }
            for _ in 0..MAX_EVENTS {
                rate.event(second * 1000 + 999).unwrap();
            }
        }
        let mut other = Rate { second: 4, wakes: 0, events: MAX_EVENTS };
        for error in [rate.woken(4999), other.event(4999)] {
            assert!(error.unwrap_err().to_string().contains("cut off"));
        }
    }
}
