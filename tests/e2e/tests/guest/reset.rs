//! The guest's size after a reset: its boot size, or the size it had.

use std::fs;

use anyhow::{Result, ensure};
use e2e::{MIB, Setup, Vm, VmConfig, wait_for};
use qmp::Value;
use serde_json::json;
use vmlinux::Vmlinux;

#[path = "../../../../crates/vmm/tests/images/vmlinux.rs"]
mod vmlinux;

const BOOT: u64 = 512 * MIB;
const MOST: u64 = 1024 * MIB;
/// Below the boot size, and above what the guest keeps for itself.
const SMALL: u64 = 400 * MIB;

/// Whether one boot's MemTotal may match another's: a kernel's load address is random, and with it
/// what the kernel keeps for itself.
fn is_near(total: u64, before: u64) -> bool {
    total.abs_diff(before) <= 4 * MIB
}

/// The ways to cause the same reset. A `reboot` is in `life` and below.
const RESETS: [&str; 2] = ["system_reset", "crash"];

fn start(policy: &'static str) -> Result<Vm> {
    let mut vm = Vm::start(&VmConfig {
        cpus: 2,
        memory: BOOT,
        max_memory: Some(MOST),
        on_reset: Some(policy),
        ..Default::default()
    })?;
    vm.wait_for_driver()?;
    Ok(vm)
}

/// Resets the guest and waits until its agent is up again.
fn reset(vm: &mut Vm, how: &str) -> Result<()> {
    match how {
        "system_reset" => drop(vm.monitor.execute("system_reset", Value::Null)?),
        "reboot" => drop(vm.agent.ask("reboot")?),
        // No crash kernel is loaded and `panic=-1` is set, so the guest reboots.
        _ => vm.crash()?,
    }
    vm.wait_event("RESET")?;
    vm.agent.wait_up().map(drop)
}

#[test]
fn guest_comes_back_at_its_boot_size() -> Result<()> {
    let mut vm = start("boot-size")?;
    let total = vm.agent.meminfo()?.total;
    for how in RESETS {
        vm.resize(MOST)?;
        vm.agent.fill(1, 256 * MIB)?;
        reset(&mut vm, how)?;
        let actual = vm.wait_for_driver()?;
        ensure!(actual == BOOT, "after {how}: back with {actual}");
        let back = vm.agent.meminfo()?.total;
        ensure!(is_near(back, total), "after {how}: MemTotal is {back} and was {total}");
        let devices = vm.monitor.execute("query-memory-devices", Value::Null)?;
        ensure!(devices[0]["data"]["size"] == json!(0), "after {how}: {devices}");
    }
    vm.resize(MOST)?;
    vm.power_off()
}

#[test]
fn guest_keeps_its_size_above_and_below_that_at_boot() -> Result<()> {
    let mut vm = start("keep-size")?;
    let total = vm.agent.meminfo()?.total;
    for how in RESETS {
        vm.resize(MOST)?;
        reset(&mut vm, how)?;
        // At once, from the memory map: the driver was not involved.
        let large = vm.agent.meminfo()?.total;
        let grown = large.saturating_sub(total);
        // Records for the additional memory reduce MemTotal when the kernel boots with it.
        let least = (MOST - BOOT) * 95 / 100;
        ensure!((least..=MOST - BOOT).contains(&grown), "after {how}: {large} instead of {total}");
        let actual = vm.wait_for_driver()?;
        ensure!(actual == MOST, "after {how}: back with {actual}");
    }

    vm.resize(SMALL)?;
    reset(&mut vm, "reboot")?;
    wait_for("the size before the reset", || Ok((vm.actual()? == SMALL).then_some(())))?;
    vm.resize(BOOT)?;
    let back = vm.agent.meminfo()?.total;
    ensure!(is_near(back, total), "MemTotal is {back} and was {total}");
    vm.power_off()
}

/// A kernel that sends INIT to its own processor: it enables the local APIC and writes 0x4500 to the low half of its command register, whose high half addresses APIC 0 (Intel SDM
/// vol. 3, 10.6.1 and 10.9).
fn kernel_that_sends_init() -> Vec<u8> {
    const CODE: [u8; 27] = [
        0xb8, 0xff, 0x01, 0x00, 0x00, // mov eax, 0x1ff
        0xbf, 0xf0, 0x00, 0xe0, 0xfe, // mov edi, 0xfee000f0
        0x89, 0x07, // mov [rdi], eax
        0xb8, 0x00, 0x45, 0x00, 0x00, // mov eax, 0x4500
        0xbf, 0x00, 0x03, 0xe0, 0xfe, // mov edi, 0xfee00300
        0x89, 0x07, // mov [rdi], eax
        0xf4, // hlt
        0xeb, 0xfd, // jmp to the hlt
    ];
    Vmlinux { code: CODE.to_vec(), ..Vmlinux::default() }.bytes()
}

/// A PC has its firmware where a boot processor goes on after INIT. Here is none, so the machine starts anew.
#[test]
fn a_boot_processor_that_is_sent_init_is_a_reset() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let vmlinux = directory.path().join("vmlinux");
    fs::write(&vmlinux, kernel_that_sends_init())?;
    let setup = Setup { vmlinux, ..Setup::from_env()? };
    let mut vm = Vm::start_with(&VmConfig { memory: 256 * MIB, ..Default::default() }, &setup)?;
    for _ in 0..3 {
        ensure!(vm.wait_event("RESET")?["guest"] == json!(true), "not a reset by the guest");
    }
    vm.monitor.execute("quit", Value::Null)?;
    vm.end_after_complaints("the guest sent its boot processor to the firmware")
}
