//! Confinement of `hvb run`: its threads' privileges, and what others can see of its guest.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Result, ensure};
use e2e::process::{dumpable, threads};
use e2e::tap::Interface;
use e2e::{MIB, Vm, VmConfig};
use serde_json::json;

const BOOT: u64 = 512 * MIB;
const MOST: u64 = 1024 * MIB;

/// The threads of a guest with two vCPUs, a disk, a network card and one monitor client, including main.
const THREADS: [&str; 16] = [
    "console-in",
    "console-out",
    "disk",
    "entropy",
    "hvb",
    "log",
    "memory",
    "net-receive",
    "net-send",
    "qmp-accept",
    "qmp-read",
    "qmp-write",
    "signals",
    "vcpu0",
    "vcpu1",
    "vmbus",
];

/// What a guest's devices are connected to.
struct Links {
    disk: tempfile::NamedTempFile,
    tap: Interface,
}

impl Links {
    fn new() -> Result<Self> {
        let disk = tempfile::NamedTempFile::new()?;
        disk.as_file().set_len(MIB)?;
        Ok(Self { disk, tap: Interface::new("hvbtest1")? })
    }
}

fn grown(seccomp: Option<&'static str>, links: &Links) -> Result<Vm> {
    let config = VmConfig {
        cpus: 2,
        memory: BOOT,
        max_memory: Some(MOST),
        seccomp,
        disks: vec![format!("{},format=raw", links.disk.path().display())],
        networks: vec![format!("tap={}", links.tap.name())],
        ..VmConfig::default()
    };
    let mut vm = Vm::start(&config)?;
    vm.wait_for_driver()?;
    vm.resize(MOST)?;
    Ok(vm)
}

fn check_threads(vm: &Vm, filtered: bool) -> Result<()> {
    let threads = threads(vm.process())?;
    for name in THREADS {
        ensure!(threads.iter().any(|thread| thread.name == name), "no {name}: {threads:?}");
    }
    // Newer kernels show a KVM worker as a thread of the process.
    for thread in threads.iter().filter(|thread| !thread.name.starts_with("kvm-")) {
        ensure!(THREADS.contains(&thread.name.as_str()), "{thread:?} is not accounted for");
        ensure!(thread.filtered == filtered, "{thread:?}");
        ensure!(thread.no_new_privileges, "{thread:?}");
    }
    Ok(())
}

#[test]
fn every_thread_is_confined_before_and_after_a_reset() -> Result<()> {
    let links = Links::new()?;
    let mut vm = grown(None, &links)?;
    check_threads(&vm, true)?;
    let late = vm.connect()?;
    check_threads(&vm, true)?;
    drop(late);
    vm.monitor.execute("system_reset", json!(null))?;
    vm.wait_event("RESET")?;
    vm.agent.wait_up()?;
    vm.wait_for_driver()?;
    vm.resize(BOOT - 128 * MIB)?;
    check_threads(&vm, true)?;
    vm.power_off()
}

#[test]
fn the_filters_can_be_left_out_or_only_log() -> Result<()> {
    let links = Links::new()?;
    let vm = grown(Some("off"), &links)?;
    check_threads(&vm, false)?;
    vm.power_off()?;
    let vm = grown(Some("log"), &links)?;
    check_threads(&vm, true)?;
    vm.power_off()
}

#[test]
fn no_core_dump_holds_guest_memory_and_the_monitor_is_private() -> Result<()> {
    let links = Links::new()?;
    let vm = grown(None, &links)?;
    let memory = dumpable(vm.process())?;
    ensure!(memory.left_out >= MOST, "{memory:?}");
    // Stacks and the heap.
    ensure!(memory.largest_held < 16 * MIB, "{memory:?}");
    let mode = fs::metadata(vm.socket())?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the socket's mode is {mode:o}");
    vm.power_off()
}
