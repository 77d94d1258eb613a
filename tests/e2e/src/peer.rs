//! The same guest under `hvb` and under QEMU, with machines as similar as possible: for benchmarks,
//! and as a control.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use qmp::{Client, ClientError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::TempDir;

use crate::{Agent, MIB, NO_CLEARING, PATIENCE, Setup, wait_for};

/// A program that runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// This project's `hvb`.
    Hvb,
    /// QEMU with `-device hv-balloon`.
    HvBalloon,
    /// QEMU with `-device virtio-balloon-pci`.
    VirtioBalloon,
    /// QEMU's `microvm` machine, without a balloon.
    #[value(skip)]
    Microvm,
}

/// The machine that a peer gives its guest.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// Its processors.
    pub cpus: u32,
    /// Its memory at boot, in bytes.
    pub boot: u64,
    /// Its memory at most, in bytes.
    pub most: u64,
    /// Whether its kernel clears pages as it allocates them, including those it gives away.
    pub clears: bool,
    /// Additions to the kernel command line.
    pub append: &'a str,
    /// Its only disk and network card, where it has them: a raw image, and a tap interface.
    pub devices: Option<(&'a Path, &'a str)>,
    /// The control group that its process is in.
    pub group: Option<&'a Path>,
}

impl Peer {
    /// All peers with a balloon, `hvb` first.
    pub const ALL: [Self; 3] = [Self::Hvb, Self::HvBalloon, Self::VirtioBalloon];

    /// A name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hvb => "hvb",
            Self::HvBalloon => "QEMU hv-balloon",
            Self::VirtioBalloon => "QEMU virtio-balloon",
            Self::Microvm => "QEMU microvm",
        }
    }

    /// Whether it can make a guest larger than its boot size.
    pub fn can_add(self) -> bool {
        matches!(self, Self::Hvb | Self::HvBalloon)
    }

    /// The command that starts the guest, with its serial console as standard input and output and
    /// a monitor at `socket`.
    ///
    /// # Errors
    ///
    /// The environment does not say where QEMU is.
    fn command(self, setup: &Setup, machine: Machine<'_>, socket: &Path) -> Result<Command> {
        let socket = socket.display().to_string();
        let mut command = match self {
            Self::Hvb => hvb(setup, machine, &socket),
            Self::HvBalloon | Self::VirtioBalloon => {
                let mut qemu = qemu()?;
                qemu.args(self.qemu_options(machine, &socket).split(' '));
                qemu
            }
            Self::Microvm => {
                let mut qemu = qemu()?;
                qemu.args(microvm_options(machine, &socket).split(' '));
                qemu
            }
        };
        let mut kernel_command_line = KERNEL_COMMAND_LINE.to_owned();
        if self == Self::VirtioBalloon {
            kernel_command_line += " agent.modules=virtio";
        }
        if !machine.append.is_empty() {
            kernel_command_line = format!("{kernel_command_line} {}", machine.append);
        }
        if !machine.clears {
            kernel_command_line = format!("{kernel_command_line} {NO_CLEARING}");
        }
        let dash = if self == Self::Hvb { "--" } else { "-" };
        let mut add = |option: &str, value: &Path| {
            command.arg(format!("{dash}{option}")).arg(value);
        };
        // QEMU's ordinary machine starts the unpacked kernel by its PVH entry, seconds sooner under
        // emulation. Starts are compared with the packed one for both.
        let kernel = match self {
            Self::HvBalloon | Self::VirtioBalloon => &setup.vmlinux,
            Self::Hvb | Self::Microvm => &setup.kernel,
        };
        add("kernel", kernel);
        add("initrd", &setup.initrd);
        add("append", Path::new(&kernel_command_line));
        Ok(command)
    }

    /// The machine that QEMU's own documentation and its author's mails describe for `hv-balloon`:
    /// all Hyper-V features that VMBus needs, no sleep states, and address space for its 32 GiB
    /// alignment. `virtio-balloon` gets the same machine, so that only the device differs.
    ///
    /// Like `hvb` here, QEMU asks for transparent huge pages for all the guest's memory.
    fn qemu_options(self, machine: Machine<'_>, socket: &str) -> String {
        let (boot, more) = (machine.boot / MIB, (machine.most - machine.boot) / MIB);
        let cpus = machine.cpus;
        let device = match self {
            Self::VirtioBalloon => "-device virtio-balloon-pci,id=balloon".to_owned(),
            _ => format!(
                "-object memory-backend-ram,id=more,size={more}M -device vmbus-bridge \
                 -device hv-balloon,id=balloon,memdev=more,status-report=on"
            ),
        };
        format!(
            "-nodefaults -no-user-config -display none -nic none -no-reboot -serial stdio \
             -name peer,debug-threads=on -accel kvm \
             -object memory-backend-ram,id=ram,size={boot}M \
             -machine q35,hpet=off,memory-backend=ram -global ICH9-LPC.disable_s3=1 \
             -global ICH9-LPC.disable_s4=1 -smp {cpus} -cpu host,kvm=off,hv-relaxed,hv-vpindex,hv-synic,\
             hv-runtime,hv-time,hv-stimer,hv-vapic -m {boot}M,slots=2,maxmem=128G {device} \
             -qmp unix:{socket},server=on,wait=off -qmp unix:{socket}{SECOND},server=on,wait=off"
        )
    }
}

