//! A host that runs out of a resource says so, and the guest keeps running.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::{MIB, NO_CLEARING, Setup, Vm, VmConfig, wait_for};
use qmp::{Client, ClientError};
use rustix::process::Resource;

/// Connects to the monitor until it refuses a client; returns the accepted clients and the message.
fn connect_until_refused(vm: &Vm) -> Result<(Vec<Client>, String)> {
    let mut clients = Vec::new();
    for _ in 0..16 {
        match vm.connect() {
            Ok(client) => clients.push(client),
            Err(error) => match error.downcast()? {
                ClientError::TurnedAway { desc, .. } => return Ok((clients, desc)),
                other => return Err(other.into()),
            },
        }
    }
    anyhow::bail!("the monitor took {} clients", clients.len())
}

/// No client and no driver gets a descriptor if there is none left; with one they do. If the log
/// cannot grow either, only the log is lost.
#[test]
fn without_descriptors_and_disk_the_guest_runs_on() -> Result<()> {
    let mut vm = Vm::boot(1)?;
    vm.agent.fill(1, 64 * MIB)?;
    let device = vm.unbind_driver()?;
    let few = vm.highest_descriptor()? + 1;
    let enough = vm.set_limit(Resource::Nofile, Some(few))?;
    let (clients, why) = connect_until_refused(&vm)?;
    ensure!(why.contains("no file descriptor left"), "{why}");
    let refused = vm.bind_driver(&device);
    ensure!(refused.is_err(), "the driver's channel was opened without a descriptor");
    let said = wait_for("a log line about the channel", || {
        let said = vm.complaints()?;
        Ok(said.contains("cannot open the channel of").then_some(said))
    })?;
    ensure!(said.contains("ulimit -n"), "{said}");
    vm.agent.check(1)?;
    ensure!(vm.dynamic_memory()?.state == "closed", "{:?}", vm.dynamic_memory());

    // By default, a write beyond this limit ends the process.
    let room = vm.set_limit(Resource::Fsize, Some(0))?;
    let refused = vm.bind_driver(&device);
    ensure!(refused.is_err(), "the driver's channel was opened without a descriptor");
    vm.agent.check(1)?;
    ensure!(vm.complaints()? == said, "the log grew beyond the limit");
    vm.set_limit(Resource::Fsize, room)?;

    drop(clients);
    vm.set_limit(Resource::Nofile, enough)?;
    vm.bind_driver(&device)?;
    vm.wait_for_driver()?;
    vm.connect()?;
    vm.resize(768 * MIB)?;
    vm.agent.check(1)?;
    vm.power_off_after_complaints("open files")
}

/// Memory can be added with no address space left, since it was reserved at the start. A command
/// that is killed while it waits leaves its target in force.
#[test]
fn without_address_space_memory_is_added_all_the_same() -> Result<()> {
    let config = VmConfig {
        memory: 512 * MIB,
        max_memory: Some(1024 * MIB),
        append: NO_CLEARING,
        ..Default::default()
    };
    let mut vm = Vm::start(&config)?;
    vm.wait_for_driver()?;
    vm.agent.fill(1, 64 * MIB)?;
    // Less than the stacks of a client's threads take.
    let little = vm.address_space()? + 3 * MIB;
    let enough = vm.set_limit(Resource::As, Some(little))?;
    let (clients, why) = connect_until_refused(&vm)?;
    ensure!(why.contains("cannot start threads"), "{why}");
    vm.resize(1024 * MIB)?;
    vm.agent.check(1)?;
    vm.set_limit(Resource::As, enough)?;
    drop(clients);

    let socket = vm.socket();
    let mut waiting = Command::new(Setup::from_env()?.hvb)
        .args(["balloon".as_ref(), socket.as_os_str(), "640M".as_ref(), "--wait".as_ref()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut route = String::new();
    BufReader::new(waiting.stdout.take().context("no pipe")?).read_line(&mut route)?;
    waiting.kill()?;
    waiting.wait()?;
    vm.connect()?;
    vm.wait_for_size(640 * MIB)?;
    vm.agent.check(1)?;
    vm.power_off_after_complaints("threads of a monitor client")
}
