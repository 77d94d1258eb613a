//! Dynamic Memory in a running VMM: the device on the bus, the thread that works on memory, and the
//! handle with which the VMM resizes the guest.

mod backend;
#[cfg(feature = "guest_ram")]
mod guest_ram;
mod inhibit;
mod worker;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bus_recording::{Event, ToDevice};
use dynmem_vsp::{
    Config, DEFAULT_INSTANCE, DynamicMemory, HotAdd, INTERFACE, JobId, Kept, Notice, ReplaceError,
    SavedVsp, Snapshot, Work,
};
use page_range::{PageCount, PageRangeSet};
use vmbus::Offer;

pub use backend::{BackendError, MemoryBackend, NoMachine, WorkError};
#[cfg(feature = "guest_ram")]
pub use guest_ram::VmSlots;
pub use inhibit::Inhibit;

use crate::recording::DeviceRecording;
use crate::reporting::{FreePages, Reported};
use crate::shared::{Shared, lock};
use crate::{BusMemory, HostBuilder, Paused, Platform, RestoreError, Sink, StartError, Stopped};
use inhibit::Inhibits;
use worker::{Request, Worker};

/// How often a thread that waits for discards checks whether the host has stopped.
const LOOK_FOR_STOP: Duration = Duration::from_millis(100);

/// How long after a change of the guest's size the backend is told which pages are out. Listing them
/// takes time in proportion to their ranges, so it is not done for each message, and the kernel is in
/// no hurry to make huge pages either.
const SETTLES_AFTER: Duration = Duration::from_secs(5);

type Vsp<P> = DynamicMemory<BusMemory<P>>;

impl<P: Platform> HostBuilder<P> {
    /// Puts the Dynamic Memory device on the bus and starts the thread that works on guest memory.
    ///
    /// `on_notice` receives sizes, targets and faults on the bus thread. It must not wait.
    ///
    /// With [`Config::inhibited`], discards stay forbidden for as long as the host lives, and
    /// [`HostSnapshot::inhibited_by`] names [`Inhibit::Other`]. Use [`DynamicMemoryHandle::inhibit`]
    /// to forbid them for a while.
    ///
    /// # Errors
    /// [`StartError`] for memory that no guest can have, if the system has no room for a thread,
    /// and if there is already such a device.
    pub fn dynamic_memory(
        &mut self,
        config: Config,
        backend: impl MemoryBackend,
        on_notice: impl Sink<Notice>,
    ) -> Result<DynamicMemoryHandle<P>, StartError> {
        let vsp = Vsp::<P>::new(config)?;
        let vsp = if self.shared().is_recording() { vsp.with_trace() } else { vsp };
        self.attach_vsp(vsp, backend, on_notice)
    }

    fn attach_vsp(
        &mut self,
        vsp: Vsp<P>,
        backend: impl MemoryBackend,
        on_notice: impl Sink<Notice>,
    ) -> Result<DynamicMemoryHandle<P>, StartError> {
        let shared = Arc::clone(self.shared());
        let mut inhibits = Inhibits::default();
        if vsp.snapshot().inhibited {
            inhibits.add(Inhibit::Other);
            shared.reporting.set_inhibited(true);
        }
        let control = Arc::new(Control {
            device: Arc::new(Mutex::new(vsp)),
            discards_ended: Condvar::new(),
            inhibits: Mutex::new(inhibits),
            recording: self.next_recording(),
            shared: Arc::clone(&shared),
        });
        let worker = Worker::start(Box::new(backend), shared, Arc::clone(&control))
            .map_err(StartError::system("cannot start the thread that works on memory"))?;
        if lock(&control.device).ballooned().next().is_some() {
            // It was restored, and the backend is new.
            worker.settle(Duration::ZERO);
        }
        let requests = worker.requests();
        let carrier = Carrier { worker, on_notice };
        let recording = Arc::clone(&control.recording);
        self.attach_recorded(Arc::clone(&control.device), carrier, recording, Event::of_work)?;
        Ok(DynamicMemoryHandle { control, requests })
    }
}

/// Carries out the device's work.
struct Carrier<S> {
    worker: Worker,
    on_notice: S,
}

