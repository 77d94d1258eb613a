//! Memory that the guest frees is the host's again without a target, and what the guest keeps stays
//! as it was.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{MIB, NO_CLEARING, Vm, VmConfig, is_long_run, wait_for};
use qmp::Reported;
use serde_json::json;

use crate::on_one_and_two_cpus;

on_one_and_two_cpus! {
    freed_memory_comes_back_in_small_pages_and_beside_a_balloon,
    freed_memory_comes_back_in_huge_pages_and_after_a_reset,
}

const BOOT: u64 = 1024 * MIB;
const FREED: u64 = 512 * MIB;
/// The same in a long run, in which the guest is larger by as much.
const FREED_LONG: u64 = 2048 * MIB;
/// In small pages, of which a guest in the rig gets few in a second while the host is busy.
const FREED_SMALL: u64 = 128 * MIB;
const KEPT: u64 = 64 * MIB;
const SMALL: u64 = 768 * MIB;

/// How much of what is freed must come back, in percent.
const MOST: u64 = 90;
/// The same of a guest whose memory was in a balloon: Linux reports free blocks of 2 MiB or more, and
/// some of what it frees is then in smaller ones.
const OF_FRAGMENTS: u64 = 75;

/// From the end of the process that had the memory. Linux waits two seconds, reports a sixteenth of
/// its free blocks or 128 MiB, waits two seconds again, and so on: all within about half a minute
/// (`mm/page_reporting.c`).
const SOON: Duration = Duration::from_secs(10);
const SOON_LONG: Duration = Duration::from_secs(40);

fn freed_memory_comes_back_in_small_pages_and_beside_a_balloon(cpus: u32) -> Result<()> {
    let mut vm = boot(cpus, BOOT, "off")?;
    frees_and_uses_again(&mut vm, FREED_SMALL)?;

    // Beside memory that is out, and after it has come back.
    vm.resize(SMALL)?;
    free(&mut vm, 3, FREED_SMALL, OF_FRAGMENTS)?;
    vm.resize(BOOT)?;
    free(&mut vm, 3, FREED_SMALL, OF_FRAGMENTS)?;
    vm.agent.check(1)?;
    vm.power_off()
}

fn freed_memory_comes_back_in_huge_pages_and_after_a_reset(cpus: u32) -> Result<()> {
    let freed = if is_long_run() { FREED_LONG } else { FREED };
    let mut vm = boot(cpus, BOOT - FREED + freed, "thp")?;
    frees_and_uses_again(&mut vm, freed)?;

    // In the middle of the reports.
    let before = reported(&mut vm)?;
    vm.agent.fill(3, freed / 2)?;
    vm.agent.ask("free 3")?;
    wait_for("a report", || Ok((reported(&mut vm)? != before).then_some(())))?;
    vm.monitor.execute("system_reset", json!(null))?;
    vm.wait_event("RESET")?;
    vm.agent.wait_up()?;
    vm.wait_for_driver()?;
    frees_and_uses_again(&mut vm, freed)?;
    vm.power_off()
}

fn boot(cpus: u32, memory: u64, hugepages: &'static str) -> Result<Vm> {
    let mut vm = Vm::start(&VmConfig {
        cpus,
        memory,
        hugepages: Some(hugepages),
        free_page_reporting: Some("on"),
        append: NO_CLEARING,
        ..VmConfig::default()
    })?;
    vm.wait_for_driver()?;
    Ok(vm)
}

/// Frees memory and fills it again, while other data stays.
fn frees_and_uses_again(vm: &mut Vm, freed: u64) -> Result<()> {
    vm.agent.fill(1, KEPT)?;
    free(vm, 2, freed, MOST)?;
    vm.agent.check(1)?;
    vm.agent.fill(2, KEPT)?;
    vm.agent.check(2)?;
    vm.agent.ask("free 2")?;
    vm.agent.check(1)
}

/// Makes the guest use memory and free it. The host has it back soon, and counts it as the guest's.
fn free(vm: &mut Vm, seed: u64, bytes: u64, percent: u64) -> Result<()> {
    vm.agent.fill(seed, bytes)?;
    let (actual, used, before) = (vm.actual()?, vm.resident()?, reported(vm)?);
    ensure!(used > bytes, "the guest did not use its memory: {used} resident");
    vm.agent.ask(&format!("free {seed}"))?;
    let expected = bytes / 100 * percent;
    let soon = if bytes > FREED { SOON_LONG } else { SOON };
    let begin = Instant::now();
    while vm.resident()? > used - expected {
        if begin.elapsed() > soon {
            let free = vm.agent.ask("cat /proc/buddyinfo")?;
            bail!(
                "resident memory was {used} and is {}: {:?}; free blocks of the guest: {free:?}",
                vm.resident()?,
                reported(vm)?
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("{} MiB were back after {:.1?}", bytes / MIB, begin.elapsed());
    // A call is counted when it ends, and its pages are gone before that.
    wait_for("the count of what is back", || {
        let after = reported(vm)?;
        let enough = after.bytes - before.bytes >= expected && after.calls > before.calls;
        Ok(enough.then_some(()))
    })?;
    ensure!(vm.actual()? == actual, "the guest has {} and had {actual}", vm.actual()?);
    Ok(())
}

fn reported(vm: &mut Vm) -> Result<Reported> {
    vm.dynamic_memory()?.reported.context("the guest cannot report")
}
