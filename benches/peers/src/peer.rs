//! The programs that run the guest, with machines as similar as possible.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;
use e2e::{MIB, NO_CLEARING, Setup};
use serde::{Deserialize, Serialize};

/// A program that runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// This project's `hvb`.
    Hvb,
    /// QEMU with `-device hv-balloon`.
    HvBalloon,
    /// QEMU with `-device virtio-balloon-pci`.
    VirtioBalloon,
}

/// A guest's boot size and maximum size in bytes, and its kernel's behaviour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// At boot.
    pub(crate) boot: u64,
    /// At most.
    pub(crate) most: u64,
    /// Whether the kernel clears pages as it allocates them, including those it gives away.
    pub(crate) clears: bool,
}

impl Peer {
    /// All peers, `hvb` first.
    pub(crate) const ALL: [Self; 3] = [Self::Hvb, Self::HvBalloon, Self::VirtioBalloon];

    /// A name for tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hvb => "hvb",
            Self::HvBalloon => "QEMU hv-balloon",
            Self::VirtioBalloon => "QEMU virtio-balloon",
        }
    }

    /// Whether it can make a guest larger than its boot size.
    pub(crate) fn can_add(self) -> bool {
        self != Self::VirtioBalloon
    }

    /// Whether the device runs on the thread of this name; QEMU's devices run in its main loop.
    pub(crate) fn is_device_thread(self, name: &str) -> bool {
        match self {
            Self::Hvb => ["vmbus", "memory"].contains(&name),
            Self::HvBalloon | Self::VirtioBalloon => name == crate::usage::MAIN_THREAD,
        }
    }

    /// The command that starts the guest, with its serial console as standard input and output and
    /// a monitor at `socket`.
    ///
    /// # Errors
    ///
    /// The environment does not say where QEMU is.
    pub(crate) fn command(self, setup: &Setup, sizes: Sizes, socket: &Path) -> Result<Command> {
        let socket = socket.display().to_string();
        let mut command = match self {
            Self::Hvb => hvb(setup, sizes, &socket),
            Self::HvBalloon | Self::VirtioBalloon => {
                let mut qemu = qemu()?;
                qemu.args(self.qemu_options(sizes, &socket).split(' '));
                qemu
            }
        };
        let mut kernel_command_line = KERNEL_COMMAND_LINE.to_owned();
        if self == Self::VirtioBalloon {
            kernel_command_line += " agent.modules=virtio";
        }
        if !sizes.clears {
            kernel_command_line = format!("{kernel_command_line} {NO_CLEARING}");
        }
        let dash = if self == Self::Hvb { "--" } else { "-" };
        let mut add = |option: &str, value: &Path| {
            command.arg(format!("{dash}{option}")).arg(value);
        };
        add("kernel", &setup.kernel);
        add("initrd", &setup.initrd);
        add("append", Path::new(&kernel_command_line));
        Ok(command)
    }

    /// The machine that QEMU's own documentation and its author's mails describe for `hv-balloon`:
    /// all Hyper-V features that VMBus needs, no sleep states, and address space for its 32 GiB
    /// alignment. `virtio-balloon` gets the same machine, so that only the device differs.
    ///
    /// Like `hvb` here, QEMU asks for transparent huge pages for all the guest's memory.
    fn qemu_options(self, sizes: Sizes, socket: &str) -> String {
        let (boot, more) = (sizes.boot / MIB, (sizes.most - sizes.boot) / MIB);
        let device = match self {
            Self::VirtioBalloon => "-device virtio-balloon-pci,id=balloon".to_owned(),
            Self::Hvb | Self::HvBalloon => format!(
                "-object memory-backend-ram,id=more,size={more}M -device vmbus-bridge \
                 -device hv-balloon,id=balloon,memdev=more,status-report=on"
            ),
        };
        format!(
            "-nodefaults -no-user-config -display none -nic none -no-reboot -serial stdio \
             -name peer,debug-threads=on -accel kvm \
             -object memory-backend-ram,id=ram,size={boot}M \
             -machine q35,hpet=off,memory-backend=ram -global ICH9-LPC.disable_s3=1 \
             -global ICH9-LPC.disable_s4=1 -smp 2 -cpu host,kvm=off,hv-relaxed,hv-vpindex,hv-synic,\
             hv-runtime,hv-time,hv-stimer,hv-vapic -m {boot}M,slots=2,maxmem=128G {device} \
             -qmp unix:{socket},server=on,wait=off"
        )
    }
}

const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet memhp_default_state=online";

fn hvb(setup: &Setup, sizes: Sizes, socket: &str) -> Command {
    let mut hvb = Command::new(&setup.hvb);
    hvb.args(["run", "--serial", "stdio", "--qmp", socket, "--cpus", "2"]);
    hvb.args(["--status-report", "--hugepages", "thp"]);
    hvb.args(["--memory", &format!("{}M", sizes.boot / MIB)]);
    hvb.args(["--max-memory", &format!("{}M", sizes.most / MIB)]);
    hvb
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
