//! The thread that runs the bus and the device on it.
//!
//! [`vmbus::Server`] and the device are state machines without I/O; this loop feeds them what
//! happens and does what they ask. What concerns the device is in [`Balloon`].

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::balloon::{self, Balloon, Operator};
use crate::bus::GuestCalls;
use crate::confine::{Confinement, Thread};
use crate::control::Control;
use crate::error::MachineError;
use crate::machine::MachineHandle;
use crate::memory::{Kept, MemoryMap};

/// How often a busy message slot, or a full ring, is looked at again. A crashing guest never
/// acknowledges a message (Linux `vmbus_wait_for_unload`), and Linux' balloon driver never says
/// that it made room.
const RETRY: Duration = Duration::from_millis(10);

/// Bus actions in one turn of the loop.
const ACTIONS_PER_TURN: u32 = 128;

const WAKE: u32 = 0;
pub(crate) const SIGNAL: u32 = 1;
const FIRST_ACKNOWLEDGED: u32 = 16;

/// What other threads want of the loop.
pub(crate) enum Request {
    Attach(MachineHandle, MemoryMap),
    Detach(Sender<Kept>),
    #[cfg_attr(not(feature = "hv-balloon"), expect(dead_code, reason = "nobody can ask"))]
    Balloon(balloon::Request),
    Stop,
}

/// The loop's other end, for all threads.
#[derive(Clone)]
pub(crate) struct LoopHandle {
    requests: Sender<Request>,
    calls: GuestCalls,
}

impl LoopHandle {
    pub(crate) fn request(&self, request: Request) {
        let _ = self.requests.send(request);
        self.calls.wake();
    }
}

/// The running loop; dropping it ends it, with all work on guest memory done.
pub(crate) struct DeviceThread {
    handle: LoopHandle,
    operator: Operator,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// The device as an operator controls it.
    pub(crate) fn operator(&self) -> &Operator {
        &self.operator
    }

    /// Gives the loop a machine that is about to start, and what it says of its memory.
    pub(crate) fn attach(&self, machine: MachineHandle, memory: MemoryMap) {
        self.handle.request(Request::Attach(machine, memory));
    }

    /// Takes the machine, which must have stopped, away again. Returns when no page of it will be
    /// touched any more: the next machine uses all memory at once.
    pub(crate) fn detach(&self) -> Kept {
        let (done, wait) = channel();
        self.handle.request(Request::Detach(done));
        // An error says that the loop has ended, and with it all work on memory.
        wait.recv().unwrap_or_default()
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
    pub(crate) calls: GuestCalls,
    pub(crate) wake: Arc<EventFd>,
    pub(crate) confinement: Confinement,
    pub(crate) balloon: balloon::Setup,
}

/// Starts the loop.
pub(crate) fn start(setup: Setup) -> Result<DeviceThread, MachineError> {
    let failed = MachineError::system("cannot start the device's threads");
    let Setup { calls, wake, confinement, balloon } = setup;
    let (requests, inbox) = channel();
    let handle = LoopHandle { requests, calls: calls.clone() };
    let (balloon, operator) =
        Balloon::start(balloon, &calls, &handle, &confinement).map_err(failed)?;
    let device_loop = DeviceLoop {
        balloon,
        inbox,
        calls,
        wake,
        machine: None,
        detaching: None,
        stopped: false,
        confinement,
    };
    let thread =
        Builder::new().name("device".into()).spawn(move || device_loop.run()).map_err(failed)?;
    Ok(DeviceThread { handle, operator, thread: Some(thread) })
}

struct DeviceLoop {
    // Before the inbox: whoever waits for an answer must not be told of the end while work on
    // memory goes on.
    balloon: Balloon,
    inbox: Receiver<Request>,
    calls: GuestCalls,
    wake: Arc<EventFd>,
    machine: Option<MachineHandle>,
    /// Who waits for the machine to be taken away.
    detaching: Option<Sender<Kept>>,
    stopped: bool,
    confinement: Confinement,
}

impl DeviceLoop {
    fn run(self) {
        let control = self.confinement.control().clone();
        let _guard = control.report_panic("device");
        if let Err(error) = self.run_until_stopped() {
            let what = "cannot wait for the device's events";
            let source = std::io::Error::other(error.to_string());
            control.send(Control::Failed(MachineError::System { what, source }.into()));
        }
    }

