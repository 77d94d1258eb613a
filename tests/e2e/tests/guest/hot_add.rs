//! Guests get more memory than they booted with, and give it back like any other.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{MIB, NO_CLEARING, Vm, VmConfig, wait_for};
use qmp::{Client, Value};
use serde_json::json;

const BOOT: u64 = 512 * MIB;
const GIB: u64 = 1024 * MIB;

/// How far the guest's MemTotal may be from the expected value. It is exact except for a few pages
/// that the kernel keeps as it brings memory online.
const TOLERANCE: u64 = 4 * MIB;

/// A guest with two vCPUs that booted with less than it may have, and its MemTotal.
fn boot_small(maximum: u64) -> Result<(Vm, u64)> {
    let config = VmConfig {
        cpus: 2,
        memory: BOOT,
        max_memory: Some(maximum),
        append: NO_CLEARING,
        ..Default::default()
    };
    let mut vm = Vm::start(&config)?;
    let actual = vm.wait_for_driver()?;
    ensure!(actual == BOOT, "booted with {actual}");
    let total = vm.agent.meminfo()?.total;
    Ok((vm, total))
}

/// Everything in one guest: 512 MiB, 4 GiB, as little as the guest allows, 4 GiB again, and a
/// shrink that is cancelled.
#[test]
fn grows_past_its_boot_size_shrinks_to_its_floor_and_grows_again() -> Result<()> {
    const MOST: u64 = 4 * GIB;
    let (mut vm, boot_total) = boot_small(MOST)?;
    let mut watcher = vm.connect()?;
    vm.agent.fill(1, 32 * MIB)?;

    vm.resize(MOST)?;
    let total = boot_total + (MOST - BOOT);
    memory_total_is(&mut vm, total)?;
    all_queries_agree(&mut vm, MOST - BOOT)?;
    sizes_are_told(&mut watcher, MOST, MOST - BOOT)?;
    vm.agent.fill(2, 64 * MIB)?;
    let begin = first_added(&mut vm)?;
    let added = vm.agent.bytes_above(2, begin)?;
    ensure!(added > 32 * MIB, "only {added} bytes of the data are in added memory");

    let status = vm.approach(64 * MIB)?;
    let why = status.stopped.as_deref().unwrap_or_default();
    ensure!(why.contains("gives no more"), "{status:?}");
    ensure!((128 * MIB..640 * MIB).contains(&status.actual), "{status:?}");
    memory_total_is(&mut vm, total - (MOST - status.actual))?;
    all_queries_agree(&mut vm, MOST - BOOT)?;
    vm.agent.check(1)?;
    vm.agent.check(2)?;

    vm.resize(MOST)?;
    memory_total_is(&mut vm, total)?;
    all_queries_agree(&mut vm, MOST - BOOT)?;
    vm.agent.check(1)?;
    vm.agent.check(2)?;

    call_off_a_shrink(&mut vm, 64 * MIB, MOST)?;
    memory_total_is(&mut vm, total)?;
    vm.agent.check(1)?;
    vm.agent.check(2)?;
    vm.power_off()
}

/// Sets one target, and another as soon as the first shows an effect. How far the shrink gets until
/// then depends on the machine; tests of the device alone show that it ends at the next message.
fn call_off_a_shrink(vm: &mut Vm, small: u64, large: u64) -> Result<()> {
    vm.set_target(small)?;
    wait_for("the first pages", || Ok((vm.actual()? < large).then_some(())))?;
    vm.resize(large)
}

/// All reports of the guest's memory agree; none of it is ballooned or on its way.
fn all_queries_agree(vm: &mut Vm, added: u64) -> Result<()> {
    let status = vm.dynamic_memory()?;
    ensure!(status.hot_added == added && status.assigned == BOOT + added, "{status:?}");
    ensure!(status.actual + status.ballooned == status.assigned, "{status:?}");
    ensure!(vm.actual()? == status.actual, "{status:?}");

    let devices = vm.monitor.execute("query-memory-devices", Value::Null)?;
    ensure!(devices.as_array().is_some_and(|all| all.len() == 1), "{devices}");
    let (kind, device) = (&devices[0]["type"], &devices[0]["data"]);
    ensure!(kind == "hv-balloon" && device["size"] == json!(added), "{devices}");
    ensure!(device["max-size"] == json!(status.maximum - BOOT), "{devices}");
    let human = vm.human("info memory-devices")?;
    ensure!(
        human.contains("[hv-balloon]") && human.contains(&format!("size: {added}\r\n")),
        "{human}"
    );

    let summary = vm.monitor.execute("query-memory-size-summary", Value::Null)?;
    ensure!(summary == json!({ "base-memory": BOOT, "plugged-memory": added }), "{summary}");
    let human = vm.human("info memory_size_summary")?;
    ensure!(human == format!("base memory: {BOOT}\r\nplugged memory: {added}\r\n"), "{human}");
    Ok(())
}

#[test]
fn a_maximum_out_of_the_guests_reach_is_told_at_the_start_with_the_remedy() -> Result<()> {
    let mut vm = Vm::start(&VmConfig {
        memory: BOOT,
        max_memory: Some(BOOT + 200 * MIB),
        ..Default::default()
    })?;
    vm.wait_for_driver()?;
    let status = vm.dynamic_memory()?;
    ensure!(status.maximum == 640 * MIB, "{status:?}");
    vm.power_off_after_complaints("give --max-memory 640M or 768M")
}

