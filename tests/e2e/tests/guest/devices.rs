//! Virtio devices in a real guest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::debian::{open_qcow2, qcow2};
use e2e::disk::{ext4, run};
use e2e::{MIB, Vm, VmConfig, is_long_run};
use guest_agent::agent::storage::{RECORD, record};
use rustix::process::Resource;

/// A guest with disks, whose drivers are loaded.
fn boot(disks: &[String]) -> Result<Vm> {
    let mut vm = Vm::start(&VmConfig { disks: disks.to_vec(), ..VmConfig::default() })?;
    vm.agent.ask("load devices")?;
    Ok(vm)
}

/// The disk in a qcow2 image, as a raw image beside it.
fn as_raw(path: &Path) -> Result<PathBuf> {
    let image = open_qcow2(path)?;
    let raw = path.with_extension("raw");
    let file = File::create(&raw)?;
    file.set_len(image.size())?;
    let mut piece = vec![0; 1 << 20];
    for offset in (0..image.size()).step_by(piece.len()) {
        image.read(&mut piece, offset)?;
        file.write_all_at(&piece, offset)?;
    }
    Ok(raw)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn disks_keep_their_data_over_a_reset_and_the_next_start() -> Result<()> {
    let (dir, raw) = ext4(64)?;
    let above = dir.path().join("above.qcow2");
    qcow2(&above, 64 * MIB, Some(&raw_copy(&raw)?))?;
    let read_only = dir.path().join("other.img");
    File::create(&read_only)?.set_len(8 * MIB)?;
    let disks = [
        format!("{},id=first", text(&raw)),
        text(&above),
        format!("{},readonly", text(&read_only)),
    ];
    let mut vm = boot(&disks)?;
    ensure!(vm.agent.ask("cat /sys/block/vda/serial")?.lines == ["first"]);
    for (disk, place) in [("vda", "/first"), ("vdb", "/second")] {
        vm.agent.ask(&format!("mount ext4 /dev/{disk} {place}"))?;
        vm.agent.ask(&format!("store {place}/file 7 20"))?;
    }
    let refused = vm.agent.ask("store /dev/vdc 7 1").err().context("wrote to a read-only disk")?;
    ensure!(format!("{refused:#}").contains("ermi"), "{refused:#}");
    // A file system that is not unmounted has its journal replayed.
    vm.monitor.execute("system_reset", serde_json::json!({}))?;
    vm.agent.wait_up()?;
    vm.agent.ask("load devices")?;
    for (disk, place) in [("vda", "/first"), ("vdb", "/second")] {
        vm.agent.ask(&format!("mount ext4 /dev/{disk} {place}"))?;
        vm.agent.ask(&format!("recall {place}/file 7 20"))?;
        vm.agent.ask(&format!("umount {place}"))?;
    }
    // Entropy is there as well.
    let current = vm.agent.ask("cat /sys/class/misc/hw_random/rng_current")?.lines;
    ensure!(current.iter().all(|name| name.starts_with("virtio_rng")), "{current:?}");
    vm.power_off()?;
    run("e2fsck", &["-fn", &text(&raw)])?;
    run("e2fsck", &["-fn", &text(&as_raw(&above)?)])?;

    let mut vm = boot(&disks)?;
    vm.agent.ask("mount ext4 /dev/vdb /second")?;
    vm.agent.ask("recall /second/file 7 20")?;
    vm.power_off()
}

fn raw_copy(raw: &Path) -> Result<PathBuf> {
    let copy = raw.with_extension("base");
    fs::copy(raw, &copy)?;
    Ok(copy)
}

#[test]
fn a_power_cut_loses_no_record_that_was_safe() -> Result<()> {
    let cuts = if is_long_run() { 20 } else { 3 };
    for seed in 1..=cuts {
        let is_qcow2 = seed != 1;
        let (dir, raw) = ext4(64)?;
        let image = if is_qcow2 {
            let image = dir.path().join("above.qcow2");
            qcow2(&image, 64 * MIB, Some(&raw))?;
            image
        } else {
            raw.clone()
        };
        let mut vm = boot(&[text(&image)])?;
        vm.agent.ask("mount ext4 /dev/vda /disk")?;
        let told = vm.cut_power(&format!("append /disk/records {seed} 10000"), 20 * seed)?;
        ensure!(told.len() as u64 >= 20 * seed, "{told:?}");

        let raw = if is_qcow2 { as_raw(&image)? } else { raw };
        let raw = text(&raw);
        run("e2fsck", &["-p", "-E", "journal_only", &raw])?;
        run("e2fsck", &["-fn", &raw])?;
        let found = dir.path().join("records");
        run("debugfs", &["-R", &format!("dump /records {}", text(&found)), &raw])?;
        let found = fs::read(found)?;
        for number in told {
            let at = usize::try_from(number)? * RECORD;
            let is_there = found.get(at..at + RECORD) == Some(&*record(seed, number));
            ensure!(is_there, "record {number} of sequence {seed} is lost");
        }
    }
    Ok(())
}

/// The guest is told, the operator is told, and the machine runs on.
#[test]
fn a_disk_that_is_full_is_an_error_in_the_guest() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let image = dir.path().join("disk.img");
    File::create(&image)?.set_len(64 * MIB)?;
    let mut vm = boot(&[text(&image)])?;
    let before = vm.set_limit(Resource::Fsize, Some(16 * MIB))?;
    let refused = vm.agent.ask("store /dev/vda 7 32").err().context("wrote beyond the limit")?;
    ensure!(format!("{refused:#}").contains("os error 5"), "{refused:#}");
    ensure!(vm.log()?.contains("cannot write the disk image"), "{}", vm.log()?);
    vm.set_limit(Resource::Fsize, before)?;
    vm.agent.ask("store /dev/vda 7 32")?;
    vm.agent.ask("recall /dev/vda 7 32")?;
    vm.power_off_after_complaints("disk")
}
