//! The same guest under `hvb` and under QEMU with its hv-balloon, for measurements side by side.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use qmp::{Client, ClientError, qapi};
use serde_json::json;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::console::Console;
use crate::setup::Setup;
use crate::{MIB, PATIENCE, wait_for};

/// How often a peer is asked for its size.
const LOOK: Duration = Duration::from_millis(2);

/// Who runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Our `hvb`.
    Hvb,
    /// QEMU with `-device hv-balloon`.
    Qemu,
}

impl Peer {
    /// Both, ours first.
    pub const ALL: [Self; 2] = [Self::Hvb, Self::Qemu];

    /// A name for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hvb => "hvb",
            Self::Qemu => "QEMU",
        }
    }

    fn command(self, setup: &Setup, size: Sizes, dir: &TempDir) -> Result<Command> {
        let (boot, most) = (size.boot / MIB, size.most / MIB);
        let socket = dir.path().join("qmp").display().to_string();
        let mut command = match self {
            Self::Hvb => {
                let mut hvb = Command::new(&setup.hvb);
                hvb.args(["run", "--serial", "stdio", "--qmp", &socket]);
                hvb.args(["--cpus", "2", "--memory", &format!("{boot}M")]);
                hvb.args(["--max-memory", &format!("{most}M")]);
                hvb.arg("--kernel").arg(&setup.kernel).arg("--initrd").arg(&setup.initrd);
                hvb.arg("--append");
                hvb
            }
            Self::Qemu => {
                let mut qemu = qemu()?;
                qemu.args(qemu_options(boot, most, &socket).split(' '));
                qemu.arg("-kernel").arg(&setup.kernel).arg("-initrd").arg(&setup.initrd);
                qemu.arg("-append");
                qemu
            }
        };
        command.arg("console=ttyS0 panic=-1 quiet memhp_default_state=online");
        Ok(command)
    }
}

/// The machine that QEMU's own documentation and its author's mails describe for this device: all
/// Hyper-V features that VMBus needs, no sleep states, and address space for its 32 GiB alignment.
fn qemu_options(boot: u64, most: u64, socket: &str) -> String {
    format!(
        "-nodefaults -no-user-config -display none -nic none -no-reboot -serial stdio \
         -accel kvm -machine q35,hpet=off -global ICH9-LPC.disable_s3=1 \
         -global ICH9-LPC.disable_s4=1 -smp 2 -cpu host,kvm=off,hv-relaxed,hv-vpindex,hv-synic,\
         hv-runtime,hv-time,hv-stimer,hv-vapic -m {boot}M,slots=2,maxmem=128G \
         -object memory-backend-ram,id=more,size={}M -device vmbus-bridge \
         -device hv-balloon,id=balloon,memdev=more,status-report=on \
         -qmp unix:{socket},server=on,wait=off",
        most - boot
    )
}

fn qemu() -> Result<Command> {
    let program = std::env::var_os("HVB_PEER_QEMU").map(PathBuf::from);
    let program = program.context("HVB_PEER_QEMU is not set: run `cargo xtask bench-peers`")?;
    let mut qemu = Command::new(program);
    if let Some(libraries) = std::env::var_os("HVB_PEER_LIBRARIES") {
        qemu.env("LD_LIBRARY_PATH", libraries);
    }
    for dir in std::env::var_os("HVB_PEER_FIRMWARE").iter().flat_map(std::env::split_paths) {
        qemu.arg("-L").arg(dir);
    }
    Ok(qemu)
}

/// What a guest boots with and may grow to, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// At boot.
    pub boot: u64,
    /// At most.
    pub most: u64,
}

/// A guest under one of the peers; ended when dropped.
#[derive(Debug)]
pub struct Contestant {
    child: Child,
    /// The agent in the guest.
    pub agent: Agent,
    /// The monitor.
    pub monitor: Client,
    /// When its process was started.
    pub started: Instant,
    dir: TempDir,
}

impl Contestant {
    /// Starts a guest; returns once its monitor answers.
    ///
    /// # Errors
    ///
    /// It does not start; the text has the peer's words.
    pub fn start(peer: Peer, sizes: Sizes) -> Result<Self> {
        let setup = Setup::from_env()?;
        let dir = tempfile::Builder::new().prefix("hvb-peer-").tempdir()?;
        let mut command = peer.command(&setup, sizes, &dir)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(dir.path().join("stderr"))?);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", peer.name()))?;
        let input = child.stdin.take().context("no pipe")?;
        let output = child.stdout.take().context("no pipe")?;
        let agent = Agent { console: Console::new(input, output) };
        let socket = dir.path().join("qmp");
        let connected = wait_for("the peer's monitor", || {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{} ended at once ({status})", peer.name());
            }
            match Client::connect(&socket, PATIENCE) {
                Ok(client) => Ok(Some(client)),
                Err(ClientError::NoSocket { .. } | ClientError::NobodyListens { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        });
        let words = || fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
        match connected.with_context(words) {
            Ok(monitor) => Ok(Self { child, agent, monitor, started, dir }),
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                Err(error)
            }
        }
    }

    /// The guest's size in bytes, as the monitor says.
    ///
    /// # Errors
    ///
    /// As [`Client::run`].
    pub fn actual(&mut self) -> Result<u64> {
        Ok(self.monitor.run(&qapi::query_balloon {})?.actual.unsigned_abs())
    }

    /// Asks for a size.
    ///
    /// # Errors
    ///
    /// As [`Client::execute`].
    pub fn set_target(&mut self, bytes: u64) -> Result<()> {
        self.monitor.execute("balloon", json!({ "value": bytes }))?;
        Ok(())
    }

    /// Asks for a size and waits until the monitor says that the guest has it.
    ///
    /// # Errors
    ///
    /// It does not come there in time.
    pub fn resize(&mut self, bytes: u64) -> Result<Duration> {
        let begin = Instant::now();
        self.set_target(bytes)?;
        while self.actual()? != bytes {
            let text = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
            ensure!(begin.elapsed() < 3 * PATIENCE, "still at {}: {text}", self.actual()? / MIB);
            std::thread::sleep(LOOK);
        }
        Ok(begin.elapsed())
    }

    /// Waits until the guest's `MemTotal` is at least `total`; counts from `begin`.
    ///
    /// # Errors
    ///
    /// It does not get there.
    pub fn total_reaches(&mut self, total: u64, begin: Instant) -> Result<Duration> {
        while self.agent.meminfo()?.total < total {
            ensure!(begin.elapsed() < PATIENCE, "MemTotal is {:?}", self.agent.meminfo()?);
        }
        Ok(begin.elapsed())
    }

    /// Memory of the process that the host provides, in bytes.
    ///
    /// # Errors
    ///
    /// The process is gone.
    pub fn resident(&self) -> Result<u64> {
        crate::vm::resident(self.child.id())
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}
