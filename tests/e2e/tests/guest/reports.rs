//! The guest's memory pressure reports reach the monitor.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{MIB, Vm, VmConfig, wait_for};
use qmp::{ClientError, Value};

const BOOT: u64 = 512 * MIB;
const SMALL: u64 = 384 * MIB;
const QUERY: &str = "query-hv-balloon-status-report";
const EVENT: &str = "HV_BALLOON_STATUS_REPORT";

/// How far a report may be from the guest's own figures a moment before, in percent.
const AGREEMENT: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Report {
    committed: u64,
    available: u64,
}

#[test]
fn reports_agree_with_the_guest_and_end_with_its_driver() -> Result<()> {
    let config = VmConfig { memory: BOOT, status_report: true, ..Default::default() };
    let mut vm = Vm::start(&config)?;
    vm.wait_for_driver()?;
    refused(&mut vm, "no guest memory status report received yet")?;
    vm.resize(SMALL)?;
    // Linux suppresses its first 45 reports; the parameter is the number still to suppress.
    vm.agent.ask("write /sys/module/hv_balloon/parameters/pressure_report_delay 0")?;

    for _ in 0..3 {
        next_report(&mut vm)?;
    }
    let meminfo = vm.agent.meminfo()?;
    let report = report_of_now(&mut vm)?;
    ensure!(within(report.available, meminfo.available), "{report:?}, {meminfo:?}");
    // What Linux counts: memory promised to processes, ballooned memory, and what it keeps for
    // itself (`post_status` in its `hv_balloon.c`).
    let expected = meminfo.committed + (BOOT - SMALL) + floor(meminfo.total);
    ensure!(within(report.committed, expected), "{report:?}, not {expected}, {meminfo:?}");
    // The next event may come between the two.
    let answer = vm.monitor.execute(QUERY, Value::Null)?;
    let asked = parse(&answer)?;
    ensure!(within(asked.committed, report.committed), "{asked:?}, {report:?}");
    ensure!(within(asked.available, report.available), "{asked:?}, {report:?}");

    vm.unbind_driver()?;
    refused(&mut vm, "no guest memory status report received yet")?;
    vm.power_off()
}

#[test]
fn reports_that_nobody_asked_for_are_not_served() -> Result<()> {
    let mut vm = Vm::start(&VmConfig { memory: BOOT, ..Default::default() })?;
    vm.wait_for_driver()?;
    let counter = signal_counter(&mut vm)?;
    let before = signals(&mut vm, &counter)?;
    vm.agent.ask("write /sys/module/hv_balloon/parameters/pressure_report_delay 0")?;
    refused(&mut vm, "guest memory status reporting not enabled")?;
    // Linux sends reports all the same, about once a second. When the third has been signalled, the
    // monitor would long have had the first.
    wait_for("three signals of the guest's driver", || {
        Ok((signals(&mut vm, &counter)? >= before + 3).then_some(()))
    })?;
    while let Some(event) = vm.monitor.next_event(Duration::from_secs(1))? {
        ensure!(event.name != EVENT, "{event:?}");
    }
    refused(&mut vm, "guest memory status reporting not enabled")?;
    vm.power_off()
}

fn refused(vm: &mut Vm, words: &str) -> Result<()> {
    let answer = vm.monitor.execute(QUERY, Value::Null);
    let Err(ClientError::Command { class, desc, .. }) = answer else {
        anyhow::bail!("{QUERY}: {answer:?}");
    };
    ensure!(class == "GenericError" && desc == words, "{class}: {desc}");
    Ok(())
}

/// A report made after this call: queued ones are older.
fn report_of_now(vm: &mut Vm) -> Result<Report> {
    while vm.monitor.next_event(Duration::from_millis(1))?.is_some() {}
    next_report(vm)?;
    next_report(vm)
}

fn next_report(vm: &mut Vm) -> Result<Report> {
    parse(&vm.wait_event(EVENT)?)
}

/// The file in which the guest counts how often its driver has signalled the host (Linux
/// `vmbus_set_event` in its `connection.c`). Without a target, only reports make it do so.
fn signal_counter(vm: &mut Vm) -> Result<String> {
    let channels = format!("/sys/bus/vmbus/devices/{}/channels", vm.balloon_device()?);
    let lines = vm.agent.ask(&format!("ls {channels}"))?.lines;
    let [channel] = lines.as_slice() else { anyhow::bail!("in {channels}: {lines:?}") };
    Ok(format!("{channels}/{channel}/events"))
}

fn signals(vm: &mut Vm, counter: &str) -> Result<u64> {
    let count = vm.agent.ask(&format!("cat {counter}"))?.lines.concat();
    count.trim().parse().with_context(|| format!("{counter} has {count:?}"))
}

fn parse(data: &Value) -> Result<Report> {
    let field = |name| data[name].as_u64().with_context(|| format!("no {name} in {data}"));
    Ok(Report { committed: field("committed")?, available: field("available")? })
}

fn within(value: u64, expected: u64) -> bool {
    value.abs_diff(expected) <= expected * AGREEMENT / 100
}

/// The memory of `total` that Linux keeps when it balloons, in bytes. It counts in MiB.
fn floor(total: u64) -> u64 {
    let mib = total / MIB;
    let floor = match mib {
        0..128 => 8 + mib / 2,
        128..512 => 40 + mib / 4,
        512..2048 => 104 + mib / 8,
        2048..8192 => 232 + mib / 16,
        _ => 488 + mib / 32,
    };
    floor * MIB
}
