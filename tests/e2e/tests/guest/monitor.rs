//! Clients of the monitor do not disturb each other.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use e2e::{MIB, PATIENCE, Vm};
use qmp::ReceivedEvent;
use serde_json::{Value, json};

use crate::on_one_and_two_cpus;

on_one_and_two_cpus! { clients_do_not_disturb_each_other }

fn clients_do_not_disturb_each_other(cpus: u32) -> Result<()> {
    let mut vm = Vm::boot(cpus)?;
    vm.agent.fill(1, 128 * MIB)?;
    let mut watcher = vm.connect()?;
    for round in 0..3 {
        let mut garbage = raw_client(&vm)?;
        garbage.write_all(b"\x00\xff{]\"\n{\"execute\": 5}\n{{{{[[[[\n\"\n")?;
        let mut hanging_up = raw_client(&vm)?;
        hanging_up.write_all(b"{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"ballo")?;

        vm.set_target((512 + round) * MIB)?;
        hanging_up.shutdown(Shutdown::Both)?;
        drop(hanging_up);
        garbage.write_all(&[b'['; 1 << 16]).context("a monitor that takes garbage")?;
        vm.resize((512 + round) * MIB)?;

        // It is never answered and never read; it just must not delay anyone.
        drop(garbage);
        vm.resize(1024 * MIB)?;
        let status = watcher.execute("query-status", Value::Null)?;
        ensure!(status["status"] == json!("running"), "{status}");
    }
    let event = watcher.next_event(PATIENCE)?;
    let is_told = event.as_ref().is_some_and(|event| event.name == "BALLOON_CHANGE");
    ensure!(is_told, "no BALLOON_CHANGE within {PATIENCE:?}, but {event:?}");
    vm.agent.check(1)?;
    vm.power_off()
}

/// A connection that has read the greeting and then breaks every rule.
fn raw_client(vm: &Vm) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(vm.socket())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).context("the monitor's greeting")?;
    }
    Ok(stream)
}

#[test]
fn targets_that_make_no_sense_are_refused_with_a_reason() -> Result<()> {
    let mut vm = Vm::boot(1)?;
    for value in [json!(0), json!(-1), json!(2048 * MIB), json!("1G"), Value::Null] {
        let answer = vm.monitor.execute("balloon", json!({ "value": value }));
        let error = answer.expect_err("no such target").to_string();
        ensure!(error.len() > "balloon: ".len() && !error.contains('\n'), "{value}: {error}");
    }
    ensure!(vm.actual()? == 1024 * MIB, "the guest has {}", vm.actual()?);
    vm.power_off()
}

/// A client that waits for this event must not wait for ever.
#[test]
fn a_size_that_the_guest_has_already_is_told_again() -> Result<()> {
    let mut vm = Vm::boot(1)?;
    vm.resize(768 * MIB)?;
    let mut late = vm.connect()?;
    for _ in 0..2 {
        let arguments = json!({ "value": 768 * MIB });
        late.execute("balloon", arguments)?;
        let event = late.next_event(PATIENCE)?;
        let expected = json!({ "actual": 768 * MIB });
        let is_told =
            |event: &ReceivedEvent| event.name == "BALLOON_CHANGE" && event.data == expected;
        ensure!(
            event.as_ref().is_some_and(is_told),
            "no BALLOON_CHANGE with {expected} within {PATIENCE:?}, but {event:?}"
        );
    }
    vm.power_off()
}

#[test]
fn human_monitor_resizes_and_quits() -> Result<()> {
    let mut vm = Vm::boot(1)?;
    let mut human =
        |line: &str| vm.monitor.execute("human-monitor-command", json!({ "command-line": line }));
    ensure!(human("info status")? == json!("VM status: running\r\n"));
    ensure!(human("balloon 768")? == json!(""));
    let reached = json!("balloon: actual=768\r\n");
    e2e::wait_for("768 MiB", || Ok((human("info balloon")? == reached).then_some(())))?;
    human("quit")?;
    vm.end()
}
