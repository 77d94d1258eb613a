//! The integration services with a real guest: it shuts down when it is asked to, answers heartbeats, has
//! the right time after a pause, and says why it crashed.

use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use e2e::{MIB, Vm, VmConfig, hvb, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::on_one_and_two_cpus;

/// What the guest's `/sbin/poweroff` says when its kernel runs it.
const SHUTS_DOWN: &str = "poweroff: shutting down";

on_one_and_two_cpus! {
    a_guest_that_is_asked_by_the_monitor_shuts_down,
    a_crashing_guest_says_why,
}

fn a_guest_that_is_asked_by_the_monitor_shuts_down(cpus: u32) -> Result<()> {
    let mut vm = with_services(cpus, None)?;
    ensure!(info(&vm)?.contains("heartbeat OK"), "{}", info(&vm)?);
    // All devices of the bus at once.
    vm.resize(768 * MIB)?;
    vm.monitor.execute("system_powerdown", Value::Null)?;
    vm.wait_event("POWERDOWN")?;
    shuts_down(vm)
}

/// The guest's kernel writes the end of its log for the host.
fn a_crashing_guest_says_why(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    vm.crash()?;
    let event = vm.wait_event("GUEST_PANICKED")?;
    let text = event["x-message"].as_str().with_context(|| event.to_string())?;
    ensure!(text.contains("Kernel panic - not syncing: sysrq triggered crash"), "{text}");
    ensure!(
        event["action"] == json!("run") && event["info"]["type"] == json!("hyper-v"),
        "{event}"
    );
    vm.wait_event("RESET")?;
    vm.agent.wait_up()?;
    let log = vm.log()?;
    ensure!(log.contains("crashed; it says") && log.contains("sysrq triggered"), "{log}");
    vm.power_off()
}

#[test]
fn a_guest_shuts_down_for_hvb_stop() -> Result<()> {
    let vm = with_services(1, None)?;
    let output = stop(&vm, "280")?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("the guest shut down"), "{output:?}");
    vm.end()
}

#[test]
fn a_guest_shuts_down_on_sigterm() -> Result<()> {
    let mut vm = with_services(2, Some(280))?;
    vm.signal(Signal::TERM)?;
    vm.wait_event("POWERDOWN")?;
    shuts_down(vm)
}

#[test]
fn a_guest_that_ignores_sigterm_is_ended_after_the_grace_time() -> Result<()> {
    let mut vm = that_ignores(Some(5))?;
    vm.signal(Signal::TERM)?;
    vm.wait_event("POWERDOWN")?;
    let event = vm.wait_event("SHUTDOWN")?;
    ensure!(event == json!({ "guest": false, "reason": "host-signal" }), "{event}");
    vm.end_after_complaints("has not shut down within the 5 s of --grace, and is ended")
}

#[test]
fn a_second_sigterm_ends_a_guest_at_once() -> Result<()> {
    // As long as the test's patience lasts, so the grace time does not end it.
    let mut vm = that_ignores(Some(3600))?;
    vm.signal(Signal::TERM)?;
    vm.wait_event("POWERDOWN")?;
    vm.signal(Signal::TERM)?;
    let event = vm.wait_event("SHUTDOWN")?;
    ensure!(event == json!({ "guest": false, "reason": "host-signal" }), "{event}");
    vm.end()
}

#[test]
fn a_guest_that_ignores_hvb_stop_is_ended_and_the_status_says_so() -> Result<()> {
    let vm = that_ignores(None)?;
    let output = stop(&vm, "5")?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("its guest did not shut down within 5 s"), "{text}");
    vm.end()
}

/// Without `hv_utils` nobody can be asked, and the operator hears what to do.
#[test]
fn a_guest_without_services_cannot_be_asked_and_sigterm_ends_it() -> Result<()> {
    let mut vm = Vm::boot(1)?;
    let error = vm.monitor.execute("system_powerdown", Value::Null).expect_err("nobody to ask");
    ensure!(error.to_string().contains("modprobe hv_utils"), "{error}");
    let output = stop(&vm, "5")?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(info(&vm)?.contains("heartbeat No Contact"), "{}", info(&vm)?);
    vm.signal(Signal::TERM)?;
    vm.end_after_complaints("ends the machine at once, for the guest has no shutdown service")
}

