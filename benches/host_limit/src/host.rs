//! The host's side as a VMM has it: one thread for the device and its ring, one for the memory.
//!
//! The guest runs on the device's thread, between its steps. A VMM wakes up where this loop looks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guest_ram::{GuestRam, MemoryWorker};
use hv_balloon::{Action, Config, Device, Event, JobId, Notice, Settle};
use page_range::{PageCount, PageRange, PageRangeSet};
use serde::Serialize;
use vmbus::ring::{ChannelRings, RingLayout, Sent};

use crate::cpu;
use crate::guest::{DOWNSTREAM_OFFSET, Guest, ring_pages};
use crate::memory::GuestMemory;
use crate::report::nanoseconds;

/// How long a discard may take before something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a resize cost.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// From the target to the word that it is reached.
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) wall: Duration,
    /// CPU time of the device: parse, validate, account, plan. Without the ring.
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) device: Duration,
    /// CPU time of the device's thread: device, ring, and the guest.
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) thread: Duration,
    /// CPU time of the thread that discards.
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) worker: Duration,
    /// Messages from the guest.
    pub(crate) messages: u64,
    /// Discards.
    pub(crate) discards: u64,
}

/// A discard that ended.
struct Done {
    id: JobId,
    ok: bool,
    /// CPU time of the thread that discards, since it started.
    cpu: Duration,
}

/// Who gives pages back to the host.
enum Work {
    /// The worker, on real memory.
    Real { worker: MemoryWorker<Option<JobId>>, done: Receiver<Done>, cpu: Duration },
    /// Nobody: there is no memory. Jobs that are to end.
    None(Vec<JobId>),
}

/// The device and what it takes to run it.
pub(crate) struct Host {
    driven: Driven,
    rings: ChannelRings<Arc<GuestRam>>,
    ram: Arc<GuestRam>,
    work: Work,
    guest: Guest,
    /// The device's message waits for room in the ring.
    is_unsent: bool,
}

impl Host {
    /// A device for a guest with all of `memory`, ready to be asked.
    pub(crate) fn new(memory: &GuestMemory) -> Result<Self> {
        let (report, done) = channel();
        let worker = MemoryWorker::spawn(move |id, result: Result<(), _>| {
            let (ok, cpu) = (result.is_ok(), cpu::thread());
            if let Some(id) = id {
                // Fails only where the bench has failed.
                let _ = report.send(Done { id, ok, cpu });
            }
        })?;
        worker.submit(None, || {
            cpu::stay_on(1);
            Ok(())
        });
        let work = Work::Real { worker, done, cpu: Duration::ZERO };
        let ram = Arc::clone(&memory.ram);
        Self::start(ram, memory.ram.pages().clone(), memory.pieces.clone(), work)
    }

    /// The same for a guest with pages that nothing backs; the rings are in `ram`.
    pub(crate) fn without_memory(
        ram: Arc<GuestRam>,
        boot_ram: PageRangeSet,
        pieces: Vec<PageRange>,
    ) -> Result<Self> {
        Self::start(ram, boot_ram, pieces, Work::None(Vec::new()))
    }

    fn start(
        ram: Arc<GuestRam>,
        boot_ram: PageRangeSet,
        pieces: Vec<PageRange>,
        work: Work,
    ) -> Result<Self> {
        let guest = Guest::new(Arc::clone(&ram), pieces);
        let layout = RingLayout::new(&ring_pages(), DOWNSTREAM_OFFSET)?;
        let rings = ChannelRings::open(Arc::clone(&ram), &layout)?;
        let settle = Settle::Fixed(Duration::ZERO);
        let device = Device::new(Config { boot_ram, settle, ..Default::default() })?;
        let driven = Driven::new(device);
        let mut host = Self { driven, rings, ram, work, guest, is_unsent: false };
        host.tell(Event::ChannelOpened { guest_os_id: 0 })?;
        while !host.driven.is_ready {
            ensure!(host.turn()?, "the guest and the device do not get together");
        }
        Ok(host)
    }

    /// Sets a target and waits until it is reached.
    pub(crate) fn resize(&mut self, target: PageCount) -> Result<Usage> {
        self.driven.usage = Usage::default();
        self.driven.is_reached = false;
        let worker = self.work.cpu();
        let (start, thread) = (Instant::now(), cpu::thread());
        self.driven.set_target(target)?;
        self.act()?;
        while !self.driven.is_reached {
            if !self.turn()? {
                self.wait()?;
            }
        }
        let wall = start.elapsed();
        let thread = cpu::thread().saturating_sub(thread);
        let worker = self.work.cpu().saturating_sub(worker);
        Ok(Usage { wall, thread, worker, ..self.driven.usage })
    }

