//! What connects vCPU threads and the device loop: SynIC, interrupt lines, hypercalls.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_hyperv::hypercall::Status;
use kvm_hyperv::sint::SintLines;
use kvm_hyperv::synic::VpSynic;
use vmbus::Server;
use vmbus::protocol::ConnectionId;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::Killable;

use crate::vcpu::kick_signal;

/// The synthetic interrupt controllers of a machine's VPs, and their threads.
pub(crate) struct Bus {
    synics: Vec<VpSynic>,
    lines: SintLines,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Bus {
    pub(crate) fn new(lines: SintLines, vcpus: u8) -> Self {
        let synics = (0..vcpus).map(|_| VpSynic::default()).collect();
        Self { synics, lines, threads: Mutex::default() }
    }

    pub(crate) fn synic(&self, vp: u32) -> Option<&VpSynic> {
        self.synics.get(usize::try_from(vp).ok()?)
    }

    /// All SynICs with the number of each VP.
    pub(crate) fn synics(&self) -> impl Iterator<Item = (u32, &VpSynic)> {
        (0..).zip(&self.synics)
    }

    pub(crate) fn raise(&self, vp: u32) -> io::Result<()> {
        self.lines.raise(vp)
    }

    pub(crate) fn acknowledged(&self, vp: u32) -> Option<&EventFd> {
        self.lines.acknowledged(vp)
    }

    /// Takes over the threads of the vCPUs, in their order.
    pub(crate) fn set_threads(&self, threads: Vec<JoinHandle<()>>) {
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
    }

    /// Gets the thread of a VP out of the guest, so that it looks for work.
    pub(crate) fn kick(&self, vp: u32) {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = usize::try_from(vp).ok().and_then(|vp| threads.get(vp)) {
            // A thread that has just ended needs no kick.
            let _ = thread.kill(kick_signal());
        }
    }

    /// Queues a message of the bus for a VP and lets the VP's thread put it into the slot.
    pub(crate) fn post(&self, vp: u32, message: &[u8]) {
        if let Some(synic) = self.synic(vp) {
            // There is room: the caller asks `has_room` before it takes a message from the server.
            if synic.post(message).is_err() {
                tracing::warn!(vp, "a bus message was lost: the guest takes none");
            }
            self.kick(vp);
        }
    }

    /// Whether every VP can take another message.
    pub(crate) fn has_room(&self) -> bool {
        self.synics.iter().all(VpSynic::has_room)
    }

    /// Whether messages wait for a slot.
    pub(crate) fn has_queued(&self) -> bool {
        self.synics.iter().any(VpSynic::has_queued)
    }

    /// Forgets all messages that are not in a slot.
    pub(crate) fn clear_queues(&self) {
        self.synics.iter().for_each(VpSynic::clear_queue);
    }

    /// Lets a VP's thread look at its slot again, where messages wait for it.
    pub(crate) fn kick_if_waiting(&self, vp: u32) {
        if self.synic(vp).is_some_and(VpSynic::has_queued) {
            self.kick(vp);
        }
    }

    /// The same for all VPs.
    pub(crate) fn kick_waiting(&self) {
        for (vp, _) in self.synics() {
            self.kick_if_waiting(vp);
        }
    }

    /// Waits for all threads, which must have been told to stop.
    pub(crate) fn join_threads(&self) {
        for vp in 0..self.synics.len() {
            self.kick(u32::try_from(vp).unwrap_or(u32::MAX));
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// The vCPUs' way to the VMBus server.
///
/// The server answers a hypercall at once, so it is called on the vCPU's thread; what follows from
/// the call is left to the device loop, which is woken.
#[derive(Clone)]
pub(crate) struct GuestCalls {
    server: Arc<Mutex<Server>>,
    signalled: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    signals_exit: bool,
}

impl GuestCalls {
    /// `signals_exit` says that KVM cannot signal eventfds itself, so that the signals of open
    /// channels come here.
    pub(crate) fn new(server: Arc<Mutex<Server>>, wake: Arc<EventFd>, signals_exit: bool) -> Self {
        Self { server, signalled: Arc::default(), wake, signals_exit }
    }

    /// The server; never to be held over a system call.
    pub(crate) fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the guest signalled a channel since the last call.
    pub(crate) fn take_signal(&self) -> bool {
        self.signalled.swap(false, Ordering::AcqRel)
    }

    /// Takes a message; the status is what the guest gets.
    pub(crate) fn post(&self, connection_id: u32, payload: &[u8]) -> Status {
        let result = self.server().handle_message(ConnectionId::new(connection_id), payload);
        self.wake();
        result.map_or_else(|error| Status(error.hypercall_status()), |()| Status::SUCCESS)
    }

    /// Takes a signal that KVM did not give to an eventfd. A signal is a hint to look at the
    /// rings, so one flag stands for all.
    pub(crate) fn signal(&self) -> Status {
        if !self.signals_exit {
            return Status::INVALID_CONNECTION_ID;
        }
        self.signalled.store(true, Ordering::Release);
        self.wake();
        Status::SUCCESS
    }

    /// Lets the device loop look for work.
    pub(crate) fn wake(&self) {
        // Fails only when 2^64 - 2 wake-ups are pending, and then one is.
        let _ = self.wake.write(1);
    }
}
