//! The thread that drives the bus and the devices on it.
//!
//! [`vmbus::Server`] and the devices are state machines without I/O. In each turn this loop feeds
//! them the events and then carries out what they ask for, until they ask for nothing more.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use vmbus::protocol::ConnectionId;
use vmbus::{Action, ChannelEvent, ChannelId, ChannelOutput, Offer, OpenChannel};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::attached::Attached;
use crate::shared::{Shared, StopMark};
use crate::sources::{Source, Sources};
use crate::{Bound, BusMemory, HostFailure, Machine, OpenError, Platform, Report, Thread, Trace};

/// How often a busy message slot or a full ring is tried again. A guest that crashes never
/// acknowledges a message (Linux `vmbus_wait_for_unload`), and Linux's balloon driver never signals
/// that it made room.
const RETRY: Duration = Duration::from_millis(10);

/// The most bus actions in one turn. Requests then get their turn, because vCPUs can keep asking
/// the bus for more.
const ACTIONS_PER_TURN: u32 = 128;

/// How often a paused loop checks whether it must end.
const LOOK_FOR_STOP: Duration = Duration::from_millis(50);

/// A device of any kind on the bus of a platform.
pub(crate) type AnyDevice<P> = Box<dyn Attached<BusMemory<P>>>;

/// Requests of other threads to the loop.
pub(crate) enum Request<P> {
    /// A machine is about to run.
    Start(Machine<P>, Sender<()>),
    /// A saved machine resumes.
    Restore(Machine<P>, Sender<io::Result<()>>),
    /// The machine has stopped for a reset.
    Reset(Sender<()>),
    /// The vCPUs have stopped for a while: finish the work under way, then do nothing.
    Pause(Sender<Option<Machine<P>>>),
    /// Resume.
    Resume,
}

/// A device and its place on the bus.
pub(crate) struct Slot<P: Platform> {
    pub(crate) channel: ChannelId,
    pub(crate) offer: Offer,
    pub(crate) device: AnyDevice<P>,
    pub(crate) link: Option<Link>,
}

/// The path of the guest's signals on an open channel.
pub(crate) struct Link {
    connection: ConnectionId,
    signal: Arc<EventFd>,
}

/// The loop. Its fields are dropped in this order.
pub(crate) struct BusLoop<P: Platform> {
    /// First: a thread that waits for an answer must not learn of the end while work goes on.
    slots: Vec<Slot<P>>,
    _stopped: StopMark,
    /// The thread that waits for the end of a reset.
    resetting: Option<Sender<()>>,
    /// The thread that waits for a pause.
    pausing: Option<Sender<Option<Machine<P>>>>,
    inbox: Receiver<Request<P>>,
    sources: Sources,
    shared: Arc<Shared>,
    machine: Option<Machine<P>>,
    /// When to retry what waits for the guest.
    retry_at: Option<Instant>,
    /// The last turn left work to do.
    has_more: bool,
}