    /// Pages that the guest got back.
    pub(crate) const fn returned(&self) -> PageCount {
        self.guest.returned()
    }

    /// Lets guest and device do what they can; false where both wait.
    fn turn(&mut self) -> Result<bool> {
        let mut is_busy = self.guest.run()?;
        while let Some(packet) = self.rings.receive()? {
            self.driven.usage.messages += 1;
            self.driven.tell(Event::Packet(packet.payload));
            self.act()?;
            is_busy = true;
        }
        // The guest looks by itself.
        let _ = self.rings.end_receive();
        if self.is_unsent {
            // Full for now: the guest has something to read.
            is_busy = true;
            self.send()?;
        }
        while let Some((id, ok)) = self.work.poll() {
            self.tell(Event::JobDone { id, ok })?;
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// Sleeps until a discard has ended.
    fn wait(&mut self) -> Result<()> {
        let Work::Real { done, cpu, .. } = &mut self.work else {
            bail!("guest and device wait for each other");
        };
        let Ok(Done { id, ok, cpu: now }) = done.recv_timeout(PATIENCE) else {
            bail!("nothing happens any more: {:?}", self.driven.device.snapshot());
        };
        *cpu = now;
        self.tell(Event::JobDone { id, ok })
    }

    fn tell(&mut self, event: Event<'_>) -> Result<()> {
        self.driven.tell(event);
        self.act()
    }

    /// Does what the device asked for.
    fn act(&mut self) -> Result<()> {
        while let Some(action) = self.driven.actions.pop_front() {
            match action {
                Action::Send => self.send()?,
                Action::Discard { id, ranges } => {
                    self.driven.usage.discards += 1;
                    self.work.submit(id, &self.ram, ranges);
                }
                Action::Notify(Notice::Ready { .. }) => self.driven.is_ready = true,
                Action::Notify(Notice::TargetReached { .. }) => self.driven.is_reached = true,
                Action::Notify(Notice::SizeChanged { .. }) => {}
                other => bail!("not expected of the device: {other:?}"),
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        let message = self.driven.device.message().context("no message to send")?;
        self.is_unsent = matches!(self.rings.send(message, 0)?, Sent::Full);
        if !self.is_unsent {
            self.driven.tell(Event::Sent);
            self.act()?;
        }
        Ok(())
    }
}

/// The device, under a stopwatch.
struct Driven {
    device: Device,
    start: Instant,
    /// What it asks for.
    actions: VecDeque<Action>,
    usage: Usage,
    is_ready: bool,
    is_reached: bool,
}

impl Driven {
    fn new(device: Device) -> Self {
        let (start, usage) = (Instant::now(), Usage::default());
        Self { device, start, actions: VecDeque::new(), usage, is_ready: false, is_reached: false }
    }

    fn tell(&mut self, event: Event<'_>) {
        self.timed(|device, now| device.handle(now, event));
    }

    fn set_target(&mut self, target: PageCount) -> Result<()> {
        self.timed(|device, now| device.set_target(now, target))?;
        Ok(())
    }

    fn timed<T>(&mut self, call: impl FnOnce(&mut Device, Duration) -> T) -> T {
        let now = self.start.elapsed();
        let before = cpu::thread();
        let result = call(&mut self.device, now);
        while let Some(action) = self.device.poll_action() {
            self.actions.push_back(action);
        }
        let spent = cpu::thread().saturating_sub(before).saturating_sub(cpu::overhead());
        self.usage.device += spent;
        result
    }
}

impl Work {
    fn submit(&mut self, id: JobId, ram: &Arc<GuestRam>, ranges: Vec<PageRange>) {
        match self {
            Self::Real { worker, .. } => worker.submit_discard(Some(id), Arc::clone(ram), ranges),
            Self::None(jobs) => jobs.push(id),
        }
    }

    /// A job that has ended.
    fn poll(&mut self) -> Option<(JobId, bool)> {
        match self {
            Self::Real { done, cpu, .. } => {
                let done = done.try_recv().ok()?;
                *cpu = done.cpu;
                Some((done.id, done.ok))
            }
            Self::None(jobs) => Some((jobs.pop()?, true)),
        }
    }

    /// CPU time of the thread that discards.
    const fn cpu(&self) -> Duration {
        match self {
            Self::Real { cpu, .. } => *cpu,
            Self::None(_) => Duration::ZERO,
        }
    }
}
