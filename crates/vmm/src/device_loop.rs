//! The thread that runs the bus and the device.
//!
//! [`vmbus::Server`] and [`hv_balloon::Device`] are state machines without I/O; this loop feeds
//! them what happens and does what they ask.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use guest_ram::{GuestRam, MemoryWorker, WorkError};
use hv_balloon::{Device, DiscardId, Event, Snapshot, TargetError};
use page_range::PageCount;
use vmbus::ring::RingError;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::GuestCalls;
use crate::channel::{BATCH, Channel, Opening, Received};
use crate::control::{Control, ControlSender};
use crate::error::MachineError;
use crate::machine::MachineHandle;
use crate::notices::Notices;

/// How often a busy message slot, or a full ring, is looked at again. A crashing guest never
/// acknowledges a message (Linux `vmbus_wait_for_unload`), and Linux' balloon driver never says
/// that it made room.
const RETRY: Duration = Duration::from_millis(10);

/// Bus actions in one turn of the loop.
const ACTIONS_PER_TURN: u32 = 128;

const WAKE: u32 = 0;
const SIGNAL: u32 = 1;
const FIRST_ACKNOWLEDGED: u32 = 16;

/// What other threads want of the loop.
enum Request {
    Attach(MachineHandle),
    Detach(Sender<()>),
    Resetting,
    SetTarget(PageCount, Sender<Result<(), TargetError>>),
    Discarded { id: DiscardId, ok: bool },
    Stop,
}

/// The loop's other end, for all threads.
#[derive(Clone)]
pub(crate) struct DeviceHandle {
    requests: Sender<Request>,
    calls: GuestCalls,
    snapshot: Arc<Mutex<Snapshot>>,
    /// When the loop's time began.
    start: Instant,
}

impl DeviceHandle {
    /// Gives the loop a machine that is about to start.
    pub(crate) fn attach(&self, machine: MachineHandle) {
        self.request(Request::Attach(machine));
    }

    /// A reset is coming: targets from now on are for the machine after it.
    pub(crate) fn announce_reset(&self) {
        self.request(Request::Resetting);
    }

    /// Takes the machine, which must have stopped, away again. Returns when no page of it will be
    /// discarded any more: the next machine uses all memory at once.
    pub(crate) fn detach(&self) {
        let (done, wait) = channel();
        self.request(Request::Detach(done));
        // An error says that the loop has ended, and with it all discards.
        let _ = wait.recv();
    }

    /// Asks for a size. `None` where the loop has ended.
    pub(crate) fn set_target(&self, pages: PageCount) -> Option<Result<(), TargetError>> {
        let (reply, wait) = channel();
        self.request(Request::SetTarget(pages, reply));
        wait.recv().ok()
    }

    /// The device as it was when something last happened to it, with the wait counted from now.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let now = self.start.elapsed();
        snapshot.ready_in = snapshot.ready_at.map(|at| at.saturating_sub(now));
        snapshot
    }

    fn request(&self, request: Request) {
        let _ = self.requests.send(request);
        self.calls.wake();
    }
}

