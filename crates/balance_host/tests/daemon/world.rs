//! A host with VMs behind real sockets, and the daemon.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use balance_host::{Configuration, Daemon, HostReader, OnExit, Operator, Policy, Setup, VmStatus};
use qmp::{
    DynamicMemoryInfo, Event, HvBalloonInfo, Machine, MonitorError, RunState, Server, ShutdownCause,
};

pub(crate) const GIB: u64 = 1 << 30;

/// Longer than anything takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What all VMs of a test have together, at most.
#[derive(Default)]
pub(crate) struct Ledger {
    sizes: Mutex<Vec<u64>>,
    peak: Mutex<u64>,
}

impl Ledger {
    fn add(&self, size: u64) -> usize {
        let mut sizes = self.sizes.lock().unwrap();
        sizes.push(size);
        sizes.len() - 1
    }

    fn set(&self, at: usize, size: u64) {
        let mut sizes = self.sizes.lock().unwrap();
        sizes[at] = size;
        let sum = sizes.iter().sum();
        let mut peak = self.peak.lock().unwrap();
        *peak = (*peak).max(sum);
    }

    /// The largest sum that there ever was after a command.
    pub(crate) fn peak(&self) -> u64 {
        *self.peak.lock().unwrap()
    }
}

/// A guest that follows at once. Sizes in bytes.
pub(crate) struct Guest {
    boot: u64,
    state: Mutex<State>,
    ledger: Arc<Ledger>,
    place: usize,
}

struct State {
    actual: u64,
    used: u64,
    target: Option<u64>,
    commands: Vec<u64>,
}

impl Guest {
    pub(crate) fn new(ledger: &Arc<Ledger>, boot: u64, used: u64) -> Arc<Self> {
        let state = State { actual: boot, used, target: None, commands: Vec::new() };
        let place = ledger.add(boot);
        Arc::new(Self { boot, state: Mutex::new(state), ledger: Arc::clone(ledger), place })
    }

    pub(crate) fn actual(&self) -> u64 {
        self.state.lock().unwrap().actual
    }

    pub(crate) fn uses(&self, used: u64) {
        self.state.lock().unwrap().used = used;
    }

    /// The sizes that it was told.
    pub(crate) fn commands(&self) -> Vec<u64> {
        self.state.lock().unwrap().commands.clone()
    }

    pub(crate) fn report(&self) -> HvBalloonInfo {
        self.size_and_report().1
    }

    fn size_and_report(&self) -> (u64, HvBalloonInfo) {
        let State { actual, used, .. } = *self.state.lock().unwrap();
        let available = actual.saturating_sub(used).max(1 << 20);
        (actual, HvBalloonInfo { committed: used, available })
    }

    pub(crate) fn obey(&self, bytes: u64) -> Result<(), MonitorError> {
        let mut state = self.state.lock().unwrap();
        state.commands.push(bytes);
        if bytes > 4 * self.boot {
            return Err(MonitorError::generic("more than it can have"));
        }
        (state.actual, state.target) = (bytes, Some(bytes));
        self.ledger.set(self.place, bytes);
        Ok(())
    }
}

impl Machine for Guest {
    fn status(&self) -> RunState {
        RunState::running
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        self.obey(bytes)
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(self.actual())
    }

    fn system_reset(&self) {}

    fn quit(&self) {}

    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        let state = self.state.lock().unwrap();
        Ok(DynamicMemoryInfo {
            state: "idle".to_owned(),
            actual: state.actual,
            target: state.target,
            boot: self.boot,
            maximum: 4 * self.boot,
            ballooned: self.boot.saturating_sub(state.actual),
            ..DynamicMemoryInfo::default()
        })
    }

    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        Ok(self.report())
    }
}

/// How often guests report. (Real ones do each second.)
const OFTEN: Duration = Duration::from_millis(50);

/// A guest behind its monitor.
pub(crate) struct Vm {
    pub(crate) guest: Arc<Guest>,
    server: Arc<Server>,
    ends: Arc<AtomicBool>,
    reporter: Option<JoinHandle<()>>,
}

/// The guest reports, and before that its size, if its monitor tells it.
pub(crate) fn report(server: &Server, guest: &Guest, tells_size: bool) {
    let (actual, report) = guest.size_and_report();
    if tells_size {
        server.events().emit(&Event::BalloonChange { actual });
    }
    let HvBalloonInfo { committed, available } = report;
    server.events().emit(&Event::StatusReport { committed, available });
}