impl<S: Sink<Notice>> Sink<Work> for Carrier<S> {
    fn take(&mut self, work: Work) {
        match work {
            Work::Job(job) => self.worker.submit(job),
            Work::Notify(notice) => {
                if matches!(notice, Notice::SizeChanged { .. }) {
                    self.worker.settle(SETTLES_AFTER);
                }
                self.on_notice.take(notice);
            }
            // Recorded as they were taken.
            Work::Trace(_) => {}
        }
    }

    fn due(&self) -> Option<Duration> {
        self.on_notice.due()
    }

    fn on_time(&mut self) {
        self.on_notice.on_time();
    }

    fn is_idle(&self) -> bool {
        self.worker.is_idle() && self.on_notice.is_idle()
    }
}

/// State shared by the handle, the worker and the inhibitors.
struct Control<P: Platform> {
    device: Arc<Mutex<Vsp<P>>>,
    /// Used with the device's lock.
    discards_ended: Condvar,
    /// Locked before the device.
    inhibits: Mutex<Inhibits>,
    recording: Arc<DeviceRecording>,
    shared: Arc<Shared>,
}

impl<P: Platform> Control<P> {
    /// Calls the device and makes the bus take its outputs.
    fn command<T>(&self, command: impl FnOnce(&mut Vsp<P>, Duration) -> T) -> Result<T, Stopped> {
        self.shared.command(|| command(&mut lock(&self.device), self.shared.now()))
    }

    /// Tells the device whether there are inhibitors; `inhibits` was just changed.
    fn tell_inhibited(self: &Arc<Self>, inhibits: MutexGuard<'_, Inhibits>) {
        self.shared.reporting.set_inhibited(!inhibits.is_empty());
        // Released first, since the deferred command locks it.
        drop(inhibits);
        let control = Arc::clone(self);
        self.shared.command_later(move || {
            let inhibits = lock(&control.inhibits);
            let mut device = lock(&control.device);
            let (now, inhibited) = (control.shared.now(), !inhibits.is_empty());
            control.recording.tell(now, || ToDevice::SetInhibited { inhibited });
            device.set_inhibited(now, inhibited);
        });
    }

    fn wait_for_discards(&self) {
        let mut device = lock(&self.device);
        while !device.snapshot().discarding.is_zero() && !self.shared.has_stopped() {
            let waited = self.discards_ended.wait_timeout(device, LOOK_FOR_STOP);
            device = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn job_done(&self, id: JobId, ok: bool) {
        let mut device = lock(&self.device);
        let now = self.shared.now();
        self.recording.tell(now, || ToDevice::JobDone { id: id.get(), ok });
        device.job_done(now, id, ok);
        drop(device);
        self.discards_ended.notify_all();
    }

    /// The pages that the host has back.
    fn out(&self) -> PageRangeSet {
        lock(&self.device).ballooned().collect()
    }
}

/// Resizes the guest. Clones control the same device. All methods may be called on any thread
/// except the bus and the memory thread. While the host is [paused](crate::Host::pause), commands
/// wait; inhibitors can be created and dropped.
pub struct DynamicMemoryHandle<P: Platform> {
    control: Arc<Control<P>>,
    requests: Sender<Request>,
}

impl<P: Platform> Clone for DynamicMemoryHandle<P> {
    fn clone(&self) -> Self {
        Self { control: Arc::clone(&self.control), requests: self.requests.clone() }
    }
}

impl<P: Platform> std::fmt::Debug for DynamicMemoryHandle<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DynamicMemoryHandle").finish_non_exhaustive()
    }
}

/// The device's state, and what keeps it from discarding.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostSnapshot {
    /// The device.
    pub device: Snapshot,
    /// Why no memory is discarded now; empty if it is.
    pub inhibited_by: Vec<Inhibit>,
    /// What the guest has reported as free since [`DynamicMemoryHandle::report_free_pages`].
    pub reported: Reported,
}