    fn run_until_stopped(self) -> Result<(), event_manager::Error> {
        let mut manager = EventManager::new()?;
        if self.confinement.enter(Thread::Device).is_err() {
            return Ok(());
        }
        let id = manager.add_subscriber(self);
        while !manager.subscriber_mut(id)?.stopped {
            let timeout = manager.subscriber_mut(id)?.timeout_ms();
            let events = manager.run_with_timeout(timeout)?;
            manager.subscriber_mut(id)?.on_time(events == 0);
        }
        Ok(())
    }

    fn on_wake(&mut self, ops: &mut EventOps<'_>) {
        let _ = self.wake.read();
        while let Ok(request) = self.inbox.try_recv() {
            self.on_request(request, ops);
        }
        if self.calls.take_signal() {
            self.balloon.receive();
        }
    }

    fn on_request(&mut self, request: Request, ops: &mut EventOps<'_>) {
        match request {
            Request::Attach(machine, memory) => {
                for (eventfd, data) in acknowledgements(&machine) {
                    // Without it a message waits for `RETRY`.
                    if let Err(error) = watch(ops, eventfd, data) {
                        tracing::error!("cannot wait for acknowledgements: {error}");
                    }
                }
                self.balloon.attach(&machine, memory);
                self.machine = Some(machine);
            }
            Request::Detach(done) => {
                self.calls.server().reset();
                self.balloon.begin_detach();
                self.detaching = Some(done);
            }
            Request::Balloon(request) => self.balloon.on_request(request),
            Request::Stop => self.stopped = true,
        }
    }

    /// Does what bus and device ask for; at most so much that requests get their turn, since vCPUs
    /// can ask the bus for more all the time.
    fn pump(&mut self, ops: &mut EventOps<'_>) {
        let mut turns = 0;
        loop {
            if turns == ACTIONS_PER_TURN {
                self.calls.wake();
                break;
            }
            turns += 1;
            self.balloon.act();
            let Some(action) = self.next_bus_action() else {
                break;
            };
            self.bus_action(action, ops);
        }
        self.balloon.finish_close(ops);
        self.finish_detach(ops);
        self.balloon.publish();
    }

    /// Messages stay with the server while a VP's own queue is full; what concerns channels goes
    /// on.
    fn next_bus_action(&mut self) -> Option<vmbus::Action> {
        let has_room = self.machine.as_ref().is_some_and(|machine| machine.bus.has_room());
        let mut server = self.calls.server();
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
            about_channel => self.balloon.on_bus_action(about_channel, ops),
        }
    }

    fn finish_detach(&mut self, ops: &mut EventOps<'_>) {
        if self.balloon.is_quiet()
            && let Some(done) = self.detaching.take()
        {
            if let Some(machine) = self.machine.take() {
                for (eventfd, data) in acknowledgements(&machine) {
                    unwatch(ops, eventfd, data);
                }
            }
            self.balloon.finish_detach(done);
        }
    }

    /// How long the loop may sleep, in milliseconds; −1 is for ever.
    fn timeout_ms(&self) -> i32 {
        let messages_wait = self.machine.as_ref().is_some_and(|machine| machine.bus.has_queued());
        let retry = (messages_wait || self.balloon.is_blocked()).then_some(RETRY);
        match [self.balloon.due(), retry].into_iter().flatten().min() {
            // Rounded up: a millisecond early would be a turn for nothing.
            Some(wait) => i32::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(i32::MAX),
            None => -1,
        }
    }

