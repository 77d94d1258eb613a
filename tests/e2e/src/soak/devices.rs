//! A disk and a network card, for a soak with devices.

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::config::VmConfig;
use crate::ping::{MAC, Pinger, set_up};
use crate::tap::Interface;
use crate::{Vm, disk};

/// The size of the disk, in MiB. Several files of the largest size fit.
const DISK: u64 = 128;

/// The most that is stored at a time, in MiB.
pub(super) const MOST_STORED: u64 = 16;

/// Where the guest has the disk's file system.
const FILE: &str = "/disk/file";

/// The devices of the machine, and what is on its disk.
pub(super) struct Devices {
    tap: Interface,
    pinger: Pinger,
    /// With the image, and deleted with this.
    _dir: TempDir,
    image: String,
    /// The seed and the size in MiB of what the guest has safe on its disk.
    stored: Option<(u64, u64)>,
}

impl Devices {
    /// Makes a disk with a file system, and an interface of this host.
    pub(super) fn new() -> Result<Self> {
        let (dir, image) = disk::ext4(DISK)?;
        let tap = Interface::new("hvbsoak")?;
        let pinger = Pinger::new(&tap)?;
        Ok(Self { tap, pinger, _dir: dir, image: image.display().to_string(), stored: None })
    }

    /// Gives them to a machine.
    pub(super) fn give(&self, config: &mut VmConfig) {
        config.disks = vec![self.image.clone()];
        config.networks = vec![format!("tap={},mac={MAC}", self.tap.name())];
    }

    /// Has a guest that was just started use them, and looks at what is on the disk.
    pub(super) fn set_up(&self, vm: &mut Vm) -> Result<()> {
        set_up(vm)?;
        // A file system that was not unmounted has its journal replayed.
        vm.agent.ask("mount ext4 /dev/vda /disk")?;
        self.check(vm)
    }

    /// Has the guest store something else.
    pub(super) fn store(&mut self, vm: &mut Vm, seed: u64, mib: u64) -> Result<()> {
        self.stored = None;
        vm.agent.ask(&format!("store {FILE} {seed} {mib}"))?;
        self.stored = Some((seed, mib));
        Ok(())
    }

    /// The guest answers pings, and reads from its disk what it stored.
    pub(super) fn check(&self, vm: &mut Vm) -> Result<()> {
        self.pinger.ping().context("the network")?;
        if let Some((seed, mib)) = self.stored {
            vm.agent.ask(&format!("recall {FILE} {seed} {mib}")).context("the disk")?;
        }
        Ok(())
    }

    /// The file system is whole, after the end of the machine.
    pub(super) fn end(self) -> Result<()> {
        disk::run("e2fsck", &["-p", "-E", "journal_only", &self.image])?;
        disk::run("e2fsck", &["-fn", &self.image])
    }
}
