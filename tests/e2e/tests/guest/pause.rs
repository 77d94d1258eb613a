//! A guest that `stop` holds stands still, can be commanded all the same, and goes on with `cont`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::{MIB, PATIENCE, Vm};
use serde_json::{Value, json};

use crate::on_one_and_two_cpus;

/// Long enough for a guest that runs to answer.
const A_WHILE: Duration = Duration::from_secs(5);

on_one_and_two_cpus! { a_held_guest_stands_still_and_follows_its_target_when_it_goes_on }

fn a_held_guest_stands_still_and_follows_its_target_when_it_goes_on(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    vm.agent.fill(1, 128 * MIB)?;
    command(&mut vm, "stop")?;
    vm.wait_event("STOP")?;
    has_status(&mut vm, "paused", "paused")?;
    // It changes nothing, and there is no second event.
    command(&mut vm, "stop")?;

    let places = registers(&mut vm, "rip")?;
    vm.agent.tell("meminfo")?;
    vm.set_target(768 * MIB)?;
    let answer = vm.agent.answer_until(Instant::now() + A_WHILE)?;
    ensure!(answer.is_none(), "a held guest answered: {answer:?}");
    ensure!(registers(&mut vm, "rip")? == places, "a held guest moved from {places:?}");
    let held = vm.dynamic_memory()?;
    ensure!(held.actual == 1024 * MIB && held.target == Some(768 * MIB), "{held:?}");
    ensure!(held.waiting.as_ref().is_some_and(|why| why.contains("paused")), "{held:?}");

    command(&mut vm, "cont")?;
    command(&mut vm, "cont")?;
    let event = vm.monitor.next_event(PATIENCE)?;
    let is_told = event.as_ref().is_some_and(|event| event.name == "RESUME");
    ensure!(is_told, "no RESUME within {PATIENCE:?}, but {event:?}");
    has_status(&mut vm, "running", "running")?;
    let answer = vm.agent.answer_until(Instant::now() + PATIENCE)?;
    ensure!(answer.is_some(), "no answer to `meminfo` within {PATIENCE:?} of `cont`");
    vm.wait_for_size(768 * MIB)?;
    vm.agent.check(1)?;
    vm.resize(1024 * MIB)?;
    vm.power_off()
}

/// Each hold is another moment for the guest: it must lose no interrupt and no message.
#[test]
fn a_guest_that_is_held_over_and_over_is_resized() -> Result<()> {
    let mut vm = Vm::boot(2)?;
    vm.agent.fill(1, 128 * MIB)?;
    for round in 0..10 {
        vm.set_target((512 + 256 * (round % 2)) * MIB)?;
        for _ in 0..5 {
            command(&mut vm, "stop")?;
            command(&mut vm, "cont")?;
        }
        vm.wait_for_size((512 + 256 * (round % 2)) * MIB)?;
    }
    vm.agent.check(1)?;
    vm.power_off()
}

#[test]
fn a_held_guest_is_reset_and_boots_when_it_goes_on() -> Result<()> {
    let mut vm = Vm::boot(2)?;
    command(&mut vm, "stop")?;
    command(&mut vm, "system_reset")?;
    vm.wait_event("RESET")?;
    has_status(&mut vm, "prelaunch", "paused (prelaunch)")?;
    command(&mut vm, "cont")?;
    vm.agent.wait_up()?;
    let actual = vm.wait_for_driver()?;
    ensure!(actual == 1024 * MIB, "back with {actual} bytes");
    vm.resize(768 * MIB)?;
    vm.power_off()
}

#[test]
fn a_held_guest_is_ended() -> Result<()> {
    let mut vm = Vm::boot(2)?;
    ensure!(vm.human("stop")?.is_empty());
    command(&mut vm, "quit")?;
    vm.end()
}

fn command(vm: &mut Vm, name: &str) -> Result<()> {
    Ok(vm.monitor.execute(name, Value::Null).map(drop)?)
}

fn has_status(vm: &mut Vm, status: &str, human: &str) -> Result<()> {
    let answer = vm.monitor.execute("query-status", Value::Null)?;
    let expected = json!({ "status": status, "running": status == "running" });
    ensure!(answer == expected, "{answer}");
    let text = vm.human("info status")?;
    ensure!(text == format!("VM status: {human}\r\n"), "{text}");
    Ok(())
}

/// A register of each vCPU. Held vCPUs answer the flight recorder, too.
fn registers(vm: &mut Vm, name: &str) -> Result<Vec<Value>> {
    let dump = vm.monitor.execute("x-dump-flight-recorder", Value::Null)?;
    let vcpus = dump["vcpus"].as_array().into_iter().flatten();
    let values: Vec<_> = vcpus.map(|vcpu| vcpu["state"][name].clone()).collect();
    ensure!(!values.is_empty() && values.iter().all(Value::is_string), "{dump}");
    Ok(values)
}
