//! A guest starts another kernel by itself, and the host's books follow what that kernel has.

use anyhow::{Result, ensure};
use e2e::{MIB, NO_CLEARING, Vm, VmConfig};

const BOOT: u64 = 1024 * MIB;
const GROWN: u64 = 1536 * MIB;

/// How far a second kernel's MemTotal may be from the expected one: it is the same kernel, but puts
/// its own data elsewhere, and keeps a description of each page of its memory.
const TOLERANCE: u64 = 24 * MIB;

/// What a kernel that finds memory above 4 GiB as it starts sets aside at once: 64 MiB of buffers for
/// devices that cannot reach it (`swiotlb`), and the description of that memory's pages.
const SET_ASIDE: u64 = 96 * MIB;

/// Memory set aside for a crash kernel: enough for this one and its initramfs.
const CRASH_KERNEL: &str = "init_on_alloc=0 crashkernel=192M";

/// A guest that can start its kernel again, and its MemTotal.
fn boot() -> Result<(Vm, u64)> {
    boot_with(NO_CLEARING)
}

fn boot_with(append: &'static str) -> Result<(Vm, u64)> {
    let config = VmConfig {
        cpus: 2,
        memory: BOOT,
        max_memory: Some(2 * BOOT),
        kexec: true,
        append,
        ..VmConfig::default()
    };
    let mut vm = Vm::start(&config)?;
    vm.wait_for_driver()?;
    let total = vm.agent.meminfo()?.total;
    Ok((vm, total))
}

/// Loads the next kernel with the tool's options `how`.
fn load(vm: &mut Vm, how: &str) -> Result<()> {
    let files = "/next/kernel --initrd=/next/initrd --reuse-cmdline";
    vm.agent.ask(&format!("run /sbin/kexec {how} {files}")).map(drop)
}

fn start_next_kernel(vm: &mut Vm) -> Result<()> {
    vm.agent.ask("kexec")?;
    vm.agent.wait_up().map(drop)
}

fn total_is(vm: &mut Vm, expected: u64, tolerance: u64) -> Result<()> {
    let total = vm.agent.meminfo()?.total;
    ensure!(total.abs_diff(expected) < tolerance, "MemTotal {total} instead of {expected}");
    Ok(())
}

/// `kexec_file_load` tells the next kernel of the boot memory only.
#[test]
fn a_kernel_that_knows_only_boot_memory_is_not_asked_for_more() -> Result<()> {
    let (mut vm, boot_total) = boot()?;
    load(&mut vm, "--kexec-file-syscall --load")?;
    vm.resize(GROWN)?;
    start_next_kernel(&mut vm)?;

    vm.wait_for_size(BOOT)?;
    total_is(&mut vm, boot_total, TOLERANCE)?;
    let status = vm.dynamic_memory()?;
    ensure!(status.unconfirmed == GROWN - BOOT, "{status:?}");

    // Of the memory that it has, not of that which the host once added.
    let total = vm.agent.meminfo()?.total;
    vm.resize(BOOT - 256 * MIB)?;
    total_is(&mut vm, total - 256 * MIB, TOLERANCE)?;
    vm.resize(BOOT)?;
    total_is(&mut vm, total, TOLERANCE)?;
    vm.agent.fill(1, 128 * MIB)?;
    vm.agent.check(1)?;
    vm.power_off_after_complaints("has not confirmed memory")
}

/// `kexec_load` tells it of added memory too. Pages that the first kernel gave are the second one's.
#[test]
fn a_kernel_that_knows_added_memory_has_all_of_it() -> Result<()> {
    let (mut vm, boot_total) = boot()?;
    vm.resize(GROWN)?;
    load(&mut vm, "--kexec-syscall --load")?;
    vm.resize(BOOT - 256 * MIB)?;
    start_next_kernel(&mut vm)?;

    total_is(&mut vm, boot_total + (GROWN - BOOT), SET_ASIDE)?;
    vm.agent.fill(1, 768 * MIB)?;
    vm.agent.check(1)?;
    vm.agent.ask("free 1")?;
    vm.resize(BOOT)?;
    let status = vm.dynamic_memory()?;
    ensure!(status.unconfirmed == 0 && status.hot_added == GROWN - BOOT, "{status:?}");
    vm.power_off()
}

/// A crash kernel has the memory set aside for it and nothing else: the host must not take that for a
/// guest with all the memory it had before, and the crashed kernel's memory is there to be saved.
#[test]
fn a_crash_kernel_saves_the_memory_of_a_guest_that_was_grown_and_shrunk() -> Result<()> {
    let (mut vm, boot_total) = boot_with(CRASH_KERNEL)?;
    vm.resize(GROWN)?;
    // A crash kernel that does not start on the boot processor must leave that alone.
    load(&mut vm, "--kexec-syscall --load-panic --append=nr_cpus=1")?;
    vm.resize(BOOT - 256 * MIB)?;
    vm.crash()?;
    vm.agent.wait_up()?;
    vm.wait_for_driver()?;

    let total = vm.agent.meminfo()?.total;
    ensure!(total < 192 * MIB, "MemTotal {total}: that is no crash kernel");
    ensure!(vm.agent.ask("ls /proc")?.lines.iter().any(|file| file == "vmcore"), "no vmcore");
    vm.agent.fill(1, 32 * MIB)?;
    vm.agent.check(1)?;
    let status = vm.approach(BOOT - 128 * MIB)?;
    ensure!(vm.agent.meminfo()?.total + 64 * MIB > total, "the host took memory: {status:?}");
    vm.agent.check(1)?;

    vm.agent.ask("reboot")?;
    vm.agent.wait_up()?;
    vm.wait_for_size(BOOT)?;
    total_is(&mut vm, boot_total, TOLERANCE)?;
    vm.resize(BOOT - 256 * MIB)?;
    vm.resize(BOOT)?;
    vm.power_off_after_complaints("memory")
}
