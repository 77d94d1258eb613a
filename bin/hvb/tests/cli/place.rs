//! A directory with the sockets and the settings of a balancer, and the balancer as a process.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Guest, Monitor, command, stderr, stdout};

pub(crate) const MIB: u64 = 1 << 20;

/// Small enough for any host, and without patience.
pub(crate) const SETTINGS: &str = r#"
[host]
reserve = "1M"
[policy]
surplus-lasts = 0
shrink-period = 0
[defaults]
minimum = "32M"
"#;

/// Waits until something holds; `meanwhile` is done again and again.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A directory with sockets and settings.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        place.write(SETTINGS);
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, text: &str) {
        // As editors do, so that no half of it is ever read.
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path("balance.toml")).unwrap();
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(&[&["balance"], arguments].concat());
        command.env("HVB_RUN_DIR", self.0.path());
        command
    }

    pub(crate) fn say(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.command(arguments).output().unwrap();
        match output.status.success() {
            true => Ok(stdout(&output)),
            false => Err(stderr(&output)),
        }
    }

    /// Machines by name, with their size and what they use, in MiB.
    pub(crate) fn machines<const N: usize>(&self, machines: [(&str, u64, u64); N]) -> [Monitor; N] {
        machines.map(|(name, size, uses)| {
            let guest = Guest::new(size * MIB).that_uses(uses * MIB);
            Monitor::start_at(&self.path(&format!("{name}.sock")), guest)
        })
    }

    /// Machines for which there is too little for all buffers, as the documentation shows them.
    pub(crate) fn crowd(&self) -> [Monitor; 4] {
        self.write(&SETTINGS.replace("[host]", "[host]\nlimit = \"700M\""));
        self.machines([("build", 512, 300), ("db", 384, 90), ("mail", 128, 121), ("web", 256, 150)])
    }

    pub(crate) fn balancer(&self) -> Balancer {
        self.balancer_with(|_| {})
    }

    pub(crate) fn balancer_with(&self, change: impl FnOnce(&mut Command)) -> Balancer {
        let config = self.path("balance.toml");
        let mut command = self.command(&["--config", config.to_str().unwrap()]);
        let log = fs::File::create(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stderr(log);
        change(&mut command);
        Balancer(command.spawn().unwrap())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }
}

pub(crate) struct Balancer(pub(crate) Child);

impl Balancer {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    pub(crate) fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.0.wait().unwrap().code()
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