/// An impossible target is refused at once, and the previous one stays in force.
#[test]
fn target_above_the_maximum_is_refused_and_one_without_a_driver_is_kept() -> Result<()> {
    let config = VmConfig {
        memory: BOOT,
        max_memory: Some(GIB),
        append: "agent.skip=hv_balloon",
        ..Default::default()
    };
    let mut vm = Vm::start(&config)?;
    let total = vm.agent.meminfo()?.total;
    vm.set_target(GIB)?;
    let status = vm.dynamic_memory()?;
    ensure!(status.waiting.as_ref().is_some_and(|why| !why.is_empty()), "{status:?}");
    ensure!(status.target == Some(GIB) && status.actual == BOOT, "{status:?}");

    for impossible in [0, GIB + MIB, 1 << 50] {
        let Err(error) = vm.set_target(impossible) else { anyhow::bail!("{impossible} was taken") };
        let error = error.to_string();
        ensure!(error.len() > "balloon: ".len() && !error.contains('\n'), "{impossible}: {error}");
    }
    let status = vm.dynamic_memory()?;
    ensure!(status.target == Some(GIB), "{status:?}");
    let refusal = status.last_refusal.context("the refusal is forgotten")?;
    ensure!(refusal.target == 1 << 50 && !refusal.reason.is_empty(), "{refusal:?}");

    vm.agent.ask("insmod hv_balloon")?;
    vm.wait_for_size(GIB)?;
    memory_total_is(&mut vm, total + (GIB - BOOT))?;
    let status = vm.dynamic_memory()?;
    ensure!(status.waiting.is_none(), "{status:?}");
    vm.power_off()
}

/// Linux reports memory as added even if nothing brings that memory online.
#[test]
fn memory_that_stays_offline_is_told_and_a_later_try_succeeds() -> Result<()> {
    let config =
        VmConfig { memory: BOOT, max_memory: Some(GIB), auto_online: false, ..Default::default() };
    let mut vm = Vm::start(&config)?;
    vm.wait_for_driver()?;
    let total = vm.agent.meminfo()?.total;

    vm.set_target(BOOT + 128 * MIB)?;
    let why = wait_for("a reason why the guest does not use its memory", || {
        Ok(vm.dynamic_memory()?.stopped)
    })
    .with_context(|| format!("{:?}", vm.dynamic_memory()))?;
    ensure!(why.contains("online"), "{why}");
    memory_total_is(&mut vm, total)?;

    vm.agent.set_auto_online(true)?;
    let onlined: u64 = vm.agent.ask("online-all")?.text.parse()?;
    ensure!(onlined > 0, "no memory was left offline");
    vm.resize(GIB)?;
    memory_total_is(&mut vm, total + (GIB - BOOT))?;
    let status = vm.dynamic_memory()?;
    ensure!(status.stopped.is_none(), "{status:?}");
    vm.resize(BOOT)?;
    memory_total_is(&mut vm, total)?;
    vm.power_off()
}

/// When the driver leaves, added memory remains the guest's until a reset.
#[test]
fn added_memory_stays_when_the_driver_leaves() -> Result<()> {
    let (mut vm, boot_total) = boot_small(GIB)?;
    vm.resize(768 * MIB)?;
    vm.agent.fill(1, 128 * MIB)?;

    vm.rebind_driver()?;
    let actual = vm.actual()?;
    ensure!(actual == 768 * MIB, "a new driver starts with {actual}");
    memory_total_is(&mut vm, boot_total + 256 * MIB)?;
    all_queries_agree(&mut vm, 256 * MIB)?;

    vm.resize(BOOT)?;
    vm.resize(GIB)?;
    memory_total_is(&mut vm, boot_total + (GIB - BOOT))?;
    all_queries_agree(&mut vm, GIB - BOOT)?;
    vm.agent.check(1)?;
    vm.power_off()
}

/// Where added memory begins in the guest's address space.
fn first_added(vm: &mut Vm) -> Result<u64> {
    let devices = vm.monitor.execute("query-memory-devices", Value::Null)?;
    devices[0]["data"]["memaddr"].as_u64().with_context(|| devices.to_string())
}

fn memory_total_is(vm: &mut Vm, expected: u64) -> Result<()> {
    let total = vm.agent.meminfo()?.total;
    let status = vm.dynamic_memory()?;
    ensure!(
        total.abs_diff(expected) <= TOLERANCE,
        "MemTotal is {total} instead of {expected}: {status:?}"
    );
    Ok(())
}

/// Waits until the last events of the guest's size and of its added memory have these. They may be
/// delayed by up to a second.
fn sizes_are_told(client: &mut Client, actual: u64, added: u64) -> Result<()> {
    let what = format!(
        "BALLOON_CHANGE with {actual} and MEMORY_DEVICE_SIZE_CHANGE with {added} as the last"
    );
    let mut told = [Value::Null, Value::Null];
    wait_for(&what, || {
        if let Some(event) = client.next_event(Duration::from_secs(1))? {
            match event.name.as_str() {
                "BALLOON_CHANGE" => told[0] = event.data["actual"].clone(),
                "MEMORY_DEVICE_SIZE_CHANGE" => told[1] = event.data["size"].clone(),
                _ => {}
            }
        }
        Ok((told == [json!(actual), json!(added)]).then_some(()))
    })
    .with_context(|| format!("the last were {told:?}"))
}
