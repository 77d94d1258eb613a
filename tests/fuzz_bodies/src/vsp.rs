//! The VSP behind its public interface, with a guest that writes anything into its rings at any
//! time, and a driver that keeps the bus's rules but no order beyond them.
//!
//! The simulation's oracle follows every page. In addition, outputs must end; the rings must be
//! left alone once they are given back; signals must go where the guest requested them; a close
//! must end once nothing is in flight, and the next guest must be served; what is restored must be
//! what was saved.

use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use dynmem_protocol::{HostBody, HostMessage};
use dynmem_vsp::{Config, DynamicMemory, Job, Notice, Prepare, Snapshot, Task, Trace, Work};
use hv_balloon::StateName;
use page_range::PageCount;
use sim::Oracle;
use vmbus::protocol::{ConnectionId, Relid, VpIndex};
use vmbus::ring::RingLayout;
use vmbus::{ChannelEvent, ChannelOutput, GuestSignal, OpenChannel, VmbusDevice};

use crate::device::{self, message};
use crate::guest_memory::{Memory, PAGES, Write, layout};
use crate::world::{Op, World};

const MAX_STEPS: usize = 300;

/// The most outputs after one event: everything that the packets of a batch can cause.
const MAX_OUTPUTS: usize = 4096;

const RELID: Relid = Relid::new(7);

/// Rings as an honest guest has them: a control page and a data page each.
const SOUND_RINGS: [u8; 5] = [2, 1, 2, 3, 4];

/// A step in the fuzzer's encoding.
#[derive(Arbitrary, Debug)]
enum Step {
    /// A message from the guest, or a step of its host.
    Of(device::Step),
    /// The same, with messages in packets that request a completion.
    Complete(device::Step),
    /// The guest stops signalling the packets that follow, or resumes.
    Silent(bool),
    Signal,
    Timeout,
    Ring(Write),
    /// The guest reads everything in its ring, and signals that there is room.
    Read,
    /// One of the jobs ends.
    Job(u8, bool),
    TargetVp(u8),
    /// Opens with these rings, sound ones or not.
    OpenOdd([u8; PAGES + 2]),
    AnnounceReset,
    /// The machine that was reset starts again, if the VSP lets it, with a target or none.
    Start(Option<u16>),
}

/// The input encodes the size of the host's pages and of a batch, the steps, and the writes between
/// accesses.
pub(crate) fn run(data: &[u8]) {
    let &[kind, share, ref rest @ ..] = data else { return };
    let (steps, races) = rest.split_at(rest.len() * usize::from(share) / 255);
    let memory = Memory::new(races);
    let unit = if kind & 1 != 0 { 8 } else { 1 };
    let mut driver = Driver::new(&memory, unit, u32::from(kind >> 1));
    let mut input = Unstructured::new(steps);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        driver.act(step);
    }
    driver.the_next_guest_is_served();
}

/// The channel as the bus sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bus {
    Closed,
    Open(OpenChannel),
    Closing,
}

struct Driver<'m> {
    vsp: DynamicMemory<&'m Memory>,
    memory: &'m Memory,
    oracle: Oracle,
    config: Config,
    batch: u32,
    now: Duration,
    bus: Bus,
    jobs: Vec<Job>,
    is_silent: bool,
    /// Whether the machine was reset and has not started again.
    is_reset: bool,
    /// How many pages the guest was last asked for.
    asked: u64,
    /// The message that a restored VSP emits once more.
    said: Option<Vec<u8>>,
    /// Whether the open that is under way succeeded.
    opened: Option<bool>,
    is_quiet: bool,
}

