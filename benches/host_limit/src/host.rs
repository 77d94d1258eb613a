//! The host's side as in a VMM: one thread for the VSP, and one for the memory.
//!
//! The guest runs on the VSP's thread, between the VSP's steps. The loop polls where a VMM would
//! sleep until it is woken.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dynmem_vsp::{Config, DynamicMemory, Job, JobId, Notice, Settle, Task, Work};
use guest_ram::GuestRam;
use page_range::{PageCount, PageRange, PageRangeSet};
use serde::Serialize;
use vmbus::protocol::{ConnectionId, Relid, VpIndex};
use vmbus::ring::RingLayout;
use vmbus::{ChannelEvent, ChannelOutput, OpenChannel, VmbusDevice};

use crate::cpu;
use crate::guest::{DOWNSTREAM_OFFSET, Guest, ring_pages};
use crate::memory::{BusMemory, GuestMemory, bus_memory};
use crate::report::nanoseconds;

/// How long a discard may take before something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cost of a resize.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// From setting the target until it is reported as reached.
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) wall: Duration,
    /// CPU time of the VSP: to use the ring, to parse, validate and account for messages, and to
    /// plan.
    #[serde(serialize_with = "nanoseconds")]
    pub(crate) vsp: Duration,
    /// CPU time of the VSP's thread: VSP and guest.
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

/// The executor of discards.
enum Memory {
    /// A separate thread that works on real memory. It ends when `jobs` is dropped.
    Real { jobs: Sender<(JobId, Vec<PageRange>)>, done: Receiver<Done>, cpu: Duration },
    /// None, since there is no memory. Holds the jobs that are about to end.
    None(Vec<JobId>),
}

type Vsp = DynamicMemory<BusMemory>;

/// The VSP and everything needed to run it.
pub(crate) struct Host {
    vsp: Vsp,
    start: Instant,
    memory: Memory,
    guest: Guest,
    usage: Usage,
    is_ready: bool,
    is_reached: bool,
}

impl Host {
    /// A VSP for a guest with all of `memory`, ready for requests.
    pub(crate) fn new(memory: &GuestMemory) -> Result<Self> {
        let ram = Arc::clone(&memory.ram);
        let work = Memory::real(Arc::clone(&ram))?;
        Self::start(ram, memory.ram.pages().clone(), memory.pieces.clone(), work)
    }

    /// Like [`Host::new`], for a guest whose pages nothing backs; only the rings are in `ram`.
    pub(crate) fn without_memory(
        ram: Arc<GuestRam>,
        boot_ram: PageRangeSet,
        pieces: Vec<PageRange>,
    ) -> Result<Self> {
        Self::start(ram, boot_ram, pieces, Memory::None(Vec::new()))
    }

    fn start(
        ram: Arc<GuestRam>,
        boot_ram: PageRangeSet,
        pieces: Vec<PageRange>,
        memory: Memory,
    ) -> Result<Self> {
        let guest = Guest::new(bus_memory(&ram), pieces);
        let settle = Settle::Fixed(Duration::ZERO);
        let vsp = Vsp::new(Config { boot_ram, settle, ..Default::default() })?;
        let channel = OpenChannel {
            rings: RingLayout::new(&ring_pages(), DOWNSTREAM_OFFSET)?,
            target_vp: Some(VpIndex::new(0)),
            relid: Relid::new(1),
            connection_id: ConnectionId::new(1),
            is_reopened: false,
        };
        let (start, usage) = (Instant::now(), Usage::default());
        let open = ChannelEvent::Open { memory: bus_memory(&ram), channel, guest_os_id: 0 };
        let mut host =
            Self { vsp, start, memory, guest, usage, is_ready: false, is_reached: false };
        host.drive(|vsp, now| vsp.handle(now, open))?;
        while !host.is_ready {
            ensure!(host.turn()?, "guest and VSP do not get together");
        }
        Ok(host)
    }

