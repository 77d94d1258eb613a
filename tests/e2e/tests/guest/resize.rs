//! The guest's memory follows the target, and only ballooned memory is touched.

use anyhow::{Context, Result, ensure};
use e2e::{MIB, Vm, VmConfig, hvb, wait_for};
use serde_json::json;

use crate::on_one_and_two_cpus;

on_one_and_two_cpus! {
    shrinks_and_grows_twice_with_data_intact,
    stops_where_the_guest_stops_and_stays_usable,
    reset_during_a_balloon_request,
    driver_leaves_and_comes_back,
    bus_is_unloaded_and_loaded_again,
}

const FULL: u64 = 1024 * MIB;
const HALF: u64 = 512 * MIB;

/// The devices of the bus: the balloon, and the services for shutdown, heartbeat and time.
const DEVICES: usize = 4;

fn shrinks_and_grows_twice_with_data_intact(cpus: u32) -> Result<()> {
    // Free memory must stay with the guest until it is ballooned, or the host has it already.
    let free_page_reporting = Some("off");
    let mut vm = Vm::start(&VmConfig { cpus, free_page_reporting, ..VmConfig::default() })?;
    vm.wait_for_driver()?;
    ensure!(vm.actual()? == FULL, "booted with {}", vm.actual()?);
    vm.agent.fill(1, 128 * MIB)?;
    for round in 0..2 {
        shrink_and_grow(&mut vm).with_context(|| format!("round {round}"))?;
    }
    vm.power_off()
}

fn shrink_and_grow(vm: &mut Vm) -> Result<()> {
    vm.agent.dirty_free_memory()?;
    let (total, resident) = (vm.agent.meminfo()?.total, vm.resident()?);

    vm.resize(HALF)?;
    let (small_total, small_resident) = (vm.agent.meminfo()?.total, vm.resident()?);
    let enough = (FULL - HALF) * 9 / 10;
    // Memory that the host had not provided before cannot be taken back.
    let absent = FULL.saturating_sub(resident);
    ensure!(absent < 160 * MIB, "the guest did not use its memory: {resident} resident");
    let fallen = resident.saturating_sub(small_resident);
    ensure!(
        fallen + absent >= enough,
        "resident memory only fell from {resident} to {small_resident}"
    );
    let fallen = total.saturating_sub(small_total);
    ensure!(fallen >= enough, "the guest's MemTotal only fell from {total} to {small_total}");
    vm.agent.check(1)?;

    vm.resize(FULL)?;
    let grown_total = vm.agent.meminfo()?.total;
    ensure!(grown_total == total, "MemTotal is {grown_total} and was {total}");
    vm.agent.check(1)
}

fn stops_where_the_guest_stops_and_stays_usable(cpus: u32) -> Result<()> {
    const TOO_LITTLE: u64 = 64 * MIB;
    let mut vm = Vm::boot(cpus)?;
    vm.agent.fill(1, 400 * MIB)?;

    vm.set_target(TOO_LITTLE)?;
    let event = vm.wait_event("X_BALLOON_STOPPED")?;
    let actual = vm.actual()?;
    ensure!(event["target"] == json!(TOO_LITTLE), "{event}");
    ensure!(event["reason"].as_str().is_some_and(|why| !why.is_empty()), "{event}");
    ensure!((400 * MIB..FULL).contains(&actual), "the guest has {actual}");
    ensure!(vm.dynamic_memory()?.stopped.is_some(), "{:?}", vm.dynamic_memory()?);

    // The command line tells the user the same.
    let socket = vm.socket().display().to_string();
    let output = hvb(&["balloon", &socket, "64M", "--wait"])?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(!output.stderr.is_empty(), "{output:?}");

    vm.agent.check(1)?;
    vm.resize(FULL)?;
    vm.agent.ask("free 1")?;
    vm.resize(HALF)?;
    vm.resize(FULL)?;
    vm.power_off()
}

fn reset_during_a_balloon_request(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    let total = vm.agent.meminfo()?.total;
    for wait_for_pages in [false, true] {
        vm.agent.dirty_free_memory()?;
        vm.set_target(HALF)?;
        if wait_for_pages {
            wait_for("the first pages", || Ok((vm.actual()? < FULL).then_some(())))?;
        }
        vm.monitor.execute("system_reset", json!(null))?;
        vm.wait_event("RESET")?;
        vm.agent.wait_up()?;
        let actual = vm.wait_for_driver()?;
        ensure!(actual == FULL, "back with {actual} bytes");
        let new_total = vm.agent.meminfo()?.total;
        // After a reboot, a kernel may keep a few pages more or less for itself.
        ensure!(new_total.abs_diff(total) <= MIB, "MemTotal is {new_total} and was {total}");

        vm.agent.fill(1, 128 * MIB)?;
        vm.resize(HALF)?;
        vm.agent.check(1)?;
        vm.resize(FULL)?;
        vm.agent.check(1)?;
        vm.agent.ask("free 1")?;
    }
    vm.power_off()
}

fn driver_leaves_and_comes_back(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    vm.agent.fill(1, 128 * MIB)?;
    for _ in 0..3 {
        vm.resize(HALF)?;
        vm.resize(FULL)?;
        vm.rebind_driver()?;
    }
    // The Linux driver never frees the pages it had given up before it left: less than half
    // remains.
    vm.resize(768 * MIB)?;
    vm.rebind_driver()?;
    let actual = vm.wait_for_driver()?;
    ensure!(actual == FULL, "a new driver starts with {actual} bytes");
    vm.resize(768 * MIB)?;
    vm.resize(FULL)?;
    vm.agent.check(1)?;
    vm.power_off()
}

fn bus_is_unloaded_and_loaded_again(cpus: u32) -> Result<()> {
    let mut vm =
        Vm::start(&VmConfig { cpus, append: "agent.skip=hv_balloon", ..VmConfig::default() })?;
    for _ in 0..3 {
        // Linux 6.12 fails (`vmbus_free_channels`) if it is unloaded before it has registered the
        // device of each channel.
        wait_for("all devices of the bus", || {
            let devices = vm.agent.ask("ls /sys/bus/vmbus/devices")?.lines.len();
            Ok((devices == DEVICES).then_some(()))
        })?;
        vm.agent.ask("rmmod hv_vmbus")?;
        vm.agent.ask("insmod hv_vmbus")?;
    }
    vm.agent.ask("insmod hv_balloon")?;
    vm.wait_for_driver()?;
    vm.resize(HALF)?;
    vm.resize(FULL)?;
    vm.power_off()
}
