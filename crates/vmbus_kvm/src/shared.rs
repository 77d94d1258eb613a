//! State that the host's threads share with vCPUs and devices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_hyperv::hypercall::Status;
use vmbus::Server;
use vmbus::protocol::ConnectionId;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[cfg(any(feature = "dynamic-memory", feature = "integration-services"))]
use crate::Stopped;
use crate::clock::Clock;
use crate::recording::Recording;
#[cfg(feature = "dynamic-memory")]
use crate::reporting::Reporting;
use crate::{StartError, Supervisor};

/// The bus, its clock, and the way to wake its thread.
pub(crate) struct Shared {
    server: Mutex<Server>,
    wake: EventFd,
    clock: Clock,
    gate: Mutex<Gate>,
    gate_opened: Condvar,
    stop: AtomicBool,
    stopped: AtomicBool,
    recording: Recording,
    /// Reads the guest's reference time, while there is a machine.
    reference: Mutex<Option<ReferenceClock>>,
    #[cfg(feature = "dynamic-memory")]
    pub(crate) reporting: Reporting,
    pub(crate) supervisor: Box<dyn Supervisor>,
}

impl Shared {
    pub(crate) fn new(server: Server, supervisor: impl Supervisor) -> Result<Self, StartError> {
        let wake = EventFd::new(EFD_NONBLOCK)
            .map_err(StartError::system("cannot create the eventfd that wakes the bus"))?;
        Ok(Self {
            server: Mutex::new(server),
            wake,
            clock: Clock::new(),
            gate: Mutex::default(),
            gate_opened: Condvar::new(),
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            recording: Recording::new(supervisor.records()),
            reference: Mutex::default(),
            #[cfg(feature = "dynamic-memory")]
            reporting: Reporting::default(),
            supervisor: Box::new(supervisor),
        })
    }

    /// The bus. Never hold this lock over a system call: vCPUs wait for it.
    pub(crate) fn server(&self) -> MutexGuard<'_, Server> {
        lock(&self.server)
    }

    pub(crate) fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    pub(crate) fn wake(&self) {
        // Fails only if 2^64 - 2 wake-ups are pending, and then one is pending.
        let _ = self.wake.write(1);
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Whether a later deadline comes by itself.
    pub(crate) fn time_passes(&self) -> bool {
        !self.clock.is_stopped()
    }

    /// Takes a message from the guest; the status is the result of the hypercall.
    pub(crate) fn post(&self, connection: ConnectionId, payload: &[u8]) -> Status {
        let status = self.bus_message(connection, payload);
        self.wake();
        status
    }

    pub(crate) const fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Calls a device on behalf of the VMM; waits while the host is paused.
    #[cfg(any(feature = "dynamic-memory", feature = "integration-services"))]
    pub(crate) fn command<T>(&self, command: impl FnOnce() -> T) -> Result<T, Stopped> {
        let gate = lock(&self.gate);
        let gate = self.gate_opened.wait_while(gate, |gate| gate.is_closed);
        // Held over the command, so that the gate does not close in the meantime.
        let gate = gate.unwrap_or_else(PoisonError::into_inner);
        if self.is_to_stop() {
            return Err(Stopped);
        }
        let result = command();
        drop(gate);
        self.wake();
        Ok(result)
    }

    /// As [`Shared::command`], for a command without a result, which is deferred while the host is
    /// paused.
    #[cfg(any(feature = "dynamic-memory", feature = "integration-services"))]
    pub(crate) fn command_later(&self, command: impl FnOnce() + Send + 'static) {
        let mut gate = lock(&self.gate);
        if self.is_to_stop() {
            return;
        }
        if gate.is_closed {
            gate.put_off.push(Box::new(command));
        } else {
            command();
            drop(gate);
            self.wake();
        }
    }

    /// Sets the clock of the machine that runs now, or of none.
    pub(crate) fn set_reference(&self, clock: Option<ReferenceClock>) {
        // Dropped without the lock: it may be the last to hold the machine.
        let old = std::mem::replace(&mut *lock(&self.reference), clock);
        drop(old);
    }

    /// The guest's reference time, if there is a machine that tells.
    #[cfg(feature = "integration-services")]
    pub(crate) fn reference_time(&self) -> Option<u64> {
        lock(&self.reference).as_ref().and_then(|read| read())
    }

    /// Blocks commands.
    pub(crate) fn close_gate(&self) {
        lock(&self.gate).is_closed = true;
    }

    /// Lets commands through again, deferred ones first.
    pub(crate) fn open_gate(&self) {
        let mut gate = lock(&self.gate);
        let put_off = std::mem::take(&mut gate.put_off);
        if !self.is_to_stop() {
            put_off.into_iter().for_each(|command| command());
        }
        gate.is_closed = false;
        drop(gate);
        self.gate_opened.notify_all();
        self.wake();
    }

    /// Asks the bus thread to end.
    pub(crate) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_to_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether the bus thread has ended, and with it all work.
    #[cfg(feature = "dynamic-memory")]
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// Reads the reference time of a machine's guest.
pub(crate) type ReferenceClock = Box<dyn Fn() -> Option<u64> + Send>;

/// The gate that keeps the VMM's commands from the devices while the host is paused.
#[derive(Default)]
struct Gate {
    is_closed: bool,
    put_off: Vec<Box<dyn FnOnce() + Send>>,
}

/// Marks the bus thread as ended when that thread drops this.
pub(crate) struct StopMark(pub(crate) Arc<Shared>);

impl Drop for StopMark {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Release);
        // It holds the machine, which holds this.
        self.0.set_reference(None);
    }
}

/// The clock of the bus and a way to wake its thread, for code that calls a device from outside.
#[derive(Clone)]
pub struct BusHandle(pub(crate) Arc<Shared>);

impl BusHandle {
    /// The time since the VM started, as devices expect it. See [`BusHandle::stop_clock`].
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.now()
    }

    /// Makes the bus thread take the outputs of all devices. Call this after each command to a
    /// device.
    pub fn wake(&self) {
        self.0.wake();
    }

    /// Makes the clock stand still: call this when the vCPUs have stopped for a while. A guest that
    /// cannot run cannot answer either, so no deadline of a device expires meanwhile.
    ///
    /// Everything else goes on: commands are taken, memory work is finished, and what the guest has
    /// sent is handled. To save a machine, use [`Host::pause`](crate::Host::pause) as well. A reset
    /// does not start the clock. Without effect on a clock that stands still.
    pub fn stop_clock(&self) {
        self.0.clock.stop();
    }

    /// Makes the clock go on from where it stopped: call this before the vCPUs run again. Without
    /// effect on a clock that runs.
    pub fn continue_clock(&self) {
        self.0.clock.go_on();
        // The bus has slept without regard to deadlines.
        self.0.wake();
    }
}

impl std::fmt::Debug for BusHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusHandle").finish_non_exhaustive()
    }
}

/// Ignores poisoning: everything behind these locks is valid between two calls, so a panic
/// elsewhere leaves nothing half done.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
