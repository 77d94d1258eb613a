//! The vCPU threads' side of the bus, for one machine.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kvm_hyperv::exit::HypervExit;
use kvm_hyperv::hypercall::{ExtendedCall, Hypercall, Status, call_code};
use kvm_hyperv::synic::{Delivery, SavedSynic, SavedSynicError, VpSynic};
use vmbus::GuestSignal;
use vmbus::protocol::{ConnectionId, VpIndex};
use vmm_sys_util::eventfd::EventFd;

use crate::shared::{Shared, lock};
use crate::{Platform, Trace};
#[cfg(feature = "dynamic-memory")]
use crate::{Report, WorkError};

/// A machine's connection to the bus; [`Host::start_machine`](crate::Host::start_machine) makes it.
/// Each vCPU thread has a clone.
pub struct Machine<P>(Arc<Inner<P>>);

struct Inner<P> {
    platform: P,
    /// By VP index.
    synics: Vec<VpSynic>,
    guest_os_id: AtomicU64,
    /// The connections whose signals exit to the VMM.
    signals: Mutex<BTreeMap<ConnectionId, Arc<EventFd>>>,
    shared: Arc<Shared>,
}

impl<P> Clone for Machine<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P> std::fmt::Debug for Machine<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").finish_non_exhaustive()
    }
}

impl<P: Platform> Machine<P> {
    pub(crate) fn new(platform: P, vp_count: u32, shared: Arc<Shared>) -> Self {
        Self(Arc::new(Inner {
            platform,
            synics: (0..vp_count).map(|_| VpSynic::default()).collect(),
            guest_os_id: AtomicU64::new(0),
            signals: Mutex::default(),
            shared,
        }))
    }

    /// The platform that the VMM provided.
    #[must_use]
    pub fn platform(&self) -> &P {
        &self.0.platform
    }

    /// Puts the bus's next message into the guest's message page, if one is waiting and the slot is
    /// free. Call this on the vCPU's thread, before each `KVM_RUN`.
    ///
    /// # Errors
    /// The error of [`Platform::raise_sint`]. The message is in the slot all the same.
    pub fn before_run(&self, vp: VpIndex) -> io::Result<()> {
        let Some(synic) = self.synic(vp) else { return Ok(()) };
        match synic.deliver(&*self.0.platform.memory()) {
            Delivery::Delivered => {
                let raised = self.0.platform.raise_sint(vp);
                self.trace(Trace::Delivered { vp });
                raised
            }
            Delivery::Blocked => {
                self.trace(Trace::SlotBusy { vp });
                Ok(())
            }
            Delivery::Idle => Ok(()),
        }
    }

    /// Handles a Hyper-V exit on the vCPU's thread.
    ///
    /// Returns the result of a hypercall, to be passed to
    /// [`complete_hypercall`](kvm_hyperv::exit::complete_hypercall). `guest_os_id` reads the vCPU's
    /// `HV_X64_MSR_GUEST_OS_ID`; it is called only when the guest sets up its SynIC, which KVM
    /// allows only after the guest has written that MSR.
    pub fn on_exit(
        &self,
        vp: VpIndex,
        exit: HypervExit,
        guest_os_id: impl FnOnce() -> Option<u64>,
    ) -> Option<u64> {
        match exit {
            HypervExit::Synic(registers) => {
                self.trace(Trace::SynicSet { vp });
                if let Some(synic) = self.synic(vp) {
                    synic.update(&*self.0.platform.memory(), registers);
                }
                if let Some(id) = guest_os_id() {
                    self.0.guest_os_id.store(id, Ordering::Release);
                }
                None
            }
            HypervExit::Hypercall { control, parameters } => {
                let (status, reps) = self.hypercall(control, parameters);
                self.trace(Trace::Hypercall { vp, code: call_code(control), status: status.0 });
                Some(status.result_of_reps(reps))
            }
            HypervExit::Other(_) => None,
        }
    }

    /// The guest acknowledged an interrupt of SINT 2: makes the VP check its message slot again if
    /// messages are waiting. Call this from any thread, if [`Platform::acknowledgement`] has no
    /// eventfd.
    pub fn acknowledged(&self, vp: VpIndex) {
        let kicked = self.kick_if_waiting(vp);
        self.trace(Trace::Acknowledged { vp, kicked });
    }

    fn kick_if_waiting(&self, vp: VpIndex) -> bool {
        let waits = self.synic(vp).is_some_and(VpSynic::has_queued);
        if waits {
            self.0.platform.kick(vp);
        }
        waits
    }

    fn trace(&self, trace: Trace) {
        self.0.shared.supervisor.trace(trace);
    }

