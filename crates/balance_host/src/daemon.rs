//! The loop: waits for reports and for the second, has a decision made, and hands out the targets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{io, thread};

use balancer::HostSample;
use qmp::{Server, ServerError};

use crate::board::{Bell, Clock, lock};
use crate::control::Control;
use crate::core::{Core, Order, VmInput};
use crate::finder::{BadPattern, Finder, Found, find};
use crate::host::HostReader;
use crate::process::Figures;
use crate::reading::{Link, Stamped};
use crate::record::{RecordError, Recorder};
use crate::session::{Common, Session};
use crate::stamp::FileStamp;
use crate::view::View;
use crate::watch::Watch;
use crate::wish::Configuration;

/// Host and processes are read this often, and at least as often a decision is made.
const PERIOD_MS: u64 = 1000;

/// New sockets are looked for this often.
const FIND_MS: u64 = 2000;

/// At the start, nothing is decided before all VMs have answered, or this long: the memory of a VM that
/// is not known yet looks free.
const MEET_MS: u64 = 2000;

/// At least so long lies between two decisions. One that follows others in a hurry is for all that came meanwhile.
const GAP_MS: u64 = 5;

/// How long the end waits for VMs to be told their last size.
const FAREWELL: Duration = Duration::from_secs(3);

/// How often that wait looks.
const FAREWELL_STEP: Duration = Duration::from_millis(5);

/// What becomes of the VMs when the daemon ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnExit {
    /// They keep what they have.
    #[default]
    Keep,
    /// Those that have less than they booted with get it back.
    GiveBack,
}

/// What the daemon tells its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It runs, and its control socket listens.
    Ready,
    /// It reads its configuration again.
    Reloading,
    /// It has done another round.
    Alive,
    /// It ends.
    Ending,
}

