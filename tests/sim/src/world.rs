//! One run: a machine, its guest, its operator, and the choice of what happens next.

mod after;

use std::time::Duration;

use guest_model::dynmem::Personality;
use hv_balloon::StateName;
use page_range::PageCount;
use vmbus::VmbusDevice;
use vmbus::protocol::VpIndex;

use crate::dice::Dice;
use crate::guest::{Guest, Stage};
use crate::host::Host;
use crate::oracle::{Oracle, has_session};
use crate::setup::{self, Setup};
use crate::tally::Tally;
use crate::trace::Trace;
use crate::vice::{self, Places, Vice};
use crate::watch::Watch;

/// Steps within which everything must come to rest: several times what any run needs.
const MAX_STEPS: u32 = 20_000;

/// Steps within which a booting guest gets as far as it ever will.
const LINGER_STEPS: u32 = 100;

/// Virtual time within which everything must come to rest. The longest wait is for a guest that
/// adds 64 GiB and brings nothing online.
const MAX_WAIT: Duration = Duration::from_secs(2 * 3600);

/// Something that can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// The host's loop takes a turn.
    Turn,
    /// The host's loop retries what waits for room in the ring.
    Retry,
    /// The VSP's deadline passes.
    Deadline,
    /// A job on guest memory ends.
    Job,
    /// The machine that was reset starts again.
    Restart,
    /// The guest posts to the bus.
    Post,
    /// The guest takes a bus message.
    Take,
    /// The guest reads from its ring.
    Read,
    /// The guest writes to its ring.
    Send,
    /// The guest's vCPU thread fills the message slot.
    Deliver,
    /// The operator sets a target.
    Operate,
    /// Something on the host forbids discards, or allows them again.
    Inhibit,
    /// Something happens in the guest.
    Live,
    /// The guest does something hostile.
    Vice,
    /// The guest gives a page just before the request times out.
    Dribble,
    /// Time leaps ahead.
    Leap,
    /// One of [`HANGS`] hangs for a while.
    Hang,
    /// The machine is reset.
    Reset,
}

/// The moves that can hang.
const HANGS: [Move; 6] = [Move::Turn, Move::Job, Move::Post, Move::Take, Move::Read, Move::Send];

/// Which moves can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// All of them.
    Storm,
    /// Only those that the two sides need to make progress.
    Calm,
    /// Those of [`Calm`](Self::Calm), but none of the guest's.
    Silence,
}

/// One run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) host: Host,
    guest: Guest,
    dice: Dice,
    setup: Setup,
    pub(crate) vices: Vec<Vice>,
    weather: Weather,
    /// Until when each of [`HANGS`] hangs.
    hangs: [Duration; HANGS.len()],
    /// A post was refused since messages were last taken.
    post_blocked: bool,
    /// A packet did not fit since the host last received.
    send_blocked: bool,
    is_resetting: bool,
    moves: Vec<(u64, Move)>,
}

impl World {
    /// The run of a seed. The guest has these vices or, with `None`, those that the seed
    /// determines.
    pub(crate) fn new(seed: u64, vices: Option<&[Vice]>, trace: Trace) -> Self {
        let mut dice = Dice::new(seed);
        let rolled = roll_vices(&mut dice);
        let vices = vices.map_or(rolled, <[Vice]>::to_vec);
        Self::with_vices(vices, dice, trace)
    }

    /// A run whose guest has these vices; without any, it is honest.
    fn with_vices(vices: Vec<Vice>, mut dice: Dice, trace: Trace) -> Self {
        let setup = Setup::roll(vices.is_empty(), &mut dice);
        let personality = match vices.is_empty() {
            true => setup::honest(&mut dice),
            false => setup::hostile(&vices, &mut dice),
        };
        let oracle = Oracle::new(setup.boot_ram.clone(), setup.hot_add, setup.unit);
        let batch = dice.pick(&[1, 3, dynmem_vsp::BATCH]);
        let mut host = Host::new(setup.config(), batch, Watch::new(oracle, trace));
        host.watch.note(host.now, || format!("{} with {vices:?}", personality.name));
        host.watch.note(host.now, || format!("{setup:?}"));
        host.watch.is_strict = vices.is_empty();
        host.watch.tally.see("guest", personality.name);
        vices.iter().for_each(|vice| host.watch.tally.see("vice", vice.name()));
        let guest = new_guest(personality, &setup, &host, vices.is_empty());
        let mut world = Self {
            host,
            guest,
            dice,
            setup,
            vices,
            weather: Weather::Storm,
            hangs: [Duration::ZERO; HANGS.len()],
            post_blocked: false,
            send_blocked: false,
            is_resetting: false,
            moves: Vec::new(),
        };
        world.guest.boot(&mut world.host);
        world
    }

