//! A monitor with a make-believe guest, and the program under test.

use qmp::{
    DynamicMemoryInfo, Event, Faults, HvBalloonInfo, Machine, MonitorError, Refusal, RunState,
    Server, ShutdownCause,
};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

/// A guest that takes one step towards its target whenever it is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    actual: u64,
    boot: u64,
    target: u64,
    step: u64,
    floor: u64,
    tells_status: bool,
    waiting: Option<&'static str>,
    stops: &'static str,
    refuses_late: bool,
    on_powerdown: OnPowerdown,
    /// What it says that it uses, if it reports.
    uses: Option<u64>,
}

/// What a guest does that is asked to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnPowerdown {
    /// It cannot be asked.
    CannotBeAsked,
    Ignores,
    ShutsDown,
}

impl Guest {
    /// A guest of this many bytes, none for one without a driver, that follows at once.
    pub(crate) fn new(boot: u64) -> Self {
        Self {
            actual: boot,
            boot,
            target: boot,
            step: u64::MAX,
            floor: 0,
            tells_status: true,
            waiting: None,
            stops: "no more to give",
            refuses_late: false,
            on_powerdown: OnPowerdown::CannotBeAsked,
            uses: None,
        }
    }

    /// The guest reports that it uses so much, whenever [`Monitor::report`] has it report.
    pub(crate) fn that_uses(self, bytes: u64) -> Self {
        Self { uses: Some(bytes), ..self }
    }

    pub(crate) fn on_powerdown(self, on_powerdown: OnPowerdown) -> Self {
        Self { on_powerdown, ..self }
    }

    pub(crate) fn with_step(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// The guest gives nothing below this size.
    pub(crate) fn with_floor(self, floor: u64) -> Self {
        Self { floor, ..self }
    }

    /// The monitor has only QEMU's commands.
    pub(crate) fn without_status(self) -> Self {
        Self { tells_status: false, ..self }
    }

    /// The guest stays as it is, and the device says that this is why.
    pub(crate) fn that_waits(self, why: &'static str) -> Self {
        Self { waiting: Some(why), ..self }
    }

    /// At its floor the device stops, and says that this is why.
    pub(crate) fn that_stops(self, why: &'static str) -> Self {
        Self { stops: why, ..self }
    }

    /// The device takes a target of half a GiB, and then does not want it.
    pub(crate) fn that_refuses_late(self) -> Self {
        Self { refuses_late: true, ..self }
    }

    fn look(&mut self) -> u64 {
        if self.waiting.is_some() {
            return self.actual;
        }
        let (low, high) =
            (self.actual.saturating_sub(self.step), self.actual.saturating_add(self.step));
        self.actual = self.target.max(self.floor).clamp(low, high);
        self.actual
    }
}

/// The guest behind its monitor.
pub(crate) struct SharedGuest {
    guest: Mutex<Guest>,
    /// How often it was asked to shut down.
    asked: Mutex<u32>,
    /// Gone when the machine has ended.
    server: Arc<Mutex<Option<Server>>>,
}

impl SharedGuest {
    /// The size last asked for.
    pub(crate) fn target(&self) -> u64 {
        self.guest.lock().unwrap().target
    }
}

impl SharedGuest {
    pub(crate) fn times_asked(&self) -> u32 {
        *self.asked.lock().unwrap()
    }

    /// Ends the machine, on a thread of its own as the server demands.
    fn end(&self, guest: bool, reason: ShutdownCause) {
        let server = Arc::clone(&self.server);
        thread::spawn(move || {
            let server = server.lock().unwrap().take();
            if let Some(server) = server {
                server.events().emit(&Event::Shutdown { guest, reason });
            }
        });
    }
}

impl Machine for SharedGuest {
    fn status(&self) -> RunState {
        RunState::running
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        let mut guest = self.guest.lock().unwrap();
        if bytes > guest.boot {
            return Err(MonitorError::generic("more than the guest has"));
        }
        if !guest.refuses_late {
            guest.target = bytes;
        }
        Ok(())
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        match self.guest.lock().unwrap().look() {
            0 => Err(MonitorError::no_balloon_device()),
            bytes => Ok(bytes),
        }
    }

    fn system_powerdown(&self) -> Result<(), MonitorError> {
        match self.guest.lock().unwrap().on_powerdown {
            OnPowerdown::CannotBeAsked => Err(MonitorError::generic("nobody to ask; try quit")),
            on_powerdown => {
                *self.asked.lock().unwrap() += 1;
                if on_powerdown == OnPowerdown::ShutsDown {
                    self.end(true, ShutdownCause::guest_shutdown);
                }
                Ok(())
            }
        }
    }

    fn status_report(&self) -> Result<HvBalloonInfo, MonitorError> {
        let mut guest = self.guest.lock().unwrap();
        let uses = guest.uses.ok_or_else(MonitorError::status_report_not_enabled)?;
        Ok(HvBalloonInfo { committed: uses, available: guest.look().saturating_sub(uses) })
    }

    fn system_reset(&self) {}

    fn quit(&self) {
        self.end(false, ShutdownCause::host_qmp_quit);
    }

    fn dynamic_memory(&self) -> Result<DynamicMemoryInfo, MonitorError> {
        let mut guest = self.guest.lock().unwrap();
        if !guest.tells_status {
            return Err(MonitorError::generic("no status"));
        }
        let actual = guest.look();
        let stopped = actual == guest.floor && guest.target < guest.floor;
        Ok(DynamicMemoryInfo {
            state: "idle".to_owned(),
            actual,
            target: Some(guest.target),
            maximum: guest.boot,
            boot: guest.boot,
            assigned: guest.boot,
            ballooned: guest.boot - actual,
            waiting: guest.waiting.map(str::to_owned),
            stopped: stopped.then(|| guest.stops.to_owned()),
            last_refusal: guest.refuses_late.then(|| Refusal {
                target: 512 << 20,
                reason: "the guest cannot balloon".to_owned(),
            }),
            protocol_version: Some("2.0".to_owned()),
            faults: Faults::from_iter([("floods", 3)]),
            ..DynamicMemoryInfo::default()
        })
    }
}

/// A running monitor.
pub(crate) struct Monitor {
    pub(crate) guest: Arc<SharedGuest>,
    path: String,
    _directory: Option<tempfile::TempDir>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The server holds the guest, and the guest the server.
        drop(self.guest.server.lock().unwrap().take());
    }
}

impl Monitor {
    pub(crate) fn start(guest: Guest) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qmp");
        let mut monitor = Self::start_at(&path, guest);
        monitor._directory = Some(directory);
        monitor
    }

    /// With this socket, in a directory of the caller's.
    pub(crate) fn start_at(path: &Path, guest: Guest) -> Self {
        let server = Arc::default();
        let guest = Mutex::new(guest);
        let guest = Arc::new(SharedGuest { guest, asked: Mutex::default(), server });
        let server = Server::start(path, guest.clone()).unwrap();
        *guest.server.lock().unwrap() = Some(server);
        let path = path.to_str().unwrap().to_owned();
        Self { guest, path, _directory: None }
    }

    /// Has the guest report.
    pub(crate) fn report(&self) {
        let HvBalloonInfo { committed, available } = self.guest.status_report().unwrap();
        if let Some(server) = &*self.guest.server.lock().unwrap() {
            server.events().emit(&Event::BalloonChange { actual: available + committed });
            server.events().emit(&Event::StatusReport { committed, available });
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hvb"));
    command.args(arguments).env_remove("HVB_LOG");
    command
}

pub(crate) fn hvb(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