/// What the name of QEMU's second monitor ends with. Each of its monitors has one client at a time.
const SECOND: &str = "-2";

const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet memhp_default_state=online";

/// The machine that QEMU's documentation gives for short starts (`docs/system/i386/microvm.rst`): no
/// firmware but the smallest, no PCI, and no legacy devices but the serial port.
fn microvm_options(machine: Machine<'_>, socket: &str) -> String {
    let (boot, cpus) = (machine.boot / MIB, machine.cpus);
    let devices = machine.devices.map_or_else(String::new, |(disk, tap)| {
        format!(
            " -drive id=disk,file={},format=raw,if=none -device virtio-blk-device,drive=disk \
             -netdev tap,id=net,ifname={tap},script=no,downscript=no \
             -device virtio-net-device,netdev=net",
            disk.display()
        )
    });
    format!(
        "-nodefaults -no-user-config -display none -no-reboot -serial stdio -accel kvm -cpu host \
         -machine microvm,pic=off,pit=off,rtc=off,isa-serial=on -smp {cpus} -m {boot}M \
         -device virtio-rng-device -qmp unix:{socket},server=on,wait=off{devices}"
    )
}

fn hvb(setup: &Setup, machine: Machine<'_>, socket: &str) -> Command {
    let mut hvb = Command::new(&setup.hvb);
    hvb.args(["run", "--serial", "stdio", "--qmp", socket]);
    hvb.args(["--cpus", &machine.cpus.to_string()]);
    hvb.args(["--status-report", "--hugepages", "thp"]);
    hvb.args(["--memory", &format!("{}M", machine.boot / MIB)]);
    hvb.args(["--max-memory", &format!("{}M", machine.most / MIB)]);
    if let Some((disk, tap)) = machine.devices {
        hvb.arg("--disk").arg(disk).args(["--net", &format!("tap={tap}")]);
    }
    hvb
}

fn qemu() -> Result<Command> {
    let program = std::env::var_os("HVB_PEER_QEMU").map(PathBuf::from);
    let program =
        program.context("HVB_PEER_QEMU is not set: run `cargo xtask bench-peers` or `boots`")?;
    let mut qemu = Command::new(program);
    if let Some(libraries) = std::env::var_os("HVB_PEER_LIBRARIES") {
        qemu.env("LD_LIBRARY_PATH", libraries);
    }
    for dir in std::env::var_os("HVB_PEER_FIRMWARE").iter().flat_map(std::env::split_paths) {
        qemu.arg("-L").arg(dir);
    }
    Ok(qemu)
}

