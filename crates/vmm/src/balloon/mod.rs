//! The Dynamic Memory device in the device loop: its channel, its work on memory, its operator.

mod channel;
mod log_limit;
mod notices;
mod operator;
mod work;

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use event_manager::EventOps;
use hv_balloon::{Action, Device, Event, HotAdd, JobId, Settle, Snapshot, TargetError};
use page_range::PageCount;
use qmp::EventSender;
use vmbus::Offer;
use vmbus::protocol::Guid;
use vmbus::ring::RingError;

use crate::bus::GuestCalls;
use crate::config::{Config, SettleTime};
use crate::confine::Confinement;
use crate::device_loop::{self, LoopHandle, SIGNAL, unwatch, watch};
use crate::error::MachineError;
use crate::machine::MachineHandle;
use crate::memory::{Kept, MemoryMap, ToAdd};
use channel::{BATCH, Channel, Opening, Received};
use notices::Notices;
pub(crate) use operator::Operator;
use work::Worker;

/// Whether this build has the device.
pub const HAS_BALLOON: bool = true;

/// Class of the Dynamic Memory device (Linux `include/linux/hyperv.h`, `HV_DM_GUID`).
const DYNAMIC_MEMORY: Guid = Guid::from_digits(0x525074dc_8985_46e2_8057_a307dc18a502);

/// This device; the same in every VM and over resets, since Linux looks for it after hibernation.
const INSTANCE: Guid = Guid::from_digits(0x1eccfd72_4b41_45ef_b73a_4a6e44c12924);

/// What the operator and the worker tell the device.
pub(crate) enum Request {
    Resetting,
    SetTarget(PageCount, Sender<Result<(), TargetError>>),
    JobDone { id: JobId, ok: bool },
}

/// What the device is made of.
pub(crate) struct Setup {
    pub(crate) device: Device,
    pub(crate) eventfd_in_kernel: bool,
    pub(crate) notices: Notices,
    pub(crate) status_reports: bool,
}

impl Setup {
    /// The device of a VM, for a guest with `memory`.
    pub(crate) fn new(
        config: &Config,
        memory: &MemoryMap,
        eventfd_in_kernel: bool,
        monitor: Arc<OnceLock<EventSender>>,
    ) -> Result<Self, MachineError> {
        let memory_config = hv_balloon::Config {
            boot_ram: memory.boot_ram.clone(),
            settle: match config.settle {
                SettleTime::Auto => Settle::Auto,
                SettleTime::Fixed(wait) => Settle::Fixed(wait),
            },
            status_reports: config.status_reports,
            hot_add: memory.to_add.map(hot_add),
            discard_unit: memory.discard_unit,
            inhibited: false,
        };
        let device = Device::new(memory_config)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
            .map_err(MachineError::system("cannot make the balloon device"))?;
        let notices = Notices::new(monitor);
        Ok(Self { device, eventfd_in_kernel, notices, status_reports: config.status_reports })
    }
}

/// The device and what it works with. All of it belongs to the loop's thread.
pub(crate) struct Balloon {
    start: Instant,
    device: Device,
    eventfd_in_kernel: bool,
    notices: Notices,
    worker: Worker,
    calls: GuestCalls,
    snapshot: Arc<Mutex<Snapshot>>,
    machine: Option<MachineHandle>,
    channel: Option<Channel>,
    /// While a reset is coming: the target that was set since.
    after_reset: Option<Option<PageCount>>,
    /// The size of the guest that closed its channel, until another one opens it.
    size_at_close: Option<PageCount>,
    /// Of the machine that is being taken away.
    kept: Kept,
}

/// Ends the loop when the thread that has this panics: its work would be waited for without end.
struct StopOnPanic(LoopHandle);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.request(device_loop::Request::Stop);
        }
    }
}

impl Balloon {
    /// Puts the device on the bus and starts what it needs.
    pub(crate) fn start(
        setup: Setup,
        calls: &GuestCalls,
        to_loop: &LoopHandle,
        confinement: &Confinement,
    ) -> io::Result<(Self, Operator)> {
        // Cannot fail: it is the first and only one.
        let _ = calls.server().offer(Offer { interface: DYNAMIC_MEMORY, instance: INSTANCE });
        let start = Instant::now();
        let snapshot = Arc::new(Mutex::new(setup.device.snapshot()));
        let on_done = to_loop.clone();
        let panics = confinement.control().report_panic("memory");
        let stop = StopOnPanic(to_loop.clone());
        let worker = Worker::start(confinement, move |id, ok| {
            // They go with the thread: what is asked of it would never be done.
            let _ = (&panics, &stop);
            on_done.request(device_loop::Request::Balloon(Request::JobDone { id, ok }));
        })?;
        let operator = Operator {
            to_loop: to_loop.clone(),
            snapshot: Arc::clone(&snapshot),
            start,
            status_reports: setup.status_reports,
        };
        let balloon = Self {
            start,
            device: setup.device,
            eventfd_in_kernel: setup.eventfd_in_kernel,
            notices: setup.notices,
            worker,
            calls: calls.clone(),
            snapshot,
            machine: None,
            channel: None,
            after_reset: None,
            size_at_close: None,
            kept: Kept::default(),
        };
        Ok((balloon, operator))
    }