    /// Makes the run: lets everything happen, then checks that everything comes to rest.
    pub(crate) fn run(&mut self) {
        self.storm();
        if self.vices.is_empty() {
            self.calm();
        } else {
            if self.vices.iter().all(|vice| vice.is_passive()) {
                self.linger();
            }
            self.silence();
            self.after_a_reset();
        }
        let snapshot = self.host.snapshot();
        self.host.watch.tally.see_faults(&snapshot, self.host.server.faults());
    }

    pub(crate) fn into_tally(self) -> Tally {
        self.host.watch.tally
    }

    fn storm(&mut self) {
        let steps = self.dice.between(30, 160);
        for _ in 0..steps {
            self.step();
        }
    }

    /// In half of the runs, replaces the hostile guest by an honest one, which must find a host
    /// that works.
    fn after_a_reset(&mut self) {
        if self.dice.one_in(2) {
            return;
        }
        self.vices.clear();
        self.reset();
        self.change_weather(Weather::Calm);
        let personality = Personality::linux_6_1();
        self.host.watch.is_strict = true;
        self.setup.widen_rings();
        self.guest = new_guest(personality, &self.setup, &self.host, true);
        self.settle();
        assert!(self.is_running(), "the next guest does not get its channel");
        let all = self.host.snapshot().assigned;
        self.target(PageCount::new(all.get() / 2));
        self.target(all);
        self.has_returned_everything(all);
    }

    fn is_running(&self) -> bool {
        self.guest.stage == Stage::Running && has_session(self.host.snapshot().state)
    }

    /// Sets a target and runs until everything is at rest.
    fn target(&mut self, target: PageCount) {
        self.host.set_target(target);
        self.settle();
    }

    /// Runs until nothing more happens by itself.
    fn settle(&mut self) {
        let until = self.host.now + MAX_WAIT;
        for _ in 0..MAX_STEPS {
            if !self.step() {
                return self.has_come_to_rest();
            }
            assert!(self.host.now < until, "still waiting after {MAX_WAIT:?}");
        }
        panic!("not at rest after {MAX_STEPS} steps");
    }

    /// Checks that nobody waits for anything, now that nothing more happens by itself.
    fn has_come_to_rest(&mut self) {
        assert!(self.host.jobs.is_empty(), "a job never ends");
        let state = self.host.snapshot().state;
        if has_session(state) {
            let is_open = self.host.watch.is_target_open();
            assert!(!is_open, "the operator waits for ever, in state {state}");
        }
        if self.host.uses_rings() && self.guest.has_sound_rings(&mut self.host) {
            let waits = self.host.expected.as_ref().is_some_and(|packets| !packets.is_empty());
            assert!(!waits, "nobody takes the guest's packet");
            let reads = self.weather == Weather::Calm && self.guest.stage == Stage::Running;
            let is_deaf = reads && self.guest.is_honest && !self.guest.has_heard_all(&self.host);
            assert!(!is_deaf, "the guest is not told of its packets");
        }
        self.host.watch.tally.see("at rest", state.as_str());
    }

    fn change_weather(&mut self, weather: Weather) {
        self.host.watch.note(self.host.now, || format!("-- {weather:?}"));
        self.weather = weather;
        if self.host.config.inhibited {
            self.host.inhibit(false);
        }
        self.hangs = [Duration::ZERO; HANGS.len()];
        self.post_blocked = false;
        self.send_blocked = false;
    }

    /// Makes one of the possible moves, or lets time pass; returns false if nothing can happen.
    fn step(&mut self) -> bool {
        if self.setup.moves && self.dice.one_in(12) {
            self.host.move_on(&mut self.dice);
        }
        self.find_moves();
        if self.moves.is_empty() {
            return self.wait();
        }
        let next = self.dice.weighted(&self.moves);
        self.host.now += Duration::from_micros(self.dice.below(1500));
        self.make(next);
        true
    }

    /// Lets time pass until the next thing is due; returns false if nothing is.
    fn wait(&mut self) -> bool {
        let now = self.host.now;
        let sends = self.guest_may(Move::Send) && self.guest.stage == Stage::Running;
        let guest = if sends { self.guest.driver.next_deadline() } else { None };
        let deadlines = [self.host.vsp.poll_timeout(), guest, self.dribbles_at()];
        let due = deadlines.into_iter().flatten().chain(self.hangs).filter(|at| *at > now).min();
        if let Some(due) = due {
            self.host.now = due;
        }
        due.is_some()
    }

