//! Guests start, restart and end as requested, and leave nothing behind.

use std::io::{Read, Seek, SeekFrom};

use anyhow::{Result, ensure};
use e2e::{MIB, Vm, VmConfig, wait_for};
use rustix::process::Signal;
use serde_json::json;

use crate::on_one_and_two_cpus;

on_one_and_two_cpus! {
    guest_powers_off,
    guest_reboots,
    crashed_guest_reboots,
    monitor_resets_the_guest,
}

fn guest_powers_off(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    let online = vm.agent.ask("cat /sys/devices/system/cpu/online")?.lines;
    ensure!(online == [["0", "0-1"][cpus as usize - 1]], "CPUs {online:?}");
    vm.agent.ask("poweroff")?;
    let event = vm.wait_event("SHUTDOWN")?;
    ensure!(event == json!({ "guest": true, "reason": "guest-shutdown" }), "{event}");
    vm.end()
}

fn guest_reboots(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    vm.agent.ask("reboot")?;
    let event = vm.wait_event("RESET")?;
    ensure!(event == json!({ "guest": true, "reason": "guest-reset" }), "{event}");
    comes_back(vm)
}

/// The crash handler of `hv_vmbus` unloads the bus by polling, with interrupts off.
fn crashed_guest_reboots(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    vm.resize(768 * MIB)?;
    vm.crash()?;
    vm.wait_event("RESET")?;
    comes_back(vm)
}

fn monitor_resets_the_guest(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    vm.monitor.execute("system_reset", json!(null))?;
    let event = vm.wait_event("RESET")?;
    ensure!(event == json!({ "guest": false, "reason": "host-qmp-system-reset" }), "{event}");
    comes_back(vm)
}

fn comes_back(mut vm: Vm) -> Result<()> {
    vm.agent.wait_up()?;
    let actual = vm.wait_for_driver()?;
    ensure!(actual == 1024 * MIB, "back with {actual} bytes");
    vm.resize(768 * MIB)?;
    vm.resize(1024 * MIB)?;
    vm.power_off()
}

#[test]
fn sigint_ends_cleanly_while_a_balloon_request_runs() -> Result<()> {
    let mut vm = Vm::boot(2)?;
    vm.set_target(512 * MIB)?;
    vm.signal(Signal::INT)?;
    vm.end()
}

#[test]
fn quit_ends_cleanly() -> Result<()> {
    let mut vm = Vm::boot(1)?;
    vm.monitor.execute("quit", json!(null))?;
    vm.end()
}

#[test]
fn odd_sizes_boot() -> Result<()> {
    for (cpus, memory) in [(1, 200 * MIB), (4, 3500 * MIB)] {
        let mut vm = Vm::start(&VmConfig { cpus, memory, ..VmConfig::default() })?;
        let actual = vm.wait_for_driver()?;
        ensure!(actual == memory, "booted with {actual} instead of {memory}");
        vm.resize(memory - 32 * MIB)?;
        vm.power_off()?;
    }
    Ok(())
}

/// The serial console may be a file; then nothing reads or needs standard input.
#[test]
fn console_goes_to_a_file() -> Result<()> {
    let setup = e2e::Setup::from_env()?;
    let mut console = tempfile::NamedTempFile::new()?;
    let mut child = std::process::Command::new(&setup.hvb)
        .args(["run", "--append", "console=ttyS0 panic=-1", "--kernel"])
        .arg(&setup.kernel)
        .arg("--initrd")
        .arg(&setup.initrd)
        .arg("--serial")
        .arg(format!("file:{}", console.path().display()))
        .stdin(std::process::Stdio::null())
        .spawn()?;
    let up = wait_for("`@up` in the console's file", || {
        let mut text = String::new();
        console.as_file_mut().seek(SeekFrom::Start(0))?;
        console.as_file_mut().read_to_string(&mut text)?;
        Ok(text.contains("@up ").then_some(text))
    });
    child.kill()?;
    child.wait()?;
    let text = up?;
    ensure!(text.contains("Linux version") && text.contains("Hyper-V"), "{text}");
    Ok(())
}

/// A target may be set before the guest has a driver; it takes effect once there is one.
#[test]
fn driver_that_comes_late_finds_its_target() -> Result<()> {
    let mut vm = Vm::start(&VmConfig { append: "agent.skip=hv_balloon", ..VmConfig::default() })?;
    let status = vm.dynamic_memory()?;
    ensure!(status.state == "closed" && status.actual == 1024 * MIB, "{status:?}");
    vm.set_target(768 * MIB)?;
    vm.agent.ask("insmod hv_balloon")?;
    vm.wait_for_size(768 * MIB)?;
    vm.power_off()
}

/// Linux takes 256 characters of input at an interrupt, and more arrive while it reads them.
#[test]
fn long_lines_of_console_input_arrive_whole() -> Result<()> {
    let mut vm = Vm::start(&VmConfig::default())?;
    for length in [200, 300, 1000, 3000] {
        let text: String = ('a'..='z').cycle().take(length).collect();
        vm.agent.ask(&format!("write /line {text}"))?;
        let lines = vm.agent.ask("cat /line")?.lines;
        ensure!(lines.concat() == text, "{length} characters arrived as {lines:?}");
    }
    vm.power_off()
}
