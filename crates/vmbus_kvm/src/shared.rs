//! What the threads of the host share with vCPUs and devices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_hyperv::hypercall::Status;
use vmbus::Server;
use vmbus::protocol::ConnectionId;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

#[cfg(feature = "dynamic-memory")]
use crate::Stopped;
use crate::{StartError, Supervisor};

/// The bus, the clock and the way to the bus's thread.
pub(crate) struct Shared {
    server: Mutex<Server>,
    wake: EventFd,
    start: Instant,
    gate: Mutex<Gate>,
    gate_opened: Condvar,
    stop: AtomicBool,
    stopped: AtomicBool,
    pub(crate) supervisor: Box<dyn Supervisor>,
}

impl Shared {
    pub(crate) fn new(server: Server, supervisor: impl Supervisor) -> Result<Self, StartError> {
        let wake = EventFd::new(EFD_NONBLOCK)
            .map_err(StartError::system("cannot create the eventfd that wakes the bus"))?;
        Ok(Self {
            server: Mutex::new(server),
            wake,
            start: Instant::now(),
            gate: Mutex::default(),
            gate_opened: Condvar::new(),
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            supervisor: Box::new(supervisor),
        })
    }

    /// The bus. Never hold this over a system call: vCPUs wait for it.
    pub(crate) fn server(&self) -> MutexGuard<'_, Server> {
        lock(&self.server)
    }

    pub(crate) fn wake_fd(&self) -> &EventFd {
        &self.wake
    }

    pub(crate) fn wake(&self) {
        // Fails only when 2^64 - 2 wake-ups are pending, and then one is.
        let _ = self.wake.write(1);
    }

    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes a message of the guest's; the status is what the hypercall returns.
    pub(crate) fn post(&self, connection: ConnectionId, payload: &[u8]) -> Status {
        let result = self.server().handle_message(connection, payload);
        self.wake();
        result.map_or_else(|error| Status(error.hypercall_status()), |()| Status::SUCCESS)
    }

    /// Calls a device on behalf of the VMM; waits while the host is paused.
    #[cfg(feature = "dynamic-memory")]
    pub(crate) fn command<T>(&self, command: impl FnOnce() -> T) -> Result<T, Stopped> {
        let gate = lock(&self.gate);
        let gate = self.gate_opened.wait_while(gate, |gate| gate.is_closed);
        // Held over the command, so that the gate does not close meanwhile.
        let gate = gate.unwrap_or_else(PoisonError::into_inner);
        if self.is_to_stop() {
            return Err(Stopped);
        }
        let result = command();
        drop(gate);
        self.wake();
        Ok(result)
    }

    /// The same for a command without a result, which is put off while the host is paused.
    #[cfg(feature = "dynamic-memory")]
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

    /// Lets no commands through.
    pub(crate) fn close_gate(&self) {
        lock(&self.gate).is_closed = true;
    }

    /// Lets commands through again, first those that were put off.
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

    /// Has the bus's thread end.
    pub(crate) fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
    }

    pub(crate) fn is_to_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether the bus's thread has ended, and all work with it.
    #[cfg(feature = "dynamic-memory")]
    pub(crate) fn has_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

/// What keeps the VMM's commands from the devices while the host is paused.
#[derive(Default)]
struct Gate {
    is_closed: bool,
    put_off: Vec<Box<dyn FnOnce() + Send>>,
}

/// Says that the bus's thread has ended, when that drops it.
pub(crate) struct StopMark(pub(crate) Arc<Shared>);

impl Drop for StopMark {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Release);
    }
}

/// The clock of the bus and the way to its thread, for whoever calls a device outside of it.
#[derive(Clone)]
pub struct BusHandle(pub(crate) Arc<Shared>);

impl BusHandle {
    /// The time since the VM started, as devices want it.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.now()
    }

    /// Has the bus's thread take the outputs of all devices. Call this after each command to a device.
    pub fn wake(&self) {
        self.0.wake();
    }
}

impl std::fmt::Debug for BusHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusHandle").finish_non_exhaustive()
    }
}

/// A panic elsewhere leaves nothing half done that the next user could not see: all that is behind
/// these locks is valid between two calls.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