/// How to run.
pub struct Setup {
    /// Reads the configuration. Called at the start, on request and when the file has changed; if it
    /// fails later, its text goes to the log and the configuration in force stays.
    pub load: Box<dyn FnMut() -> Result<Configuration, String> + Send>,
    /// The file that it reads, if there is one.
    pub file: Option<PathBuf>,
    /// The path of the control socket; `None` for a daemon that nobody controls.
    pub control: Option<PathBuf>,
    /// Decide, and change nothing.
    pub dry_run: bool,
    /// What becomes of the VMs at the end.
    pub on_exit: OnExit,
    /// Reads the host.
    pub host: HostReader,
    /// Where to record everything that decisions follow from, and the decisions.
    pub record: Option<PathBuf>,
}

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is not right.
    #[error("{0}")]
    Configuration(String),
    /// A pattern is none.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// The control socket cannot be served.
    #[error(transparent)]
    Control(#[from] ServerError),
    /// There is no thread or descriptor to wait for monitors.
    #[error("cannot wait for monitors: {0}")]
    Watch(#[source] io::Error),
    /// The file for the recording cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// The daemon.
pub struct Daemon {
    load: Box<dyn FnMut() -> Result<Configuration, String> + Send>,
    file: Option<PathBuf>,
    stamp: Option<FileStamp>,
    patterns: Vec<String>,
    finder: Finder,
    dry_run: bool,
    on_exit: OnExit,
    reader: HostReader,
    clock: Clock,
    bell: Arc<Bell>,
    core: Arc<Mutex<Core>>,
    watch: Arc<Watch>,
    vms: BTreeMap<PathBuf, Attached>,
    host: Option<Stamped<HostSample>>,
    _control: Option<Server>,
}

/// A VM and its thread.
struct Attached {
    found: Found,
    session: Session,
    process: Option<Stamped<Figures>>,
}

/// Tells a running daemon what to do.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Bell>);

impl Handle {
    /// Has it read its configuration.
    pub fn reload(&self) {
        self.0.ring(|calls| calls.reload = true);
    }

    /// Ends it.
    pub fn end(&self) {
        self.0.ring(|calls| calls.end = true);
    }
}

impl Daemon {
    /// Reads the configuration and listens on the control socket, if there is to be one.
    ///
    /// # Errors
    /// The configuration is not right, or the control socket cannot be served.
    pub fn start(setup: Setup) -> Result<Self, DaemonError> {
        let Setup { mut load, file, control, dry_run, on_exit, host, record } = setup;
        let stamp = file.as_deref().and_then(FileStamp::of);
        let configuration = load().map_err(DaemonError::Configuration)?;
        let patterns = configuration.patterns.clone();
        find(&patterns)?;
        let (clock, bell) = (Clock::start(), Arc::<Bell>::default());
        let mut core = Core::new(configuration, dry_run);
        if let Some(record) = &record {
            core.record_with(Recorder::open(record)?);
        }
        let core = Arc::new(Mutex::new(core));
        let serve = |path: PathBuf| {
            let commands = Control::new(Arc::clone(&core), Arc::clone(&bell), clock);
            Server::start_for(&path, Arc::new(commands))
        };
        let server = control.map(serve).transpose()?;
        let watch = Watch::start(clock, Arc::clone(&bell)).map_err(DaemonError::Watch)?;
        Ok(Self {
            load,
            file,
            stamp,
            patterns,
            finder: Finder::default(),
            dry_run,
            on_exit,
            reader: host,
            clock,
            bell,
            core,
            watch: Arc::new(watch),
            vms: BTreeMap::new(),
            host: None,
            _control: server,
        })
    }

    /// Tells the daemon what to do while it runs.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.bell))
    }

    /// Looks at the daemon while it runs.
    #[must_use]
    pub fn view(&self) -> View {
        View::new(Arc::clone(&self.core), self.clock)
    }

    /// Runs until the handle ends it.
    pub fn run(mut self, mut notify: impl FnMut(Notice)) {
        notify(Notice::Ready);
        let mut next_ms = 0_u64;
        let mut find_at_ms = 0_u64;
        let mut decided_at_ms = 0_u64;
        loop {
            let left_ms = next_ms.saturating_sub(self.clock.now_ms());
            let mut calls = self.bell.wait(Duration::from_millis(left_ms));
            let gap_ms = decided_at_ms.saturating_add(GAP_MS).saturating_sub(self.clock.now_ms());
            if calls.decide && !calls.end && gap_ms > 0 {
                thread::sleep(Duration::from_millis(gap_ms));
                let more = self.bell.wait(Duration::ZERO);
                (calls.reload, calls.end) = (calls.reload || more.reload, calls.end || more.end);
            }
            if calls.end {
                break;
            }
            let now_ms = self.clock.now_ms();
            if calls.reload || (now_ms >= next_ms && self.file_has_changed()) {
                notify(Notice::Reloading);
                self.reload();
                notify(Notice::Ready);
                find_at_ms = 0;
            }
            if now_ms >= find_at_ms {
                self.find();
                find_at_ms = now_ms.saturating_add(FIND_MS);
            }
            if now_ms >= next_ms {
                // Only a panic ends it. Better no balancer, which is started again, than a deaf one.
                assert!(!self.watch.has_ended(), "the watch over monitors has ended");
                self.look();
                notify(Notice::Alive);
                next_ms = now_ms.saturating_add(PERIOD_MS);
            }
            if now_ms >= MEET_MS || self.has_met_all() {
                self.decide();
                decided_at_ms = self.clock.now_ms();
            }
        }
        notify(Notice::Ending);
        self.end();
    }

    fn file_has_changed(&self) -> bool {
        let stamp = self.file.as_deref().and_then(FileStamp::of);
        // A file that an editor is about to put back is not gone.
        stamp.is_some() && stamp != self.stamp
    }

    fn reload(&mut self) {
        self.stamp = self.file.as_deref().and_then(FileStamp::of);
        let loaded = (self.load)().and_then(|configuration| {
            find(&configuration.patterns).map_err(|error| error.to_string())?;
            Ok(configuration)
        });
        match loaded {
            Ok(configuration) => {
                self.patterns.clone_from(&configuration.patterns);
                self.finder = Finder::default();
                lock(&self.core).configure(configuration);
                tracing::info!("the configuration was read again");
            }
            Err(error) => {
                tracing::warn!("{error}: refused, the configuration before it stays in force");
            }
        }
    }

    /// Attaches to new sockets, and lets go of those that are gone.
    fn find(&mut self) {
        self.vms.retain(|_, vm| !vm.session.has_ended());
        let found = match self.finder.look(&self.patterns) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            // It was checked when it was read.
            Err(error) => return tracing::error!("{error}"),
        };
        for (socket, vm) in &mut self.vms {
            match found.get(socket) {
                None => vm.session.end(),
                Some(now) if now.identity != vm.found.identity => {
                    vm.found.identity = now.identity;
                    vm.session.slot.tell(|state| state.hurry = true);
                }
                Some(_) => {}
            }
        }
        for (socket, found) in found {
            if let Some(vm) = self.vms.get_mut(&socket) {
                // Another socket may have made its name ambiguous.
                vm.found.name = found.name;
                continue;
            }
            let common = Common {
                clock: self.clock,
                bell: Arc::clone(&self.bell),
                watch: Arc::clone(&self.watch),
                dry: self.dry_run,
            };
            match Session::start(&found.name, &socket, common) {
                Ok(session) => {
                    self.vms.insert(socket, Attached { found, session, process: None });
                }
                Err(error) => tracing::error!("{}: no thread for it: {error}", found.name),
            }
        }
    }

    /// Reads host and processes.
    fn look(&mut self) {
        let pids: Vec<Option<u32>> =
            self.vms.values().map(|vm| vm.session.slot.lock().live_pid()).collect();
        let host = self.reader.read(&pids);
        let at_ms = self.clock.now_ms();
        if let Some(sample) = host.sample {
            self.host = Some(Stamped { value: sample, at_ms });
        }
        for (vm, figures) in self.vms.values_mut().zip(host.processes) {
            // The figures of a VM that does not answer grow old with its others.
            if let Some(figures) = figures {
                vm.process = Some(Stamped { value: figures, at_ms });
            }
        }
    }

    /// Whether every VM that was found has answered, or failed to.
    fn has_met_all(&self) -> bool {
        self.vms.values().all(|vm| vm.session.slot.lock().link != Link::New)
    }

    fn decide(&mut self) {
        let inputs = self.vms.iter().map(|(socket, vm)| vm.input(socket)).collect();
        let now_ms = self.clock.now_ms();
        let orders = lock(&self.core).decide(now_ms, self.host, inputs);
        for order in &orders {
            tell(order, self.dry_run);
        }
        if !self.dry_run {
            self.hand_out(&orders);
        }
    }

    fn hand_out(&self, orders: &[Order]) {
        if orders.is_empty() {
            return;
        }
        let names = self.vms.values().map(|vm| (vm.found.name.as_str(), vm));
        let named: BTreeMap<&str, &Attached> = names.collect();
        for order in orders {
            if let Some(vm) = named.get(order.name.as_str()) {
                vm.session.slot.tell(|state| state.order(order.life, order.target_kib));
            }
        }
    }

    /// Gives back what is to be given back, and ends all threads. One that its monitor holds up ends
    /// with the process.
    fn end(self) {
        if self.on_exit == OnExit::GiveBack && !self.dry_run {
            let orders = lock(&self.core).give_back();
            for order in &orders {
                tell(order, false);
            }
            self.hand_out(&orders);
        }
        lock(&self.core).end_recording();
        // A thread carries out its last order before it sees the end.
        for vm in self.vms.values() {
            vm.session.end();
        }
        let deadline = std::time::Instant::now() + FAREWELL;
        while self.vms.values().any(|vm| !vm.session.has_ended())
            && std::time::Instant::now() < deadline
        {
            thread::sleep(FAREWELL_STEP);
        }
    }
}

impl Attached {
    fn input(&self, socket: &Path) -> VmInput {
        let mut state = self.session.slot.lock();
        state.seen();
        VmInput {
            name: self.found.name.clone(),
            socket: socket.display().to_string(),
            kind: state.kind,
            life: state.life,
            link: state.link.clone(),
            reading: state.reading.clone(),
            process: self.process.clone(),
            refusal: state.refusal.clone(),
            is_settled: state.is_settled(),
        }
    }
}

fn tell(order: &Order, dry_run: bool) {
    let Order { name, actual_kib, target_kib, reason, is_reminder, .. } = order;
    let (from, to) = (actual_kib / 1024, target_kib / 1024);
    let dry = if dry_run { " (dry run)" } else { "" };
    if *is_reminder {
        tracing::debug!("{name}: {from} MiB, told {to} MiB again{dry}: {reason}");
    } else {
        tracing::info!("{name}: {from} to {to} MiB{dry}: {reason}");
    }
}