/// The memory of the machine that starts next.
#[derive(Clone, Debug, Default)]
pub struct MachineMemory {
    /// The guest's RAM at boot.
    pub boot_ram: PageRangeSet,
    /// Memory that can be added while the guest runs.
    pub hot_add: Option<HotAdd>,
    /// The size to bring the guest to once its driver is there, in pages. A target set since the
    /// reset is newer and takes precedence.
    pub target: Option<PageCount>,
}

impl<P: Platform> DynamicMemoryHandle<P> {
    /// Sets the target size, in pages. Setting the same target again is a new attempt. A guest that
    /// is not ready gets the target when it is.
    ///
    /// Returns the target as the device took it, a multiple of the discard unit.
    ///
    /// # Errors
    /// [`SetTargetError`]; the previous target stays in force.
    pub fn set_target(&self, target: PageCount) -> Result<PageCount, SetTargetError> {
        let recording = &self.control.recording;
        Ok(self.control.command(|device, now| {
            let result = device.set_target(now, target);
            recording.tell(now, || ToDevice::SetTarget {
                pages: target.get(),
                taken: result.ok().map(PageCount::get),
            });
            result
        })??)
    }

    /// The device's state, and what keeps it from discarding.
    #[must_use]
    pub fn snapshot(&self) -> HostSnapshot {
        // Locks have an order: this one first.
        let inhibits = lock(&self.control.inhibits);
        let mut device = lock(&self.control.device).snapshot();
        let now = self.control.shared.now();
        device.ready_in = device.ready_at.map(|at| at.saturating_sub(now));
        let reported = self.control.shared.reporting.reported();
        HostSnapshot { device, inhibited_by: inhibits.reasons(), reported }
    }

    /// Forbids discards until the inhibitor is dropped. Returns once none is in flight.
    ///
    /// In the meantime the guest is asked for no pages. Pages can still be returned to it.
    #[must_use = "discards are allowed again when this is dropped"]
    pub fn inhibit(&self, why: Inhibit) -> Inhibitor<P> {
        let mut inhibits = lock(&self.control.inhibits);
        inhibits.add(why);
        self.control.tell_inhibited(inhibits);
        self.control.shared.reporting.wait_until_idle();
        self.control.wait_for_discards();
        Inhibitor { control: Arc::clone(&self.control), why }
    }

    /// Lets the guest report pages that it has freed, and discards them with `pages`; with `None` it
    /// can report nothing. Call this for each machine before it starts: a guest asks once, when it
    /// boots. The numbers of [`HostSnapshot::reported`] begin at zero with each call.
    ///
    /// A guest asks only where CPUID offers it extended hypercalls:
    /// [`offer_extended_hypercalls`](kvm_hyperv::cpuid::offer_extended_hypercalls). The pages stay the
    /// guest's: its size and the device's books do not change. While discards are
    /// [inhibited](DynamicMemoryHandle::inhibit), reports are answered and have no effect.
    ///
    /// One call of the guest discards at most 1 GiB on its vCPU's thread, and nothing waits for it but
    /// that vCPU, this method, and [`DynamicMemoryHandle::inhibit`]. Do not call this with pages of the
    /// host's huge page pool: a guest that touches a discarded page again ends if the pool is empty.
    pub fn report_free_pages(&self, pages: Option<Arc<dyn FreePages>>) {
        self.control.shared.reporting.offer(pages);
    }

    /// Announces a reset: targets set from now on are for the machine after it.
    pub fn announce_reset(&self) {
        // A host that has failed will not see the reset.
        let _ = self.control.command(|device, now| {
            self.control.recording.tell(now, || ToDevice::AnnounceReset);
            device.announce_reset();
        });
    }

    /// What the machine that was [reset](crate::Host::reset) leaves for the next one. Returns once
    /// all work on its memory is done.
    pub fn take_kept(&self) -> Kept {
        let (done, wait) = channel();
        // An error means that the thread has ended, and with it all work.
        if self.requests.send(Request::Barrier(done)).is_ok() {
            let _ = wait.recv();
        }
        let mut device = lock(&self.control.device);
        self.control.recording.tell(self.control.shared.now(), || ToDevice::TakeKept);
        device.take_kept()
    }