    /// Sets a target and waits until it is reached.
    pub(crate) fn resize(&mut self, target: PageCount) -> Result<Usage> {
        self.usage = Usage::default();
        self.is_reached = false;
        let messages = self.guest.sent();
        let worker = self.memory.cpu();
        let (start, thread) = (Instant::now(), cpu::thread());
        let mut taken = Ok(target);
        self.drive(|vsp, now| taken = vsp.set_target(now, target))?;
        taken?;
        while !self.is_reached {
            if !self.turn()? {
                self.wait()?;
            }
        }
        let wall = start.elapsed();
        let thread = cpu::thread().saturating_sub(thread);
        let worker = self.memory.cpu().saturating_sub(worker);
        let messages = self.guest.sent() - messages;
        Ok(Usage { wall, thread, worker, messages, ..self.usage })
    }

    /// Pages that the guest has got back.
    pub(crate) const fn returned(&self) -> PageCount {
        self.guest.returned()
    }

    /// Lets guest and VSP do what they can; returns false if both wait.
    fn turn(&mut self) -> Result<bool> {
        let mut is_busy = self.guest.run()?;
        // Let the VSP retry what waits for room: the guest may have made some.
        is_busy |= self.vsp.waits_for_room();
        if is_busy {
            self.drive(|vsp, now| vsp.handle(now, ChannelEvent::Signalled))?;
        }
        while let Some((id, ok)) = self.memory.poll() {
            self.drive(|vsp, now| vsp.job_done(now, id, ok))?;
            is_busy = true;
        }
        Ok(is_busy)
    }

    /// Sleeps until a discard has ended.
    fn wait(&mut self) -> Result<()> {
        let Memory::Real { done, cpu, .. } = &mut self.memory else {
            bail!("guest and VSP wait for each other");
        };
        let Ok(Done { id, ok, cpu: now }) = done.recv_timeout(PATIENCE) else {
            bail!("nothing happens any more: {:?}", self.vsp.snapshot());
        };
        *cpu = now;
        self.drive(|vsp, now| vsp.job_done(now, id, ok))
    }

    /// Gives the VSP an event, measures its CPU time, and carries out its requests.
    fn drive(&mut self, event: impl FnOnce(&mut Vsp, Duration)) -> Result<()> {
        let now = self.start.elapsed();
        let mut before = cpu::thread();
        event(&mut self.vsp, now);
        loop {
            let output = self.vsp.poll_output();
            let spent = cpu::thread().saturating_sub(before).saturating_sub(cpu::overhead());
            self.usage.vsp += spent;
            let Some(output) = output else { return Ok(()) };
            self.act(output)?;
            before = cpu::thread();
        }
    }

    fn act(&mut self, output: ChannelOutput<Work>) -> Result<()> {
        match output {
            ChannelOutput::Work(Work::Job(Job { id, task: Task::Discard(ranges) })) => {
                self.usage.discards += 1;
                self.memory.submit(id, ranges)?;
            }
            ChannelOutput::Work(Work::Notify(Notice::Ready { .. })) => self.is_ready = true,
            ChannelOutput::Work(Work::Notify(Notice::TargetReached { .. })) => {
                self.is_reached = true;
            }
            ChannelOutput::Work(Work::Notify(Notice::SizeChanged { .. }))
            // The guest polls.
            | ChannelOutput::SignalGuest(_) => {}
            ChannelOutput::OpenFinished(result) => result?,
            other => bail!("not expected of the VSP: {other:?}"),
        }
        Ok(())
    }
}

impl Memory {
    fn real(ram: Arc<GuestRam>) -> Result<Self> {
        let (jobs, queue) = channel::<(JobId, Vec<PageRange>)>();
        let (report, done) = channel();
        thread::Builder::new().name("memory".into()).spawn(move || {
            cpu::stay_on(1);
            for (id, ranges) in queue {
                let ok = ram.discard_or_undo(&ranges).is_ok();
                // This fails only if the bench has failed.
                let _ = report.send(Done { id, ok, cpu: cpu::thread() });
            }
        })?;
        Ok(Self::Real { jobs, done, cpu: Duration::ZERO })
    }

    fn submit(&mut self, id: JobId, ranges: Vec<PageRange>) -> Result<()> {
        match self {
            Self::Real { jobs, .. } => {
                jobs.send((id, ranges)).context("the thread that discards has ended")?;
            }
            Self::None(jobs) => jobs.push(id),
        }
        Ok(())
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