/// The running loop; dropping it ends it, with all discards done.
pub(crate) struct DeviceThread {
    handle: DeviceHandle,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    pub(crate) fn handle(&self) -> &DeviceHandle {
        &self.handle
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        self.handle.request(Request::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the loop is made of.
pub(crate) struct Setup {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) device: Device,
    pub(crate) calls: GuestCalls,
    pub(crate) wake: Arc<EventFd>,
    pub(crate) eventfd_in_kernel: bool,
    pub(crate) notices: Notices,
    pub(crate) control: ControlSender,
}

/// Starts the loop.
pub(crate) fn start(setup: Setup) -> Result<DeviceThread, MachineError> {
    let failed = MachineError::system("cannot start the device's threads");
    let (requests, inbox) = channel();
    let snapshot = Arc::new(Mutex::new(setup.device.snapshot()));
    let start = Instant::now();
    let calls = setup.calls.clone();
    let handle = DeviceHandle { requests, calls, snapshot: Arc::clone(&snapshot), start };
    let to_loop = handle.clone();
    let worker = MemoryWorker::spawn(move |id, result: Result<(), WorkError>| {
        if let Err(error) = &result {
            tracing::error!("{}", crate::error::chain(error));
        }
        to_loop.request(Request::Discarded { id, ok: result.is_ok() });
    })
    .map_err(failed)?;
    let device_loop = DeviceLoop {
        start,
        inbox,
        worker,
        snapshot,
        machine: None,
        channel: None,
        detaching: None,
        after_reset: None,
        buffer: Vec::new(),
        setup,
        stopped: false,
    };
    let thread =
        Builder::new().name("device".into()).spawn(move || device_loop.run()).map_err(failed)?;
    Ok(DeviceThread { handle, thread: Some(thread) })
}

struct DeviceLoop {
    start: Instant,
    setup: Setup,
    // Before the inbox: whoever waits for an answer must not be told of the end while discards run.
    worker: MemoryWorker<DiscardId>,
    inbox: Receiver<Request>,
    snapshot: Arc<Mutex<Snapshot>>,
    machine: Option<MachineHandle>,
    channel: Option<Channel>,
    /// Who waits for the machine to be taken away.
    detaching: Option<Sender<()>>,
    /// While a reset is coming: the target that was set since.
    after_reset: Option<Option<PageCount>>,
    buffer: Vec<u8>,
    stopped: bool,
}

impl DeviceLoop {
    fn run(self) {
        let control = self.setup.control.clone();
        let _guard = control.report_panic("device");
        if let Err(error) = self.run_until_stopped() {
            let what = "cannot wait for the device's events";
            let source = std::io::Error::other(error.to_string());
            control.send(Control::Failed(MachineError::System { what, source }.into()));
        }
    }

    fn run_until_stopped(self) -> Result<(), event_manager::Error> {
        let mut manager = EventManager::new()?;
        let id = manager.add_subscriber(self);
        while !manager.subscriber_mut(id)?.stopped {
            let timeout = manager.subscriber_mut(id)?.timeout_ms();
            let events = manager.run_with_timeout(timeout)?;
            manager.subscriber_mut(id)?.on_time(events == 0);
        }
        Ok(())
    }

    fn tell(&mut self, event: Event<'_>) {
        self.setup.device.handle(self.start.elapsed(), event);
    }

    fn on_wake(&mut self, ops: &mut EventOps<'_>) {
        let _ = self.setup.wake.read();
        while let Ok(request) = self.inbox.try_recv() {
            self.on_request(request, ops);
        }
        if self.setup.calls.take_signal() {
            self.receive();
        }
    }

    fn on_request(&mut self, request: Request, ops: &mut EventOps<'_>) {
        match request {
            Request::Attach(machine) => {
                for (eventfd, data) in acknowledgements(&machine) {
                    watch(ops, eventfd, data);
                }
                self.machine = Some(machine);
            }
            Request::Detach(done) => {
                self.setup.calls.server().reset();
                self.tell(Event::SystemReset);
                self.detaching = Some(done);
            }
            Request::SetTarget(pages, reply) => {
                let result = self.setup.device.can_set_target(pages).map(|_| ());
                if result.is_ok() {
                    self.tell(Event::SetTarget(pages));
                    self.after_reset = self.after_reset.map(|_| Some(pages));
                }
                // Whoever asked may look at once, and must not see how the last target ended.
                self.publish();
                let _ = reply.send(result);
            }
            Request::Resetting => self.after_reset = Some(None),
            Request::Discarded { id, ok } => self.tell(Event::Discarded { id, ok }),
            Request::Stop => self.stopped = true,
        }
    }

    /// Takes packets from the ring; where there are more than a batch the loop comes back.
    fn receive(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        if let Err(error) = self.receive_batch(&mut buffer) {
            self.break_channel(error);
        }
        self.buffer = buffer;
    }

    fn receive_batch(&mut self, buffer: &mut Vec<u8>) -> Result<(), RingError> {
        for _ in 0..BATCH {
            let Some(channel) = &mut self.channel else {
                return Ok(());
            };
            match channel.receive(buffer)? {
                Received::Message => self.tell(Event::Packet(buffer)),
                Received::Other => {}
                Received::Nothing => return channel.end_receive(),
            }
            self.device_actions()?;
        }
        if let Some(channel) = &mut self.channel {
            channel.end_receive()?;
            let _ = channel.signal().write(1);
        }
        Ok(())
    }

    /// The guest broke its ring: the channel is of no use until the guest opens it anew.
    fn break_channel(&mut self, error: RingError) {
        self.setup.notices.warn(&format_args!("broke its channel, which is stopped: {error}"));
        if let Some(channel) = &mut self.channel {
            channel.stop();
            self.setup.device.handle(self.start.elapsed(), Event::ChannelClosed);
        }
    }

    /// Does what bus and device ask for; at most so much that requests get their turn, since vCPUs
    /// can ask the bus for more all the time.
    fn pump(&mut self, ops: &mut EventOps<'_>) {
        let mut turns = 0;
        loop {
            if turns == ACTIONS_PER_TURN {
                self.setup.calls.wake();
                break;
            }
            turns += 1;
            if let Err(error) = self.device_actions() {
                self.break_channel(error);
                continue;
            }
            let Some(action) = self.next_bus_action() else {
                break;
            };
            self.bus_action(action, ops);
        }
        self.finish_close(ops);
        self.finish_detach(ops);
        self.publish();
    }

    fn publish(&self) {
        *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) =
            self.setup.device.snapshot();
    }

    /// Messages stay with the server while a VP's own queue is full; what concerns channels goes
    /// on.
    fn next_bus_action(&mut self) -> Option<vmbus::Action> {
        let has_room = self.machine.as_ref().is_some_and(|machine| machine.bus.has_room());
        let mut server = self.setup.calls.server();
        if has_room { server.poll_action() } else { server.poll_channel_action() }
    }

    fn bus_action(&mut self, action: vmbus::Action, ops: &mut EventOps<'_>) {
        match action {
            vmbus::Action::Send { vp, message } => {
                if let Some(machine) = &self.machine {
                    machine.bus.post(vp.get(), message.as_bytes());
                }
            }
            vmbus::Action::DropQueuedMessages => {
                if let Some(machine) = &self.machine {
                    machine.bus.clear_queues();
                }
            }
            vmbus::Action::Open { channel, rings, target_vp, relid, connection_id } => {
                self.open(Opening { id: channel, rings, target_vp, relid, connection_id }, ops)
            }
            vmbus::Action::Close { channel } => self.close(channel),
            vmbus::Action::SetTargetVp { target_vp, .. } => {
                if let Some(channel) = &mut self.channel {
                    channel.set_target_vp(target_vp);
                }
            }
        }
    }

    fn open(&mut self, opening: Opening, ops: &mut EventOps<'_>) {
        let id = opening.id;
        let Some(machine) = self.machine.clone() else {
            return self.setup.calls.server().open_finished(id, false);
        };
        let guest_os_id = machine.guest_os_id.load(Ordering::Acquire);
        let in_kernel = self.setup.eventfd_in_kernel;
        match Channel::open(opening, &self.setup.ram, machine, in_kernel) {
            Ok(channel) => {
                watch(ops, channel.signal(), SIGNAL);
                self.channel = Some(channel);
                self.tell(Event::ChannelOpened { guest_os_id });
                self.setup.calls.server().open_finished(id, true);
                self.receive();
            }
            Err(error) => {
                tracing::warn!(
                    "cannot open the balloon's channel: {}",
                    crate::error::chain(&error)
                );
                self.setup.calls.server().open_finished(id, false);
            }
        }
    }

    fn close(&mut self, id: vmbus::ChannelId) {
        match &mut self.channel {
            Some(channel) if channel.id == id => {
                channel.stop();
                channel.closing = true;
                channel.quiet = false;
                self.tell(Event::ChannelClosed);
            }
            _ => self.setup.calls.server().close_finished(id),
        }
    }

    /// Lets go of a channel that the bus wants closed once the device is done with it.
    fn finish_close(&mut self, ops: &mut EventOps<'_>) {
        if let Some(channel) = self.channel.take_if(|channel| channel.closing && channel.quiet) {
            unwatch(ops, channel.signal(), SIGNAL);
            self.setup.calls.server().close_finished(channel.id);
            // The answers that waited for this go out now.
            self.setup.calls.wake();
        }
    }

    fn finish_detach(&mut self, ops: &mut EventOps<'_>) {
        if self.channel.is_none()
            && self.setup.device.snapshot().in_flight.is_zero()
            && let Some(done) = self.detaching.take()
        {
            if let Some(machine) = self.machine.take() {
                for (eventfd, data) in acknowledgements(&machine) {
                    unwatch(ops, eventfd, data);
                }
            }
            if let Some(target) = self.after_reset.take().flatten() {
                self.tell(Event::SetTarget(target));
            }
            let _ = done.send(());
        }
    }

    fn device_actions(&mut self) -> Result<(), RingError> {
        loop {
            if let Some(channel) = &mut self.channel
                && channel.flush()?
            {
                self.tell(Event::Sent);
            }
            let Some(action) = self.setup.device.poll_action() else {
                return Ok(());
            };
            match action {
                hv_balloon::Action::Send(message) => {
                    if let Some(channel) = &mut self.channel {
                        channel.queue(message);
                    }
                }
                hv_balloon::Action::Discard { id, ranges } => {
                    self.worker.submit_discard(id, Arc::clone(&self.setup.ram), ranges)
                }
                hv_balloon::Action::CloseFinished => {
                    if let Some(channel) = &mut self.channel {
                        channel.quiet = true;
                    }
                }
                hv_balloon::Action::Notify(notice) => self.setup.notices.pass_on(&notice),
            }
        }
    }

    /// How long the loop may sleep, in milliseconds; −1 is for ever.
    fn timeout_ms(&self) -> i32 {
        let now = self.start.elapsed();
        let deadline = self.setup.device.next_deadline().map(|at| at.saturating_sub(now));
        let messages_wait = self.machine.as_ref().is_some_and(|machine| machine.bus.has_queued());
        let ring_full = self.channel.as_ref().is_some_and(Channel::is_blocked);
        let retry = (messages_wait || ring_full).then_some(RETRY);
        match deadline.into_iter().chain(retry).chain(self.setup.notices.due()).min() {
            // Rounded up: a millisecond early would be a turn for nothing.
            Some(wait) => i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
            None => -1,
        }
    }

    /// Does what is due; also called when nothing is. `idle` says that no event came, and so that
    /// what waits for the guest may be tried again.
    fn on_time(&mut self, idle: bool) {
        let now = self.start.elapsed();
        if self.setup.device.next_deadline().is_some_and(|at| at <= now) {
            self.tell(Event::Deadline);
            // What the device wants now is done by the turn that this causes.
            self.setup.calls.wake();
        }
        self.setup.notices.flush();
        if !idle {
            return;
        }
        if self.channel.as_ref().is_some_and(Channel::is_blocked) {
            self.setup.calls.wake();
        }
        if let Some(machine) = &self.machine {
            machine.bus.kick_waiting();
        }
    }

    fn on_acknowledged(&self, vp: u32) {
        if let Some(machine) = &self.machine {
            if let Some(eventfd) = machine.bus.acknowledged(vp) {
                let _ = eventfd.read();
            }
            machine.bus.kick_if_waiting(vp);
        }
    }
}

impl MutEventSubscriber for DeviceLoop {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, self.setup.wake.as_ref(), WAKE);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            WAKE => self.on_wake(ops),
            SIGNAL => {
                if let Some(channel) = &self.channel {
                    let _ = channel.signal().read();
                }
                self.receive();
            }
            acknowledged => self.on_acknowledged(acknowledged.saturating_sub(FIRST_ACKNOWLEDGED)),
        }
        self.pump(ops);
    }
}

/// The eventfds of a machine that say when a message was taken, with their event data.
fn acknowledgements(machine: &MachineHandle) -> impl Iterator<Item = (&EventFd, u32)> {
    machine.bus.synics().filter_map(|(vp, _)| {
        let eventfd = machine.bus.acknowledged(vp)?;
        Some((eventfd, FIRST_ACKNOWLEDGED.saturating_add(vp)))
    })
}

fn watch(ops: &mut EventOps<'_>, fd: &impl std::os::fd::AsRawFd, data: u32) {
    if let Err(error) = ops.add(Events::with_data(fd, data, EventSet::IN)) {
        tracing::error!("cannot wait for an event source: {error}");
    }
}

fn unwatch(ops: &mut EventOps<'_>, fd: &impl std::os::fd::AsRawFd, data: u32) {
    if let Err(error) = ops.remove(Events::with_data(fd, data, EventSet::IN)) {
        tracing::error!("cannot let go of an event source: {error}");
    }
}

/// An eventfd to wake the loop with.
pub(crate) fn wake_eventfd() -> Result<Arc<EventFd>, MachineError> {
    EventFd::new(EFD_NONBLOCK)
        .map(Arc::new)
        .map_err(MachineError::system("cannot create the device's wake-up"))
}