impl Vm {
    pub(crate) fn start(path: &Path, guest: &Arc<Guest>) -> Self {
        let server = Server::start(path, guest.clone()).unwrap();
        Self::with(server, Arc::clone(guest), true)
    }

    /// A VM with this server, which may tell when its size changes.
    pub(crate) fn with(server: Server, guest: Arc<Guest>, tells_size: bool) -> Self {
        let server = Arc::new(server);
        let ends = Arc::new(AtomicBool::new(false));
        let reporter = thread::spawn({
            let (server, guest, ends) = (server.clone(), guest.clone(), ends.clone());
            move || {
                while !ends.load(Ordering::Relaxed) {
                    report(&server, &guest, tells_size);
                    thread::sleep(OFTEN);
                }
            }
        });
        Self { guest, server, ends, reporter: Some(reporter) }
    }

    /// The guest starts anew with its boot memory.
    pub(crate) fn reset(&self) {
        {
            let mut state = self.guest.state.lock().unwrap();
            (state.actual, state.target) = (self.guest.boot, None);
            self.guest.ledger.set(self.guest.place, self.guest.boot);
        }
        let reason = ShutdownCause::guest_reset;
        self.server.events().emit(&Event::Reset { guest: true, reason });
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.reporter.take().unwrap().join();
    }
}

/// A host of 64 GiB that is otherwise idle, with a directory for sockets.
pub(crate) struct Host {
    root: tempfile::TempDir,
    pub(crate) ledger: Arc<Ledger>,
}

impl Host {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("proc")).unwrap();
        let meminfo = "MemTotal: 67108864 kB\nMemAvailable: 67108864 kB\n";
        fs::write(root.path().join("proc/meminfo"), meminfo).unwrap();
        Self { root, ledger: Arc::default() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn vm(&self, name: &str, boot: u64, used: u64) -> Vm {
        let guest = Guest::new(&self.ledger, boot, used);
        Vm::start(&self.path(&format!("{name}.sock")), &guest)
    }

    /// VMs have this much in all; surplus goes at once.
    pub(crate) fn configuration(&self, limit: u64) -> Configuration {
        Configuration {
            patterns: vec![self.path("*.sock").to_str().unwrap().to_owned()],
            policy: Policy {
                host_reserve_kib: Some(0),
                surplus_lasts_ms: 0,
                shrink_period_ms: 0,
                ..Policy::default()
            },
            limit_kib: Some(limit / 1024),
            ..Configuration::default()
        }
    }

    pub(crate) fn balance(&self, configuration: Configuration) -> Balance {
        self.balance_with(configuration, |setup| setup)
    }

    pub(crate) fn balance_with(
        &self,
        configuration: Configuration,
        change: impl FnOnce(Setup) -> Setup,
    ) -> Balance {
        let control = self.path("control");
        let daemon = Daemon::start(change(Setup {
            load: Box::new(move || Ok(configuration.clone())),
            file: None,
            control: Some(control.clone()),
            dry_run: false,
            on_exit: OnExit::Keep,
            host: HostReader::under(self.root.path()),
            record: None,
        }))
        .unwrap();
        let handle = daemon.handle();
        let thread = thread::spawn(move || daemon.run(|_| {}));
        Balance { handle, thread: Some(thread), control }
    }
}

/// A running daemon. It ends with this.
pub(crate) struct Balance {
    pub(crate) handle: balance_host::Handle,
    thread: Option<JoinHandle<()>>,
    control: PathBuf,
}

impl Balance {
    pub(crate) fn operator(&self) -> Operator {
        Operator::connect(&self.control, PATIENCE).unwrap()
    }

    /// What is known of a VM, if it is known.
    pub(crate) fn vm(&self, name: &str) -> Option<VmStatus> {
        self.operator().status().unwrap().vms.into_iter().find(|vm| vm.name == name)
    }

    /// What is wrong with a VM.
    pub(crate) fn problem(&self, name: &str) -> String {
        self.vm(name).and_then(|vm| vm.problem).unwrap_or_default()
    }

    pub(crate) fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.end();
            thread.join().unwrap();
        }
    }
}

impl Drop for Balance {
    fn drop(&mut self) {
        self.finish();
    }
}

pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
