//! The flight recorder of a guest that runs, by each of the ways to it, under the filters.

use std::fs;

use anyhow::{Context, Result, ensure};
use e2e::{Vm, hvb, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Checks that a dump tells of a guest whose balloon driver has spoken to the host.
fn check(dump: &Value, vcpus: usize) -> Result<()> {
    let list = dump["vcpus"].as_array().with_context(|| format!("no vCPUs: {dump}"))?;
    ensure!(list.len() == vcpus, "{dump}");
    for vcpu in list {
        let state = &vcpu["state"];
        ensure!(state["rip"].as_str().is_some_and(|rip| rip.len() > 10), "no place: {vcpu}");
        ensure!(state["lapic"]["spurious"].is_string(), "no APIC: {vcpu}");
        let msrs = state["msrs"].as_array().context("no MSRs")?;
        let has = |name: &str| msrs.iter().any(|msr| msr[0] == name);
        ensure!(has("scontrol") && has("sint2") && has("simp"), "no SynIC: {vcpu}");
        ensure!(vcpu["events"].as_array().is_some_and(|events| !events.is_empty()), "{vcpu}");
    }
    let text = dump.to_string();
    for event in ["message delivered, SINT raised", "hypercall 0x5c", "signal for device 0"] {
        ensure!(text.contains(event), "no {event}: {dump}");
    }
    Ok(())
}

#[test]
fn the_monitor_a_file_and_the_log_have_what_vcpus_and_bus_did() -> Result<()> {
    let mut vm = Vm::boot(2)?;
    let size = vm.wait_for_driver()?;
    vm.resize(size - (64 << 20))?;
    check(&vm.monitor.execute("x-dump-flight-recorder", json!(null))?, 2)?;

    let file = tempfile::NamedTempFile::new()?;
    let (socket, path) = (vm.socket(), file.path().to_owned());
    let arguments = ["info", &socket.to_string_lossy(), "--dump", &path.to_string_lossy()];
    let output = hvb(&arguments)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump: Value = serde_json::from_str(&fs::read_to_string(&path)?)?;
    check(&dump, 2)?;
    ensure!(dump["dynamic-memory"]["actual"] == json!(size - (64 << 20)), "{dump}");
    let threads = dump["threads"].as_array().context("no threads")?;
    ensure!(threads.iter().any(|line| line.as_str().is_some_and(|it| it.starts_with("vcpu1: "))));

    vm.signal(Signal::USR1)?;
    let line = wait_for("the flight recorder in the log", || {
        let log = vm.log()?;
        let line = log.lines().find(|line| line.contains("flight recorder"));
        Ok(line.filter(|line| line.ends_with('}')).map(str::to_owned))
    })?;
    let (_, dump) = line.split_once("flight recorder: ").context("no dump")?;
    check(&serde_json::from_str(dump)?, 2)?;
    vm.power_off_after_complaints("flight recorder")
}