    /// When a guest that dribbles gives its page: shortly before the request times out.
    fn dribbles_at(&self) -> Option<Duration> {
        let dribbles = self.vices.contains(&Vice::Dribbles) && !self.is_resetting;
        // A timeout that is due now may only mean that the VSP continues with the ring.
        let deadline = self.host.vsp.poll_timeout().filter(|at| dribbles && *at > self.host.now)?;
        let is_asked = self.host.watch.oracle.state == StateName::Ballooning;
        is_asked.then(|| deadline.saturating_sub(Duration::from_secs(1)))
    }

    fn find_moves(&mut self) {
        self.moves.clear();
        if (self.host.wake || self.host.signalled) && !self.hangs(Move::Turn) {
            self.moves.push((8, Move::Turn));
        }
        if self.host.is_due() {
            self.moves.push((3, Move::Deadline));
        }
        if self.dribbles_at().is_some_and(|at| at <= self.host.now) && !self.host.signalled {
            self.moves.push((6, Move::Dribble));
        }
        if !self.host.jobs.is_empty() && !self.hangs(Move::Job) {
            self.moves.push((4, Move::Job));
        }
        if self.host.has_new_room && self.host.is_blocked() {
            self.moves.push((2, Move::Retry));
        }
        if self.is_resetting {
            if self.host.is_quiet() {
                self.moves.push((1, Move::Restart));
            }
        } else {
            self.find_moves_of_guest();
        }
        if self.weather == Weather::Storm {
            let hostile = if self.vices.is_empty() { 0 } else { 6 };
            let any = [(2, Move::Operate), (2, Move::Live), (1, Move::Leap), (1, Move::Hang)];
            self.moves.extend(any);
            if self.setup.inhibits {
                self.moves.push((1, Move::Inhibit));
            }
            if !self.is_resetting {
                self.moves.push((hostile, Move::Vice));
                if self.dice.one_in(20) {
                    self.moves.push((3, Move::Reset));
                }
            }
        }
    }

    fn find_moves_of_guest(&mut self) {
        self.send_blocked &= !self.host.hears_of_room;
        if self.host.watch.received {
            self.host.watch.received = false;
            self.send_blocked &= self.guest.waits_for_room;
        }
        if self.guest_may(Move::Post) && !self.post_blocked && self.guest.can_post() {
            self.moves.push((6, Move::Post));
        }
        if self.guest_may(Move::Take) && self.host.synic.has_message() {
            self.moves.push((6, Move::Take));
            self.moves.push((1, Move::Deliver));
        }
        if self.guest_may(Move::Read) && self.guest.wants_to_read(&self.host) {
            self.moves.push((6, Move::Read));
        }
        let now = self.host.now;
        if self.guest_may(Move::Send) && !self.send_blocked && self.guest.wants_to_send(now) {
            self.moves.push((6, Move::Send));
        }
        if self.weather == Weather::Calm
            && matches!(self.guest.stage, Stage::Down | Stage::Unloaded)
        {
            self.moves.push((1, Move::Live));
        }
    }

    /// Whether the guest makes such a move now.
    fn guest_may(&self, what: Move) -> bool {
        let has = |vice| self.vices.contains(&vice);
        let is_up = has_session(self.host.watch.oracle.state);
        let is_open = self.guest.stage == Stage::Running;
        let refuses = match what {
            Move::Send => is_up && has(Vice::NeverAnswers),
            // A guest that also floods stops reading before the handshake is over.
            Move::Read => (is_up || has(Vice::Floods)) && has(Vice::NeverReads),
            Move::Take => is_open && has(Vice::TakesNoMessages),
            _ => false,
        };
        self.weather != Weather::Silence && !refuses && !self.hangs(what)
    }

    fn hangs(&self, what: Move) -> bool {
        let until = HANGS.iter().zip(self.hangs).find(|(hang, _)| **hang == what);
        until.is_some_and(|(_, until)| until > self.host.now)
    }

    fn make(&mut self, next: Move) {
        match next {
            Move::Turn => {
                self.post_blocked = false;
                self.host.turn();
            }
            Move::Retry => {
                self.post_blocked = false;
                self.host.retry();
            }
            Move::Deadline => self.host.on_timeout(),
            Move::Job => {
                let at = self.dice.index(self.host.jobs.len());
                let ok = self.weather != Weather::Storm || !self.dice.one_in(12);
                self.host.end_job(at, ok);
            }
            Move::Restart => self.restart(),
            Move::Post => {
                self.guest.post(&mut self.host);
                self.post_blocked = !self.host.server.can_accept();
            }
            Move::Take => {
                self.post_blocked = false;
                self.guest.take_message(&mut self.host);
                // The host learns that the slot is free.
                self.host.wake = true;
            }
            Move::Deliver => self.host.synic.deliver(),
            Move::Read => self.guest.read_packet(&mut self.host),
            Move::Send => self.send_blocked = !self.guest.send_packet(&mut self.host),
            Move::Operate => self.operate(),
            Move::Inhibit => {
                self.host.watch.tally.see("event", "inhibited");
                self.host.inhibit(!self.host.config.inhibited);
            }
            Move::Live => self.live(),
            Move::Vice => {
                let vice = self.dice.pick(&self.vices);
                self.vice(vice);
            }
            Move::Dribble => self.vice(Vice::Dribbles),
            Move::Leap => {
                let most = self.dice.pick(&[100, 2000, 2000, 70_000, 900_000]);
                self.host.now += Duration::from_millis(self.dice.below(most));
            }
            Move::Hang => {
                let who = self.dice.index(HANGS.len());
                let most = self.dice.pick(&[50, 1000, 1000, 200_000, 900_000]);
                let until = self.host.now + Duration::from_millis(self.dice.below(most));
                self.hangs[who] = until;
                self.host
                    .watch
                    .note(self.host.now, || format!("-- {:?} hangs until {until:?}", HANGS[who]));
            }
            Move::Reset => self.reset(),
        }
    }

