//! One VM's monitor, on a thread of its own.
//!
//! The thread connects, asks and orders; in between, the [watch](crate::watch) takes the guest's reports. Whatever
//! the monitor does, nobody waits but this thread: an answer has a time limit, a message a length, messages a rate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::board::{Bell, Clock, Process, STACK_BYTES, Slot};
use crate::machine::{AttachError, Machine, Meaning};
use crate::reading::{Link, short};
use crate::watch::{Visit, Watch};
use qmp::{Client, ClientError};

/// The time limit for an answer. A busy QEMU takes seconds.
const ANSWER: Duration = Duration::from_secs(5);

/// The longest message accepted. The longest needed, QEMU's list of devices, has a few KB.
const MAX_MESSAGE_BYTES: usize = 256 << 10;

/// The pauses between attempts to connect double from the first to the last.
const FIRST_PAUSE_MS: u64 = 250;
const LAST_PAUSE_MS: u64 = 8000;

/// A VM's thread and what it shares with the loop.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) slot: Arc<Slot>,
    thread: JoinHandle<()>,
}

impl Session {
    /// Starts the thread for the VM behind `socket`.
    pub(crate) fn start(name: &str, socket: &Path, common: Common) -> io::Result<Self> {
        let slot = Arc::<Slot>::default();
        let shared = Arc::clone(&slot);
        let mut attendant =
            Attendant { name: name.to_owned(), socket: socket.to_owned(), slot: shared, common };
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

/// What all sessions have in common.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) clock: Clock,
    pub(crate) bell: Arc<Bell>,
    pub(crate) watch: Arc<Watch>,
    /// Change nothing.
    pub(crate) dry: bool,
}

struct Attendant {
    name: String,
    socket: PathBuf,
    slot: Arc<Slot>,
    common: Common,
}

impl Attendant {
    fn run(&mut self) {
        let mut pause_ms = FIRST_PAUSE_MS;
        while !self.slot.lock().end {
            let begun_ms = self.now_ms();
            match self.attend() {
                Ok(()) => return,
                Err(error) => self.set_link(link_of(&error)),
            }
            // A connection that lasted was no failed attempt.
            if self.now_ms().saturating_sub(begun_ms) > LAST_PAUSE_MS {
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
        let until_ms = self.now_ms().saturating_add(pause_ms);
        loop {
            let left_ms = until_ms.saturating_sub(self.now_ms());
            let mut state = self.slot.lock();
            if std::mem::take(&mut state.hurry) || state.end {
                return true;
            }
            drop(state);
            if left_ms == 0 {
                return false;
            }
            self.slot.wait(Some(Duration::from_millis(left_ms)));
        }
    }

    fn now_ms(&self) -> u64 {
        self.common.clock.now_ms()
    }

    /// Connects, and attends to the VM until the end.
    fn attend(&mut self) -> Result<(), AttachError> {
        let mut client = Client::connect_limited(&self.socket, ANSWER, MAX_MESSAGE_BYTES)?;
        self.meet(client.server_process());
        let machine = Machine::attach(&mut client, self.common.dry)?;
        self.slot.lock().kind = machine.describe();
        let mut visit = Visit::new(client, machine);
        loop {
            if self.carry_out(&mut visit.client)? {
                // What it has now decides what others can have.
                visit.machine.disturb();
                visit.hurry();
            }
            let is_over = {
                let state = self.slot.lock();
                state.end && state.pending().is_none()
            };
            if is_over {
                visit.machine.detach(&mut visit.client);
                return Ok(());
            }
            if visit.is_due(self.now_ms()) {
                self.read(&mut visit)?;
                visit.was_read(self.now_ms());
            }
            // An answer may have brought events with it.
            let mut meaning = visit.take_events(self.now_ms())?.unwrap_or(Meaning::Nothing);
            if meaning == Meaning::Nothing {
                visit.machine.caught_up();
                (visit, meaning) = self.common.watch.over(visit, &self.slot)?;
            }
            match meaning {
                Meaning::Nothing => {}
                Meaning::Read => visit.hurry(),
                Meaning::Reset => {
                    visit.machine.reset();
                    self.slot.lock().begin_life();
                    visit.hurry();
                }
            }
        }
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

    fn read(&self, visit: &mut Visit) -> Result<(), AttachError> {
        match visit.machine.read(&mut visit.client, || self.now_ms()) {
            Ok(reading) => {
                self.set_link(Link::Up);
                self.slot.publish(reading, &self.common.bell);
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
