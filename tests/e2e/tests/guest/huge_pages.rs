//! Guests on huge pages of the host's pool. The tests set the size of the pool, so they need root
//! and a host without other users: the rig.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use e2e::process::dumpable;
use e2e::{MIB, Setup, Vm, VmConfig, hvb};
use qmp::DynamicMemoryInfo;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
const HUGE: u64 = 2 * MIB;
const BOOT: u64 = 512 * MIB;
const SMALL: u64 = 320 * MIB;
const MOST: u64 = 768 * MIB;

/// The host's pool of 2 MiB pages. Dropping this restores its previous size.
struct Pool(u64);

impl Pool {
    fn take() -> Result<Self> {
        Ok(Self(read("nr_hugepages")?))
    }

    /// Makes the pool hold `bytes`. Pages in use remain beyond that.
    fn set(&self, bytes: u64) -> Result<()> {
        fs::write(format!("{POOL}/nr_hugepages"), (bytes / HUGE).to_string())?;
        let got = read("nr_hugepages")? - read("surplus_hugepages")?;
        ensure!(got == bytes / HUGE, "the host has only {got} pages of 2 MiB");
        Ok(())
    }

    /// The pages that anyone could allocate: fewer than the host's free pages, which include those
    /// that are reserved but not yet in use.
    fn free(&self) -> Result<u64> {
        Ok((read("free_hugepages")? - read("resv_hugepages")?) * HUGE)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(format!("{POOL}/nr_hugepages"), self.0.to_string());
    }
}

fn read(name: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("{POOL}/{name}")).context(name.to_owned())?;
    Ok(text.trim().parse()?)
}

#[test]
fn ballooned_memory_goes_back_to_the_pool_and_an_empty_pool_is_survived() -> Result<()> {
    let pool = Pool::take()?;
    pool.set(BOOT)?;
    let mut vm = Vm::start(&VmConfig {
        cpus: 2,
        memory: BOOT,
        max_memory: Some(MOST),
        hugepages: Some("2M"),
        ..Default::default()
    })?;
    vm.wait_for_driver()?;
    vm.agent.fill(1, 64 * MIB)?;
    vm.agent.dirty_free_memory()?;
    let memory = dumpable(vm.process())?;
    ensure!(memory.left_out >= MOST && memory.largest_held < 16 * MIB, "{memory:?}");
    let total = vm.agent.meminfo()?.total;
    let free = pool.free()?;

    let status = shrink(&mut vm)?;
    let risen = pool.free()? - free;
    ensure!(risen == status.ballooned, "free pages rose by {risen}: {status:?}");
    vm.agent.check(1)?;

    vm.resize(BOOT)?;
    vm.agent.check(1)?;
    ensure!(vm.agent.meminfo()?.total == total, "{:?}", vm.agent.meminfo()?);
    vm.agent.dirty_free_memory()?;

    empty_pool(&mut vm, &pool)?;
    pool.set(MOST)?;
    vm.resize(MOST)?;
    vm.agent.check(1)?;
    vm.agent.dirty_free_memory()?;
    vm.agent.check(1)?;
    vm.power_off_after_complaints("nr_hugepages")
}

/// Shrinks the guest. If it gave small pages in the end, these are held and keep it from reaching
/// the target.
fn shrink(vm: &mut Vm) -> Result<DynamicMemoryInfo> {
    let status = vm.approach(SMALL)?;
    let missing = status.actual - SMALL;
    ensure!(missing <= status.held && missing < 16 * MIB, "{status:?}");
    ensure!(status.actual + status.ballooned == BOOT, "{status:?}");
    Ok(status)
}

/// Takes away the pool pages that the guest gave up, then asks for them: first as they were, then
/// as added memory.
fn empty_pool(vm: &mut Vm, pool: &Pool) -> Result<()> {
    shrink(vm)?;
    pool.set(BOOT - pool.free()?)?;
    ensure!(pool.free()? == 0, "{} free", pool.free()?);
    for target in [BOOT, MOST] {
        let status = vm.approach(target)?;
        let why = status.stopped.as_deref().unwrap_or_default();
        ensure!(why.contains("huge") || why.contains("host"), "{status:?}");
        ensure!(status.actual < BOOT, "{status:?}");
        vm.agent.check(1)?;
    }
    Ok(())
}

#[test]
fn a_pool_that_is_too_small_is_told_at_once() -> Result<()> {
    let pool = Pool::take()?;
    pool.set(16 * MIB)?;
    let output = run(&["--memory", "512M", "--hugepages", "2M"])?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(words.trim_end().lines().count() == 1, "not one line: {words}");
    ensure!(words.contains("nr_hugepages"), "does not say what to do: {words}");
    ensure!(pool.free()? == 16 * MIB, "{} left", pool.free()?);
    Ok(())
}

fn run(args: &[&str]) -> Result<Output> {
    let setup = Setup::from_env()?;
    let kernel = setup.kernel.display().to_string();
    let mut line = vec!["run", "--serial", "none", "--kernel", &kernel];
    line.extend(args);
    hvb(&line)
}