    fn operate(&mut self) {
        let device = self.host.snapshot();
        let (assigned, maximum) = (device.assigned.get(), device.maximum.get());
        let target = match self.dice.below(10) {
            0 => self.dice.pick(&[0, 1, maximum + 1, u64::MAX]),
            1 | 2 => maximum,
            3 => assigned,
            4..=7 => self.dice.between(assigned / 2, assigned),
            _ => self.dice.between(1, maximum),
        };
        self.host.set_target(PageCount::new(target));
    }

    fn live(&mut self) {
        if self.is_resetting {
            return;
        }
        let (guest, host) = (&mut self.guest, &mut self.host);
        let count = PageCount::new(self.dice.below(1 << 13));
        match (guest.stage, self.dice.below(16)) {
            (Stage::Down, _) => guest.boot(host),
            (Stage::Unloaded, _) => guest.load(),
            (_, 0) => {
                host.watch.tally.see("event", "unload");
                guest.unload(host);
            }
            (_, 1) => {
                host.watch.tally.see("event", "kexec");
                guest.kexec(host, self.dice.pick(&crate::guest::MAPS));
            }
            (_, 2) if self.dice.one_in(3) => {
                host.watch.tally.see("event", "crash");
                guest.crash(host);
            }
            (_, 3..=5) => guest.driver.report_status(),
            (Stage::Running, 9) => {
                // The driver notices a signal on either VP.
                let vp = VpIndex::new(u32::from(self.dice.one_in(2)));
                guest.relid.into_iter().for_each(|relid| guest.bus.modify(relid, vp));
            }
            (_, 6) => guest.driver.memory_mut().release(),
            (_, 7) => guest.driver.memory_mut().online(),
            (_, 8) if self.dice.one_in(4) => {
                guest.driver.memory_mut().shatter_units(PageCount::new(1 << 10));
            }
            _ => guest.driver.memory_mut().occupy(count),
        }
    }

    fn vice(&mut self, vice: Vice) {
        let places = Places { boot_ram: self.setup.boot_ram.clone(), window: self.setup.window() };
        vice::act(vice, &mut self.guest, &mut self.host, &mut self.dice, &places);
    }

    fn reset(&mut self) {
        if self.is_resetting {
            return;
        }
        self.host.watch.note(self.host.now, || "-- the machine is reset".into());
        self.host.watch.tally.see("event", "reset");
        self.is_resetting = true;
        self.guest.forget_channel(&mut self.host);
        self.guest.ram().set_mischief(None);
        self.host.begin_reset();
    }

    fn restart(&mut self) {
        self.setup.reset(&mut self.dice);
        self.host.restart(self.setup.boot_ram.clone(), self.setup.hot_add);
        let personality = self.guest.personality();
        let is_honest = self.guest.is_honest;
        self.guest = new_guest(personality, &self.setup, &self.host, is_honest);
        self.is_resetting = false;
        self.guest.boot(&mut self.host);
    }
}

/// Three of eight guests are honest. Most of the others have few vices, so that they get somewhere.
fn roll_vices(dice: &mut Dice) -> Vec<Vice> {
    match dice.below(8) {
        0..=2 => Vec::new(),
        3..=6 => (0..dice.between(1, 3)).map(|_| dice.pick(&Vice::ALL)).collect(),
        _ => Vice::ALL.iter().copied().filter(|vice| !vice.is_passive()).collect(),
    }
}

fn new_guest(personality: Personality, setup: &Setup, host: &Host, is_honest: bool) -> Guest {
    let mut guest = Guest::new(
        personality,
        setup.memory(),
        host.ram.clone(),
        setup.ring_places(),
        setup.ring_pages[0],
    );
    guest.is_honest = is_honest;
    guest
}