    pub(crate) fn attach(&mut self, machine: &MachineHandle, memory: MemoryMap) {
        self.machine = Some(machine.clone());
        let now = self.start.elapsed();
        let hot_add = memory.to_add.map(hot_add);
        if let Err(error) = self.device.replace_memory(now, memory.boot_ram, hot_add) {
            tracing::error!("the balloon device does not know the memory of the guest: {error}");
        }
        // One that was set since the last machine is newer.
        if let Some(target) = memory.target
            && self.device.snapshot().target.is_none()
        {
            // A refusal is kept by the device, which says so when asked.
            let _ = self.device.set_target(now, target);
        }
    }

    /// The machine has stopped for good.
    pub(crate) fn begin_detach(&mut self) {
        let device = self.device.snapshot();
        // Kernels that panic, and some that reboot, close their channels first, and with that the
        // guest's size is its full one.
        let size = self.size_at_close.take().unwrap_or(device.actual);
        let target = device.target.filter(|_| device.is_pursued);
        self.kept = Kept { size: Some(size), target, set_since: None };
        self.tell(Event::SystemReset);
        self.notices.forget_report();
    }

    /// Whether nothing is under way for the guest that was.
    pub(crate) fn is_quiet(&self) -> bool {
        self.channel.is_none() && self.device.snapshot().state == hv_balloon::StateName::Closed
    }

    /// Lets go of the machine, and says so once all work on its memory is done.
    pub(crate) fn finish_detach(&mut self, done: Sender<Kept>) {
        self.machine = None;
        let mut kept = std::mem::take(&mut self.kept);
        kept.set_since = self.after_reset.take().flatten();
        self.worker.when_idle(move || {
            let _ = done.send(kept);
        });
    }

    pub(crate) fn on_request(&mut self, request: Request) {
        match request {
            Request::SetTarget(pages, reply) => {
                let result = self.device.set_target(self.start.elapsed(), pages).map(|_| ());
                if result.is_ok() {
                    self.after_reset = self.after_reset.map(|_| Some(pages));
                }
                // Whoever asked may look at once, and must not see how the last target ended.
                self.publish();
                let _ = reply.send(result);
            }
            Request::Resetting => self.after_reset = Some(None),
            Request::JobDone { id, ok } => self.tell(Event::JobDone { id, ok }),
        }
    }

    pub(crate) fn on_bus_action(&mut self, action: vmbus::Action, ops: &mut EventOps<'_>) {
        match action {
            vmbus::Action::Open { channel, rings, target_vp, relid, connection_id } => {
                self.open(Opening { id: channel, rings, target_vp, relid, connection_id }, ops);
            }
            vmbus::Action::Close { channel } => self.close(channel),
            vmbus::Action::SetTargetVp { target_vp, .. } => {
                if let Some(channel) = &mut self.channel {
                    channel.set_target_vp(target_vp);
                }
            }
            vmbus::Action::Send { .. } | vmbus::Action::DropQueuedMessages => {}
        }
    }

    pub(crate) fn on_signal(&mut self) {
        if let Some(channel) = &self.channel {
            let _ = channel.signal().read();
        }
        self.receive();
    }

    /// Takes packets from the ring; where there are more than a batch the loop comes back.
    pub(crate) fn receive(&mut self) {
        if let Err(error) = self.receive_batch() {
            self.break_channel(error);
        }
    }

    /// Does what the device asks for.
    pub(crate) fn act(&mut self) {
        if let Err(error) = self.try_act() {
            self.break_channel(error);
            // Without a channel nothing can fail any more.
            let _ = self.try_act();
        }
    }

    /// Lets go of a channel that the bus wants closed once the device is done with it.
    pub(crate) fn finish_close(&mut self, ops: &mut EventOps<'_>) {
        if let Some(channel) = self.channel.take_if(|channel| channel.closing && channel.quiet) {
            unwatch(ops, channel.signal(), SIGNAL);
            self.calls.server().close_finished(channel.id);
            // The answers that waited for this go out now.
            self.calls.wake();
        }
    }