    /// The status, and of a rep hypercall the reps that are done.
    fn hypercall(&self, control: u64, parameters: [u64; 2]) -> (Status, u16) {
        let status = match Hypercall::decode(&*self.0.platform.memory(), control, parameters) {
            Ok(Hypercall::PostMessage { connection_id, payload }) => {
                self.0.shared.post(ConnectionId::new(connection_id), &payload)
            }
            Ok(Hypercall::SignalEvent { connection_id }) => {
                self.signal(ConnectionId::new(connection_id))
            }
            Ok(Hypercall::Extended(call)) => return self.extended(&call),
            Err(status) => status,
        };
        (status, 0)
    }

    #[cfg(feature = "dynamic-memory")]
    fn extended(&self, call: &ExtendedCall) -> (Status, u16) {
        let shared = &self.0.shared;
        shared.reporting.answer(call, &*self.0.platform.memory(), |source| {
            let what = "give free pages back to the host";
            shared.supervisor.report(Report::Work(WorkError { what, source }));
        })
    }

    #[cfg(not(feature = "dynamic-memory"))]
    fn extended(&self, _: &ExtendedCall) -> (Status, u16) {
        (Status::INVALID_CODE, 0)
    }

    /// Handles a signal that KVM did not deliver to an eventfd.
    fn signal(&self, connection: ConnectionId) -> Status {
        let eventfd = lock(&self.0.signals).get(&connection).cloned();
        match eventfd {
            Some(eventfd) => {
                // A full counter signals as well.
                let _ = eventfd.write(1);
                Status::SUCCESS
            }
            None => Status::INVALID_CONNECTION_ID,
        }
    }

    fn synic(&self, vp: VpIndex) -> Option<&VpSynic> {
        self.0.synics.get(usize::try_from(vp.get()).ok()?)
    }
}

/// Saving and restoring, while the vCPUs are stopped.
impl<P: Platform> Machine<P> {
    pub(crate) fn save(&self) -> (u64, Vec<SavedSynic>) {
        (self.guest_os_id(), self.0.synics.iter().map(VpSynic::save).collect())
    }

    pub(crate) fn restore(
        &self,
        guest_os_id: u64,
        synics: &[SavedSynic],
    ) -> Result<(), SavedSynicError> {
        self.0.guest_os_id.store(guest_os_id, Ordering::Release);
        for (synic, saved) in self.0.synics.iter().zip(synics) {
            synic.restore(saved)?;
        }
        Ok(())
    }

    /// Makes a VP check its pages: an interrupt may have been lost with the previous host.
    pub(crate) fn repeat_interrupt(&self, vp: VpIndex) -> io::Result<()> {
        self.0.platform.kick(vp);
        self.0.platform.raise_sint(vp)
    }
}

/// The bus thread's side.
impl<P: Platform> Machine<P> {
    pub(crate) fn guest_os_id(&self) -> u64 {
        self.0.guest_os_id.load(Ordering::Acquire)
    }

    pub(crate) fn vps(&self) -> impl Iterator<Item = VpIndex> + use<P> {
        (0..u32::try_from(self.0.synics.len()).unwrap_or(u32::MAX)).map(VpIndex::new)
    }

    /// Directs signals that exit to the VMM to `eventfd`.
    pub(crate) fn add_signal(&self, connection: ConnectionId, eventfd: Arc<EventFd>) {
        lock(&self.0.signals).insert(connection, eventfd);
    }

    pub(crate) fn remove_signal(&self, connection: ConnectionId) {
        lock(&self.0.signals).remove(&connection);
    }

    /// Sets the event flag of a signal, and raises the interrupt if the flag was clear.
    pub(crate) fn signal_guest(&self, signal: GuestSignal) -> io::Result<()> {
        let Some(synic) = self.synic(signal.vp) else { return Ok(()) };
        let (vp, flag) = (signal.vp, signal.flag);
        let raised = synic.set_event(&*self.0.platform.memory(), flag);
        let result = if raised { self.0.platform.raise_sint(vp) } else { Ok(()) };
        self.trace(Trace::EventSet { vp, flag, raised });
        result
    }

    /// Queues a message of the bus and makes the VP deliver it. There is room: the caller checks
    /// [`Machine::has_room`] before it takes a message from the bus.
    pub(crate) fn post(&self, vp: VpIndex, message: &[u8]) {
        if let Some(synic) = self.synic(vp) {
            let posted = synic.post(message);
            debug_assert!(posted.is_ok(), "the queue was full");
            self.trace(Trace::Posted { vp });
            self.0.platform.kick(vp);
        }
    }

    /// Whether every VP can take another message.
    pub(crate) fn has_room(&self) -> bool {
        self.0.synics.iter().all(VpSynic::has_room)
    }

    /// Whether messages wait for a slot.
    pub(crate) fn has_queued(&self) -> bool {
        self.0.synics.iter().any(VpSynic::has_queued)
    }

    /// Drops all messages that are not in a slot.
    pub(crate) fn clear_queues(&self) {
        self.0.synics.iter().for_each(VpSynic::clear_queue);
    }

    /// Makes each VP with waiting messages check its slot.
    pub(crate) fn kick_waiting(&self) {
        for vp in self.vps() {
            self.kick_if_waiting(vp);
        }
    }
}