/// A clock that went wrong while the guest was held is set when it goes on.
#[test]
fn the_guests_clock_is_right_at_boot_and_after_a_pause() -> Result<()> {
    let mut vm = with_services(2, None)?;
    wait_for("the right time after boot", || Ok(is_right(&mut vm)?.then_some(())))?;
    for _ in 0..2 {
        vm.agent.ask("set-clock 1000000000")?;
        ensure!(!is_right(&mut vm)?, "samples alone must not set the clock");
        vm.monitor.execute("stop", Value::Null)?;
        vm.monitor.execute("cont", Value::Null)?;
        wait_for("the right time after a pause", || Ok(is_right(&mut vm)?.then_some(())))?;
    }
    vm.power_off()
}

/// A guest that is held cannot answer, and is not lost for that.
#[test]
fn heartbeats_go_on_after_a_pause_and_a_reset() -> Result<()> {
    let mut vm = with_services(1, None)?;
    vm.monitor.execute("stop", Value::Null)?;
    std::thread::sleep(Duration::from_secs(40));
    ensure!(heartbeat(&mut vm)? == "OK", "{}", heartbeat(&mut vm)?);
    vm.monitor.execute("cont", Value::Null)?;
    vm.monitor.execute("system_reset", Value::Null)?;
    vm.wait_event("RESET")?;
    vm.agent.wait_up()?;
    wait_for("a heartbeat", || Ok((heartbeat(&mut vm)? == "OK").then_some(())))?;
    vm.agent.ask("rmmod hv_utils")?;
    wait_for("no contact", || Ok((heartbeat(&mut vm)? == "No Contact").then_some(())))?;
    vm.power_off()
}

/// A guest whose driver for the services has connected.
fn with_services(cpus: u32, grace: Option<u32>) -> Result<Vm> {
    let append = "agent.modules=services";
    let mut vm = Vm::start(&VmConfig { cpus, grace, append, ..VmConfig::default() })?;
    vm.wait_for_driver()?;
    wait_for("the guest's services", || {
        let services = services(&mut vm)?;
        let is_there = services["heartbeat"] == json!("OK") && services["shutdown"].is_string();
        Ok((is_there && services["time-sync"].is_string()).then_some(()))
    })?;
    Ok(vm)
}

/// A guest that does nothing when it is asked to shut down.
fn that_ignores(grace: Option<u32>) -> Result<Vm> {
    let mut vm = with_services(1, grace)?;
    vm.agent.ask("write /ignore-poweroff x")?;
    Ok(vm)
}

/// Waits for the end of a guest that was asked, by its own `/sbin/poweroff`.
fn shuts_down(mut vm: Vm) -> Result<()> {
    let event = vm.wait_event("SHUTDOWN")?;
    ensure!(event == json!({ "guest": true, "reason": "guest-shutdown" }), "{event}");
    let console = vm.agent.last_words();
    ensure!(console.contains(SHUTS_DOWN), "{console}");
    vm.end()
}

fn services(vm: &mut Vm) -> Result<Value> {
    Ok(vm.monitor.execute("x-query-integration-services", Value::Null)?)
}

fn heartbeat(vm: &mut Vm) -> Result<String> {
    Ok(services(vm)?["heartbeat"].as_str().unwrap_or_default().to_owned())
}

/// Whether the guest's clock is the host's, but for the time that it takes to ask.
fn is_right(vm: &mut Vm) -> Result<bool> {
    let host = || SystemTime::now().duration_since(UNIX_EPOCH).map(|time| time.as_millis());
    let before = host()?;
    let guest: u128 = vm.agent.ask("clock")?.text.parse()?;
    let after = host()?;
    Ok(guest + 1000 >= before && guest <= after + 1000)
}

fn stop(vm: &Vm, timeout: &str) -> Result<Output> {
    let socket = vm.socket();
    hvb(&["stop", socket.to_str().context("a path")?, "--timeout", timeout])
}

fn info(vm: &Vm) -> Result<String> {
    let socket = vm.socket();
    let output = hvb(&["info", socket.to_str().context("a path")?])?;
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().collect::<Vec<_>>().join(" "))
}