    pub(crate) fn publish(&self) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = self.device.snapshot();
    }

    /// Whether something waits for room in the ring.
    pub(crate) fn is_blocked(&self) -> bool {
        let has_message = self.device.message().is_some();
        self.channel.as_ref().is_some_and(|channel| channel.is_blocked(has_message))
    }

    /// How long until [`Balloon::on_time`] has something to do.
    pub(crate) fn due(&self) -> Option<Duration> {
        let now = self.start.elapsed();
        let deadline = self.device.next_deadline().map(|at| at.saturating_sub(now));
        [deadline, self.notices.due()].into_iter().flatten().min()
    }

    /// Does what is due; true where the device may want something now.
    pub(crate) fn on_time(&mut self) -> bool {
        self.notices.flush();
        let now = self.start.elapsed();
        let is_due = self.device.next_deadline().is_some_and(|at| at <= now);
        if is_due {
            self.tell(Event::Deadline);
        }
        is_due
    }

    fn tell(&mut self, event: Event<'_>) {
        self.device.handle(self.start.elapsed(), event);
    }

    fn receive_batch(&mut self) -> Result<(), RingError> {
        for _ in 0..BATCH {
            let Some(channel) = &mut self.channel else {
                return Ok(());
            };
            match channel.receive()? {
                Received::Message(message) => {
                    self.device.handle(self.start.elapsed(), Event::Packet(message));
                }
                Received::Other => {}
                Received::Nothing => {
                    channel.end_receive();
                    return Ok(());
                }
            }
            self.try_act()?;
        }
        if let Some(channel) = &mut self.channel {
            channel.end_receive();
            let _ = channel.signal().write(1);
        }
        Ok(())
    }

    /// The guest broke its ring: the channel is of no use until the guest opens it anew.
    fn break_channel(&mut self, error: RingError) {
        self.notices.warn(&format_args!("broke its channel, which is stopped: {error}"));
        if let Some(channel) = &mut self.channel {
            channel.stop();
            self.channel_closed();
        }
    }

    fn open(&mut self, opening: Opening, ops: &mut EventOps<'_>) {
        let id = opening.id;
        let Some(machine) = self.machine.clone() else {
            return self.calls.server().open_finished(id, false);
        };
        let guest_os_id = machine.guest_os_id.load(Ordering::Acquire);
        let opened = Channel::open(opening, machine, self.eventfd_in_kernel).and_then(|channel| {
            watch(ops, channel.signal(), SIGNAL)?;
            Ok(channel)
        });
        match opened {
            Ok(channel) => {
                self.channel = Some(channel);
                self.size_at_close = None;
                self.tell(Event::ChannelOpened { guest_os_id });
                self.calls.server().open_finished(id, true);
                self.receive();
            }
            Err(error) => {
                self.notices.cannot_open(&error);
                self.calls.server().open_finished(id, false);
            }
        }
    }

    fn close(&mut self, id: vmbus::ChannelId) {
        match &mut self.channel {
            Some(channel) if channel.id == id => {
                channel.stop();
                channel.closing = true;
                channel.quiet = false;
                self.channel_closed();
            }
            _ => self.calls.server().close_finished(id),
        }
    }

    fn channel_closed(&mut self) {
        // A channel that was broken closes once more.
        self.size_at_close.get_or_insert(self.device.snapshot().actual);
        self.notices.forget_report();
        self.tell(Event::ChannelClosed);
    }

    fn try_act(&mut self) -> Result<(), RingError> {
        loop {
            if let Some(channel) = &mut self.channel
                && channel.flush(self.device.message())?
            {
                self.tell(Event::Sent);
            }
            let Some(action) = self.device.poll_action() else {
                return Ok(());
            };
            match action {
                // Above, in the next turn.
                Action::Send => {}
                Action::CloseFinished => {
                    if let Some(channel) = &mut self.channel {
                        channel.quiet = true;
                    }
                }
                Action::Notify(notice) => self.notices.pass_on(&notice),
                Action::Discard { id, ranges } => self.work(id, work::Task::Discard(ranges)),
                Action::Prepare { id, what } => self.work(id, work::Task::Prepare(what)),
                Action::RemoveMemory { id, range } => self.work(id, work::Task::Remove(range)),
            }
        }
    }

    fn work(&mut self, id: JobId, task: work::Task) {
        match &self.machine {
            Some(machine) => self.worker.submit(id, machine, task),
            // Cannot be: a device without a guest has nothing to do on its memory.
            None => self.tell(Event::JobDone { id, ok: false }),
        }
    }
}

fn hot_add(memory: ToAdd) -> HotAdd {
    let ToAdd { window, capacity, least_alignment } = memory;
    HotAdd { window, capacity, least_alignment }
}