impl<P: Platform> BusLoop<P> {
    pub(crate) fn new(
        slots: Vec<Slot<P>>,
        inbox: Receiver<Request<P>>,
        sources: Sources,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            slots,
            _stopped: StopMark(Arc::clone(&shared)),
            resetting: None,
            pausing: None,
            inbox,
            sources,
            shared,
            machine: None,
            retry_at: None,
            has_more: false,
        }
    }

    /// Runs until it is told to stop, or cannot continue.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _report = PanicReport { shared: &shared, thread: Thread::Bus };
        if let Err(source) = shared.supervisor.thread_started(Thread::Bus) {
            let failure = HostFailure::Refused { thread: Thread::Bus, source };
            return shared.supervisor.failed(failure);
        }
        if let Err(error) = self.turns() {
            shared.supervisor.failed(HostFailure::Wait(error));
        }
        drop(self);
    }

    fn turns(&mut self) -> io::Result<()> {
        while !self.shared.is_to_stop() {
            for source in self.sources.wait(self.timeout())? {
                self.on_event(source);
            }
            while let Ok(request) = self.inbox.try_recv() {
                self.on_request(request);
            }
            self.on_time();
            self.pump();
            self.finish_reset();
            self.plan_retry();
            self.pause_if_idle();
        }
        Ok(())
    }

    /// Pauses, if a thread waits for that and nothing is under way.
    fn pause_if_idle(&mut self) {
        if self.pausing.is_none()
            || self.has_more
            || !self.slots.iter().all(|it| it.device.is_idle())
        {
            return;
        }
        // A job that ended since the last turn has left outputs.
        self.pump();
        if self.has_more || !self.slots.iter().all(|it| it.device.is_idle()) {
            return;
        }
        let Some(done) = self.pausing.take() else { return };
        let _ = done.send(self.machine.clone());
        // Requests answered after the pause.
        let mut put_off = Vec::new();
        while !self.shared.is_to_stop() {
            match self.inbox.recv_timeout(LOOK_FOR_STOP) {
                Ok(Request::Resume) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(request) => put_off.push(request),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        put_off.into_iter().for_each(|request| self.on_request(request));
    }

    fn on_request(&mut self, request: Request<P>) {
        match request {
            Request::Start(machine, done) => {
                self.start_machine(machine);
                let _ = done.send(());
            }
            Request::Restore(machine, done) => {
                let _ = done.send(self.restore_machine(machine));
            }
            Request::Reset(done) => self.begin_reset(done),
            Request::Pause(done) => self.pausing = Some(done),
            // The thread that asked for the pause has given up.
            Request::Resume => self.pausing = None,
        }
    }

    fn on_event(&mut self, source: Source) {
        match source {
            Source::Wake => {
                self.shared.supervisor.trace(Trace::Woken);
                let _ = self.shared.wake_fd().read();
            }
            Source::Signal(device) => {
                let now = self.shared.now();
                if let Some(slot) = usize::try_from(device).ok().and_then(|i| self.slots.get_mut(i))
                    && let Some(link) = &slot.link
                {
                    let _ = link.signal.read();
                    self.shared.supervisor.trace(Trace::Signalled { device });
                    slot.device.handle(now, ChannelEvent::Signalled);
                }
            }
            Source::Acknowledged(vp) => {
                if let Some(machine) = &self.machine {
                    if let Some(eventfd) = machine.platform().acknowledgement(vp) {
                        let _ = eventfd.read();
                    }
                    machine.acknowledged(vp);
                }
            }
        }
    }

    fn start_machine(&mut self, machine: Machine<P>) {
        for vp in machine.vps() {
            let Some(eventfd) = machine.platform().acknowledgement(vp) else { continue };
            if let Err(source) = self.sources.add(eventfd, Source::Acknowledged(vp)) {
                self.report(Report::Acknowledgements { vp, source });
            }
        }
        let clock = machine.clone();
        self.shared.set_reference(Some(Box::new(move || clock.platform().reference_time())));
        self.machine = Some(machine);
    }

    /// Resumes a saved machine: binds the signals of its open channels, and repeats interrupts that
    /// may have been lost between the two hosts.
    fn restore_machine(&mut self, machine: Machine<P>) -> io::Result<()> {
        self.start_machine(machine.clone());
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get(index) else { continue };
            let id = slot.channel;
            let open = self.shared.server().opened(id);
            let Some(open) = open else { continue };
            self.bind(index, &machine, open.connection_id)?;
            self.tell(id, ChannelEvent::Signalled);
        }
        machine.vps().try_for_each(|vp| machine.repeat_interrupt(vp))
    }

    fn begin_reset(&mut self, done: Sender<()>) {
        self.shared.reset_bus();
        let now = self.shared.now();
        for slot in &mut self.slots {
            slot.device.handle(now, ChannelEvent::Reset);
        }
        self.resetting = Some(done);
    }

    fn finish_reset(&mut self) {
        let is_quiet = |slot: &Slot<P>| slot.link.is_none() && slot.device.is_quiet();
        if self.resetting.is_none() || !self.slots.iter().all(is_quiet) {
            return;
        }
        self.shared.set_reference(None);
        if let Some(machine) = self.machine.take() {
            for vp in machine.vps() {
                if let Some(eventfd) = machine.platform().acknowledgement(vp) {
                    self.sources.remove(eventfd);
                }
            }
        }
        if let Some(done) = self.resetting.take() {
            let _ = done.send(());
        }
    }

    /// Carries out what the bus and the devices ask for.
    fn pump(&mut self) {
        self.has_more = false;
        for _ in 0..ACTIONS_PER_TURN {
            self.drain_devices();
            let Some(action) = self.next_action() else { return };
            self.bus_action(action);
        }
        self.drain_devices();
        self.has_more = true;
        self.shared.wake();
    }

    /// Messages stay with the bus while a VP's own queue is full; actions on channels continue.
    fn next_action(&self) -> Option<Action> {
        let has_room = self.machine.as_ref().is_some_and(Machine::has_room);
        self.shared.next_action(has_room)
    }

    fn bus_action(&mut self, action: Action) {
        match action {
            Action::Send { vp, message } => {
                if let Some(machine) = &self.machine {
                    machine.post(vp, message.as_bytes());
                }
            }
            Action::DropQueuedMessages => {
                if let Some(machine) = &self.machine {
                    machine.clear_queues();
                }
            }
            Action::Open { channel, rings, target_vp, relid, connection_id, is_reopened } => {
                let open = OpenChannel { rings, target_vp, relid, connection_id, is_reopened };
                self.open(channel, open);
            }
            Action::Close { channel } => {
                if self.slots.iter().all(|slot| slot.channel != channel) {
                    // A device that was on the bus when it was saved, and is missing now.
                    return self.shared.close_finished(channel);
                }
                self.tell(channel, ChannelEvent::Close);
            }
            Action::SetTargetVp { channel, target_vp } => {
                self.tell(channel, ChannelEvent::SetTargetVp(target_vp));
            }
        }
    }

    fn tell(&mut self, channel: ChannelId, event: ChannelEvent<BusMemory<P>>) {
        let now = self.shared.now();
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.channel == channel) {
            slot.device.handle(now, event);
        }
    }

    fn open(&mut self, id: ChannelId, channel: OpenChannel) {
        let Some(index) = self.slots.iter().position(|slot| slot.channel == id) else {
            return self.shared.open_finished(id, false);
        };
        let Some(machine) = self.machine.clone() else {
            return self.shared.open_finished(id, false);
        };
        match self.bind(index, &machine, channel.connection_id) {
            Ok(()) => {
                let event = ChannelEvent::Open {
                    // A clone, because guards may be meant to be short-lived.
                    memory: BusMemory::<P>::new(machine.platform().memory().clone()),
                    channel,
                    guest_os_id: machine.guest_os_id(),
                };
                self.tell(id, event);
            }
            Err(error) => {
                self.shared.open_finished(id, false);
                if let Some(slot) = self.slots.get(index) {
                    let source = OpenError::Signal(error);
                    self.report(Report::OpenFailed { offer: slot.offer, source });
                }
            }
        }
    }

    /// Directs the guest's signals on a connection to the device.
    fn bind(
        &mut self,
        index: usize,
        machine: &Machine<P>,
        connection: ConnectionId,
    ) -> io::Result<()> {
        let signal = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let bound = machine.platform().bind_signal(connection, &signal)?;
        if bound == Bound::ByExit {
            machine.add_signal(connection, Arc::clone(&signal));
        }
        let source = Source::Signal(u32::try_from(index).unwrap_or(u32::MAX));
        let added = self.sources.add(&signal, source);
        if let Some(slot) = self.slots.get_mut(index) {
            slot.link = Some(Link { connection, signal });
        }
        added.inspect_err(|_| self.unbind(index))
    }

    fn unbind(&mut self, index: usize) {
        let link = self.slots.get_mut(index).and_then(|slot| slot.link.take());
        if let (Some(link), Some(machine)) = (link, &self.machine) {
            machine.platform().unbind_signal(link.connection);
            machine.remove_signal(link.connection);
            self.sources.remove(&link.signal);
        }
    }

    /// Carries out what the devices ask for.
    fn drain_devices(&mut self) {
        for index in 0..self.slots.len() {
            while let Some(slot) = self.slots.get_mut(index)
                && let Some(output) = slot.device.poll()
            {
                let (id, offer) = (slot.channel, slot.offer);
                self.device_output(index, id, offer, output);
            }
        }
    }

    fn device_output(
        &mut self,
        index: usize,
        id: ChannelId,
        offer: Offer,
        output: ChannelOutput<std::convert::Infallible>,
    ) {
        match output {
            ChannelOutput::SignalGuest(signal) => {
                if let Some(machine) = &self.machine
                    && let Err(source) = machine.signal_guest(signal)
                {
                    self.report(Report::Interrupt { vp: signal.vp, source });
                }
            }
            ChannelOutput::OpenFinished(Ok(())) => {
                self.shared.open_finished(id, true);
                self.report(Report::ChannelOpened(offer));
            }
            ChannelOutput::OpenFinished(Err(error)) => {
                self.unbind(index);
                self.shared.open_finished(id, false);
                self.report(Report::OpenFailed { offer, source: error.into() });
            }
            ChannelOutput::CloseFinished => {
                // Before the bus is told: it may open the same connection again.
                self.unbind(index);
                self.shared.close_finished(id);
                self.report(Report::ChannelClosed(offer));
            }
            ChannelOutput::Broken(source) => self.report(Report::ChannelBroken { offer, source }),
            ChannelOutput::Work(never) => match never {},
        }
    }

    /// How long the loop may sleep.
    fn timeout(&self) -> Option<Duration> {
        let (now, time_passes) = (self.shared.now(), self.shared.time_passes());
        let retry = self.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        let due = |slot: &Slot<P>| slot.device.due(now, time_passes);
        self.slots.iter().filter_map(due).chain(retry).min()
    }

    /// Schedules a retry of what waits for the guest.
    fn plan_retry(&mut self) {
        let waits = self.machine.as_ref().is_some_and(Machine::has_queued)
            || self.slots.iter().any(|slot| slot.device.waits_for_room());
        self.retry_at = match self.retry_at {
            _ if !waits => None,
            None => Some(Instant::now() + RETRY),
            planned => planned,
        };
    }

    /// Does what is due.
    fn on_time(&mut self) {
        let now = self.shared.now();
        for slot in &mut self.slots {
            slot.device.on_time(now);
        }
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.retry_at = None;
            for slot in self.slots.iter_mut().filter(|slot| slot.device.waits_for_room()) {
                slot.device.handle(now, ChannelEvent::Signalled);
            }
            if let Some(machine) = &self.machine {
                machine.kick_waiting();
            }
        }
    }

    fn report(&self, report: Report) {
        self.shared.supervisor.report(report);
    }
}

/// Reports the end of a thread that panics, so that the machine does not hang.
pub(crate) struct PanicReport<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) thread: Thread,
}

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.supervisor.failed(HostFailure::Panicked(self.thread));
        }
    }
}