impl<'m> Driver<'m> {
    fn new(memory: &'m Memory, unit: u64, batch: u32) -> Self {
        let config = World::config(unit);
        let vsp = DynamicMemory::new(config.clone()).unwrap().with_batch(batch).with_trace();
        let oracle = Oracle::new(config.boot_ram.clone(), config.hot_add, config.discard_unit);
        Self {
            vsp,
            memory,
            oracle,
            config,
            batch,
            now: Duration::ZERO,
            bus: Bus::Closed,
            jobs: Vec::new(),
            is_silent: false,
            is_reset: false,
            asked: 0,
            said: None,
            opened: None,
            is_quiet: false,
        }
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Of(step) => step.ops().into_iter().for_each(|op| self.apply(op, false)),
            Step::Complete(step) => step.ops().into_iter().for_each(|op| self.apply(op, true)),
            Step::Silent(is_silent) => self.is_silent = is_silent,
            Step::Signal => self.tell(ChannelEvent::Signalled),
            Step::Timeout => self.tell(ChannelEvent::Timeout),
            Step::Ring(write) => self.memory.guest_writes(write),
            Step::Read => self.read(),
            Step::Job(at, ok) => {
                if !self.jobs.is_empty() {
                    self.end_job(usize::from(at) % self.jobs.len(), ok);
                }
            }
            Step::TargetVp(vp) => {
                if let Bus::Open(open) = &mut self.bus {
                    let vp = VpIndex::new(vp.into());
                    open.target_vp = Some(vp);
                    self.tell(ChannelEvent::SetTargetVp(vp));
                }
            }
            Step::OpenOdd(bytes) => {
                if let Some(rings) = layout(&bytes) {
                    self.open(rings);
                }
            }
            Step::AnnounceReset => self.vsp.announce_reset(),
            Step::Start(target) => self.start(target),
        }
    }

    fn apply(&mut self, op: Op, completion: bool) {
        if let Some(message) = message(&op, self.asked) {
            return self.send(&message, completion);
        }
        let is = |wanted: fn(&Task) -> bool| move |job: &Job| wanted(&job.task);
        let ended = match op {
            Op::Discarded(ok) => Some((is(|task| matches!(task, Task::Discard(_))), ok)),
            Op::Prepared(ok) => Some((is(|task| matches!(task, Task::Prepare(_))), ok)),
            Op::Removed(ok) => Some((is(|task| matches!(task, Task::Remove(_))), ok)),
            _ => None,
        };
        if let Some((is_wanted, ok)) = ended {
            if let Some(at) = self.jobs.iter().position(is_wanted) {
                self.end_job(at, ok);
            }
            return;
        }
        match op {
            Op::Open => self.open(layout(&SOUND_RINGS).unwrap()),
            Op::Close => self.close(),
            Op::Reset => self.reset(),
            Op::Target(pages) => self.set_target(pages),
            Op::Inhibit(inhibited) => {
                self.config.inhibited = inhibited;
                self.vsp.set_inhibited(self.now, inhibited);
                assert_eq!(self.vsp.snapshot().inhibited, inhibited);
                self.take_outputs();
            }
            Op::Write => self.read(),
            Op::Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                self.tell(ChannelEvent::Timeout);
            }
            Op::Restore => self.move_on(),
            // Messages and jobs, above.
            _ => {}
        }
    }

    fn send(&mut self, message: &[u8], completion: bool) {
        let Bus::Open(open) = &self.bus else { return };
        self.memory.packet(open.rings.incoming(), message, completion);
        if !self.is_silent {
            self.tell(ChannelEvent::Signalled);
        }
    }

    fn read(&mut self) {
        if let Bus::Open(open) = &self.bus {
            self.memory.read_all(open.rings.outgoing());
            self.tell(ChannelEvent::Signalled);
        }
    }

    fn open(&mut self, rings: RingLayout) {
        if self.bus != Bus::Closed || self.is_reset {
            return;
        }
        self.memory.clear(&rings);
        self.memory.lend(Some(&rings));
        let target_vp = Some(VpIndex::new(0));
        let connection_id = ConnectionId::new(0x1007);
        let relid = RELID;
        let channel = OpenChannel { rings, target_vp, relid, connection_id, is_reopened: false };
        self.bus = Bus::Open(channel.clone());
        self.tell(ChannelEvent::Open { memory: self.memory, channel, guest_os_id: 0 });
        if !self.opened.take().expect("the bus waits for an answer") {
            self.bus = Bus::Closed;
            self.memory.lend(None);
        }
    }

    fn close(&mut self) {
        if matches!(self.bus, Bus::Open(_)) {
            self.bus = Bus::Closing;
            self.memory.lend(None);
            self.tell(ChannelEvent::Close);
        }
    }

    fn reset(&mut self) {
        self.oracle.system_reset();
        self.is_reset = true;
        self.memory.lend(None);
        self.tell(ChannelEvent::Reset);
    }

    fn set_target(&mut self, pages: u64) {
        let target = PageCount::new(pages);
        let taken = self.vsp.set_target(self.now, target);
        match taken {
            Ok(taken) => assert!(taken >= target && !taken.is_zero()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        self.take_outputs();
    }

    /// Starts a machine, but as the bus does: only when the VSP is quiet.
    fn start(&mut self, target: Option<u16>) {
        let target = target.map(|pages| PageCount::new(u64::from(pages) % 1200));
        let (boot_ram, hot_add) = (self.config.boot_ram.clone(), self.config.hot_add);
        if !self.is_reset || !self.vsp.is_quiet() || self.bus != Bus::Closed {
            return;
        }
        let _ = self.vsp.take_kept();
        self.oracle.replace(boot_ram.clone(), hot_add);
        self.vsp.start_machine(self.now, boot_ram, hot_add, target).expect("the VSP is quiet");
        self.is_reset = false;
        self.take_outputs();
    }

    fn end_job(&mut self, at: usize, ok: bool) {
        let Job { id, task } = self.jobs.remove(at);
        if let Task::Discard(ranges) = task
            && ok
        {
            ranges.into_iter().for_each(|range| self.memory.discard(range));
        }
        self.oracle.job_done(id, ok);
        self.vsp.job_done(self.now, id, ok);
        self.take_outputs();
    }

    /// Another VMM takes over, and asks for all jobs once more.
    fn move_on(&mut self) {
        let saved = self.vsp.save(self.now);
        let open = match &self.bus {
            Bus::Open(open) if !self.is_reset => Some((self.memory, open.clone())),
            // The bus closes the channel, and the next VMM hears of that.
            Bus::Open(_) | Bus::Closed | Bus::Closing => None,
        };
        let restored = DynamicMemory::restore(self.config.clone(), &saved, open, self.now);
        let restored = restored.expect("a VSP that was just saved");
        let before = std::mem::replace(&mut self.vsp, restored.with_batch(self.batch).with_trace());
        // After a restore, a closing VSP no longer has work to wait for, and an inhibited one takes
        // back what was being discarded.
        if before.snapshot().state != StateName::Closing && !self.config.inhibited {
            assert_eq!(lasting(self.vsp.snapshot()), lasting(before.snapshot()));
            assert_eq!(self.vsp.save(self.now), saved, "saved differently when restored");
        }
        self.said = before.unsent().map(<[u8]>::to_vec);
        self.jobs.clear();
        self.oracle.begin_move();
        if self.config.inhibited {
            self.oracle.forget_unfinished();
        }
        self.take_outputs();
        self.oracle.end_move();
        assert_eq!(self.said, None, "a message was lost");
        if self.bus == Bus::Closing {
            // The next VMM's server asks for the close again.
            self.is_quiet = false;
            self.tell(ChannelEvent::Close);
        }
        self.tell(ChannelEvent::Signalled);
    }

    fn tell(&mut self, event: ChannelEvent<&'m Memory>) {
        self.vsp.handle(self.now, event);
        self.take_outputs();
    }

    fn take_outputs(&mut self) {
        for count in 0.. {
            assert!(count < MAX_OUTPUTS, "outputs without end");
            let Some(output) = self.vsp.poll_output() else { break };
            self.take(output);
        }
        if std::mem::take(&mut self.is_quiet) {
            self.bus = Bus::Closed;
        }
        self.oracle.check(&self.vsp.snapshot());
        let is_due = self.vsp.poll_timeout().is_none_or(|at| at <= self.now + LONGEST_WAIT);
        assert!(is_due, "waits for ever");
        let in_use = self.vsp.uses_rings();
        assert!(!in_use || matches!(self.bus, Bus::Open(_)), "uses the rings of a closed channel");
    }

    fn take(&mut self, output: ChannelOutput<Work>) {
        match output {
            ChannelOutput::SignalGuest(GuestSignal { vp, flag }) => {
                let Bus::Open(open) = &self.bus else { panic!("signals a closed channel") };
                assert_eq!((Some(vp), u32::from(flag)), (open.target_vp, RELID.get()));
            }
            ChannelOutput::OpenFinished(result) => {
                // The VSP first looks at the ring after this.
                let state =
                    if result.is_ok() { StateName::AwaitVersion } else { StateName::Closed };
                assert_eq!(self.vsp.snapshot().state, state, "{result:?}");
                assert_eq!(self.opened.replace(result.is_ok()), None, "two answers to one open");
            }
            ChannelOutput::CloseFinished => {
                assert_eq!(self.bus, Bus::Closing, "no close to finish");
                assert!(self.jobs.is_empty(), "the close is finished while there is work");
                self.oracle.close_finished();
                self.is_quiet = true;
            }
            ChannelOutput::Broken(_) => self.memory.lend(None),
            ChannelOutput::Work(work) => self.work(work),
        }
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Job(job) => {
                match &job.task {
                    Task::Discard(ranges) => {
                        assert!(
                            !self.config.inhibited,
                            "a discard begins while they are forbidden"
                        );
                        self.oracle.discard(job.id, ranges);
                    }
                    Task::Prepare(what) => {
                        self.oracle.prepare(job.id, what);
                        assert!(
                            !matches!(what, Prepare::Return(_))
                                || self.config.discard_unit.get() > 1
                        );
                    }
                    Task::Remove(range) => self.oracle.remove(job.id, *range),
                }
                self.jobs.push(job);
            }
            Work::Notify(Notice::Fault(_) | _) => {}
            Work::Trace(trace) => self.trace(&trace),
        }
    }

    fn trace(&mut self, trace: &Trace) {
        match trace {
            Trace::Opened => self.oracle.opened(),
            Trace::Closed => self.oracle.channel_closed(),
            Trace::Received(packet) => self.oracle.packet(&packet.payload),
            Trace::Emitted(message) => match self.said.take() {
                Some(said) => assert_eq!(*message, said, "not the message that waited"),
                None => self.oracle.message(message),
            },
            Trace::Sent(bytes) => {
                let message = HostMessage::parse(bytes).expect("the device speaks the protocol");
                if let HostBody::BalloonRequest(request) = message.body {
                    self.asked = request.pages.get();
                }
                self.oracle.sent(bytes);
            }
            Trace::Dropped(_) | Trace::Completed(_) => {}
            Trace::State(state) => self.oracle.state = *state,
        }
    }

    /// Whatever the guest did, its channel closes, and the next guest has a channel that works.
    fn the_next_guest_is_served(&mut self) {
        self.reset();
        self.close();
        while !self.jobs.is_empty() {
            self.end_job(0, true);
        }
        self.start(None);
        assert!(!self.is_reset, "the VSP is not quiet, but waits for nothing");
        self.is_silent = false;
        self.memory.stop_races();
        self.apply(Op::Open, false);
        self.apply(Op::Version(0x2_0000), true);
        assert_eq!(self.vsp.snapshot().state, StateName::AwaitCaps);
        assert!(!self.vsp.waits_for_room());
    }
}

/// The longest wait: for a guest that adds memory and brings nothing online.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The part of a snapshot that does not depend on when the last event was.
fn lasting(snapshot: Snapshot) -> Snapshot {
    Snapshot { ready_at: None, ready_in: None, ..snapshot }
}