    /// Works on another machine's memory from now on. Call this between a reset and the next start,
    /// or before the first start. The previous backend has been dropped when this returns.
    ///
    /// # Errors
    /// [`Stopped`] if the host has failed.
    pub fn replace_backend(&self, backend: impl MemoryBackend) -> Result<(), Stopped> {
        let (done, wait) = channel();
        self.requests.send(Request::Replace(Box::new(backend), done)).map_err(|_| Stopped)?;
        wait.recv().map_err(|_| Stopped)
    }

    /// Describes the memory of the machine that starts next. Not needed if it is the same as the
    /// previous machine's, or as in [`Config`]. All of its boot RAM must be there when the machine
    /// starts, also what an earlier guest gave back: the device does not ask for pages of a
    /// [`discard_unit`](Config::discard_unit) to be provided again after a reset.
    ///
    /// # Errors
    /// [`ReplaceError`] if the previous machine was not reset, and for memory that no guest can
    /// have. A host that has failed ignores this call;
    /// [`Host::start_machine`](crate::Host::start_machine) then returns an error.
    pub fn next_machine(&self, memory: MachineMemory) -> Result<(), ReplaceError> {
        let MachineMemory { boot_ram, hot_add, target } = memory;
        let mut told = self.control.recording.is_on().then(|| {
            let boot_ram = boot_ram.iter().map(bus_recording::pages).collect();
            (boot_ram, hot_add.as_ref().map(Into::into))
        });
        self.control
            .command(|device, now| {
                let result = device.start_machine(now, boot_ram, hot_add, target);
                if let Some((boot_ram, hot_add)) = told.take() {
                    let (target, ok) = (target.map(PageCount::get), result.is_ok());
                    self.control.recording.tell(now, || ToDevice::StartMachine {
                        boot_ram,
                        hot_add,
                        target,
                        ok,
                    });
                }
                result
            })
            .unwrap_or(Ok(()))
    }
}

/// A target was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetTargetError {
    /// The guest cannot have this size, at all or now.
    #[error(transparent)]
    Target(#[from] dynmem_vsp::TargetError),
    /// The host has failed.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Keeps the host from discarding guest memory, for as long as it lives.
pub struct Inhibitor<P: Platform> {
    control: Arc<Control<P>>,
    why: Inhibit,
}

impl<P: Platform> Drop for Inhibitor<P> {
    fn drop(&mut self) {
        let mut inhibits = lock(&self.control.inhibits);
        inhibits.remove(self.why);
        self.control.tell_inhibited(inhibits);
    }
}

impl<P: Platform> std::fmt::Debug for Inhibitor<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inhibitor").field("why", &self.why).finish_non_exhaustive()
    }
}

/// Saving and restoring the device.
impl<P: Platform> DynamicMemoryHandle<P> {
    /// The device's state while the host is paused.
    #[must_use]
    pub fn save(&self, paused: &Paused<'_, P>) -> SavedVsp {
        let _ = paused;
        lock(&self.control.device).save(self.control.shared.now())
    }
}

impl<P: Platform> HostBuilder<P> {
    /// Restores a saved device and puts it on the bus as [`HostBuilder::dynamic_memory`] does.
    /// `config` describes the memory of the saved guest; `platform` is the machine with that
    /// memory.
    ///
    /// # Errors
    /// [`RestoreError`] if it is not the state of such a device, or had another configuration.
    pub fn restore_dynamic_memory(
        &mut self,
        config: Config,
        backend: impl MemoryBackend,
        on_notice: impl Sink<Notice>,
        platform: &P,
        saved: &SavedVsp,
    ) -> Result<DynamicMemoryHandle<P>, RestoreError> {
        let offer = Offer { interface: INTERFACE, instance: DEFAULT_INSTANCE };
        let open = {
            let server = self.shared().server();
            server.channel_of(&offer).and_then(|id| server.opened(id))
        };
        let open = open.map(|open| (BusMemory::<P>::new(platform.memory().clone()), open));
        let vsp = Vsp::<P>::restore(config, saved, open, self.shared().now())?;
        Ok(self.attach_vsp(vsp, backend, on_notice)?)
    }
}