    /// Does what is due; also called when nothing is. `idle` says that no event came, and so that
    /// what waits for the guest may be tried again.
    fn on_time(&mut self, idle: bool) {
        if self.balloon.on_time() || (idle && self.balloon.is_blocked()) {
            // What there is to do now is done by the turn that this causes.
            self.calls.wake();
        }
        if idle && let Some(machine) = &self.machine {
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
        if let Err(source) = watch(ops, self.wake.as_ref(), WAKE) {
            let what = "cannot wait for the device's wake-up";
            let failed = Control::Failed(MachineError::System { what, source }.into());
            self.confinement.control().send(failed);
            self.stopped = true;
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            WAKE => self.on_wake(ops),
            SIGNAL => self.balloon.on_signal(),
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

/// Has the loop wait for `fd` too. The kernel may refuse: a user's event sources are limited.
pub(crate) fn watch(
    ops: &mut EventOps<'_>,
    fd: &impl std::os::fd::AsRawFd,
    data: u32,
) -> io::Result<()> {
    ops.add(Events::with_data(fd, data, EventSet::IN)).map_err(|error| match error {
        event_manager::Error::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        error => io::Error::other(error.to_string()),
    })
}

pub(crate) fn unwatch(ops: &mut EventOps<'_>, fd: &impl std::os::fd::AsRawFd, data: u32) {
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use guest_ram::HugePages;
    use host_faults::Refusal;
    use page_range::{Gpfn, PageCount, PageRange};
    use vmbus::{Server, ServerConfig};

    use super::*;
    use crate::config::{Config, OnReset, SettleTime};
    use crate::confine::Seccomp;
    use crate::console::SerialOutput;
    use crate::control::control_channel;
    use crate::error::{VmmError, chain};

    fn config() -> Config {
        Config {
            kernel: "kernel".into(),
            initrd: None,
            command_line: String::new(),
            vcpus: 1,
            memory_bytes: 1 << 30,
            max_memory_bytes: 1 << 30,
            on_reset: OnReset::default(),
            qmp: None,
            serial: SerialOutput::None,
            status_reports: false,
            settle: SettleTime::Auto,
            huge_pages: HugePages::Off,
            seccomp: Seccomp::Off,
        }
    }

    /// Starts a loop; what it then reports, if it ends by itself.
    fn start_loop() -> Result<Option<VmmError>, MachineError> {
        let memory = MemoryMap {
            boot_ram: PageRange::new(Gpfn::default(), PageCount::new(1)).into_iter().collect(),
            to_add: None,
            discard_unit: PageCount::new(1),
            target: None,
        };
        let (control, events) = control_channel();
        let wake = wake_eventfd()?;
        let server = Arc::new(Mutex::new(Server::new(ServerConfig::default())));
        let calls = GuestCalls::new(server, Arc::clone(&wake), false);
        let balloon = balloon::Setup::new(&config(), &memory, false, Arc::default())?;
        let confinement = Confinement::new(Seccomp::Off, control).expect("nothing to compile");
        drop(start(Setup { calls, wake, confinement, balloon })?);
        Ok(match events.try_recv() {
            Ok(Control::Failed(error)) => Some(error),
            _ => None,
        })
    }

    fn refused(call: libc::c_long, errno: i32) -> Result<Option<VmmError>, MachineError> {
        host_faults::with(&[Refusal::of(call, errno)], start_loop)
    }

    #[test]
    fn a_loop_that_cannot_wait_for_anything_ends_the_machine_with_the_reason() {
        assert!(start_loop().unwrap().is_none());
        let watches = refused(libc::SYS_epoll_ctl, libc::ENOSPC).unwrap().unwrap();
        let text = chain(&watches);
        assert_eq!(
            text,
            "cannot wait for the device's wake-up: No space left on device (os error 28)"
        );
        let epoll = refused(libc::SYS_epoll_create1, libc::EMFILE).unwrap().unwrap();
        assert!(chain(&epoll).starts_with("cannot wait for the device's events"), "{epoll}");
    }

    #[test]
    fn what_a_loop_cannot_be_made_of_is_told_with_a_remedy() {
        let eventfd = refused(libc::SYS_eventfd2, libc::EMFILE).unwrap_err();
        assert!(chain(&eventfd).contains("(ulimit -n"), "{eventfd}");
        let both = [libc::SYS_clone, libc::SYS_clone3].map(|call| Refusal::of(call, libc::EAGAIN));
        let error = host_faults::with(&both, start_loop).unwrap_err();
        assert!(chain(&error).starts_with("cannot start the device's threads"), "{error}");
    }
}