/// The same command, whose process is in a control group from its beginning.
fn within(group: &Path, command: &Command) -> Result<Command> {
    let mut shell = Command::new("sh");
    shell.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.context("a variable without a value")?);
    }
    Ok(shell)
}

/// A peer that runs the guest; dropping it ends the process.
#[derive(Debug)]
pub struct PeerVm {
    /// Which program it is.
    pub peer: Peer,
    child: Child,
    /// The agent in the guest.
    pub agent: Agent,
    /// A client of the monitor.
    pub monitor: Client,
    /// When the process was started.
    pub started: Instant,
    dir: TempDir,
}

impl PeerVm {
    /// Starts a guest; returns once the monitor answers.
    ///
    /// # Errors
    ///
    /// It does not start; the text contains the peer's error output.
    pub fn start(peer: Peer, machine: Machine<'_>) -> Result<Self> {
        let setup = Setup::from_env()?;
        let dir = tempfile::Builder::new().prefix("hvb-peer-").tempdir()?;
        let mut command = peer.command(&setup, machine, &dir.path().join("qmp"))?;
        if let Some(group) = machine.group {
            command = within(group, &command)?;
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(dir.path().join("stderr"))?);
        let started = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot start {}", peer.name()))?;
        let input = child.stdin.take().context("no pipe")?;
        let output = child.stdout.take().context("no pipe")?;
        let agent = Agent::new(input, output);
        match connect(&mut child, dir.path().join("qmp")) {
            Ok(monitor) => Ok(Self { peer, child, agent, monitor, started, dir }),
            Err(error) => {
                let _ = child.kill().and_then(|()| child.wait());
                let words = fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
                Err(error.context(words))
            }
        }
    }

    /// A monitor that is not in use by [`PeerVm::monitor`].
    #[must_use]
    pub fn second_socket(&self) -> PathBuf {
        let end = if self.peer == Peer::Hvb { "" } else { SECOND };
        self.dir.path().join(format!("qmp{end}"))
    }

    /// The process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The assertion that the program failed, if that has ended it.
    ///
    /// # Errors
    ///
    /// The process cannot be asked for.
    pub fn failed_assertion(&mut self) -> Result<Option<String>> {
        let words = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
        let assertion = words.lines().find(|line| line.contains("Assertion")).map(str::to_owned);
        if assertion.is_some() {
            // Its console is closed before it can be waited for.
            self.child.wait()?;
        }
        Ok(assertion)
    }

    /// Lets the guest power off, and waits for the end of the process.
    ///
    /// # Errors
    ///
    /// The guest does not answer, or the process goes on or fails.
    pub fn power_off(mut self) -> Result<()> {
        self.agent.ask("poweroff")?;
        let status = wait_for("the end of the peer", || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "{} ended with {status}", self.peer.name());
        Ok(())
    }

    /// What may explain a failure: the last output of the peer and of its guest, the device's
    /// accounting (`hvb`) and the registers of the processors (QEMU).
    pub fn last_words(&mut self) -> String {
        let words = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
        let state = match self.peer {
            Peer::Hvb => self.monitor.execute("x-query-dynamic-memory", json!({})),
            _ => {
                let command = json!({ "command-line": "info registers -a" });
                self.monitor.execute("human-monitor-command", command)
            }
        };
        format!(
            "-- {}:\n{words}\n-- its state: {state:?}\n-- its guest:\n{}",
            self.peer.name(),
            self.agent.last_words()
        )
    }
}

impl Drop for PeerVm {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Connects to the monitor, whose socket appears a moment after the process.
fn connect(child: &mut Child, socket: PathBuf) -> Result<Client> {
    wait_for("the peer's monitor", || {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("it ended at once ({status})");
        }
        match Client::connect(&socket, PATIENCE) {
            Ok(client) => Ok(Some(client)),
            Err(ClientError::NoSocket { .. } | ClientError::NobodyListens { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
}
