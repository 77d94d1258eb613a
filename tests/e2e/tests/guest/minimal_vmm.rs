//! The example VMM for authors of VMMs resizes the same guest.

use std::fs::{self, File};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::{Agent, MIB, NO_CLEARING, Setup, resident, wait_for};
use tempfile::TempDir;

use crate::on_one_and_two_cpus;

on_one_and_two_cpus! { shrinks_grows_back_and_grows_past_its_boot_size }

const BOOT: u64 = 320 * MIB;
const SMALL: u64 = 256 * MIB;
const LARGE: u64 = 576 * MIB;
/// Linux keeps some memory free beside the data that it has by then.
const LESS: u64 = 448 * MIB;

/// The example's memory beyond its boot memory begins here.
const ADDED: u64 = 4096 * MIB;

/// A few pages that the kernel keeps as it brings memory online.
const TOLERANCE: u64 = 4 * MIB;

/// What the host's own memory may differ by.
const NOISE: u64 = 16 * MIB;

fn shrinks_grows_back_and_grows_past_its_boot_size(cpus: u32) -> Result<()> {
    let mut vm = Example::boot(cpus)?;
    let cpu_lines = vm.agent.ask("ls /sys/bus/cpu/devices")?.lines;
    ensure!(cpu_lines.len() == cpus as usize, "the guest has {cpu_lines:?}");
    vm.agent.fill(1, 32 * MIB)?;
    vm.agent.dirty_free_memory()?;
    let (total, used) = (vm.agent.meminfo()?.total, vm.resident()?);

    vm.resize(SMALL)?;
    vm.memory_total_is(total - (BOOT - SMALL))?;
    // The guest may have reported memory as free by itself.
    let reported = BOOT.saturating_sub(used);
    let fallen = used.saturating_sub(vm.resident()?);
    ensure!(fallen + reported + NOISE >= BOOT - SMALL, "the host only got {fallen} bytes back");
    vm.agent.check(1)?;

    vm.resize(BOOT)?;
    vm.memory_total_is(total)?;
    vm.agent.check(1)?;

    vm.resize(LARGE)?;
    vm.memory_total_is(total + (LARGE - BOOT))?;
    vm.agent.fill(2, 128 * MIB)?;
    let added = vm.agent.bytes_above(2, ADDED)?;
    ensure!(added > 64 * MIB, "only {added} bytes of the data are in added memory");
    let status = vm.status()?;
    ensure!(status.ends_with(&format!("hot-added {}", LARGE - BOOT)), "{status}");

    // Added memory is ballooned like any other.
    vm.resize(LESS)?;
    vm.memory_total_is(total + (LESS - BOOT))?;
    vm.agent.check(1)?;
    vm.agent.check(2)?;
    vm.refuses(LARGE + MIB)?;
    vm.power_off()
}

/// A running `minimal_vmm`.
struct Example {
    child: Child,
    agent: Agent,
    /// Its standard error goes to a file here.
    dir: TempDir,
    ended: bool,
}

impl Example {
    /// Boots the guest and waits for its driver.
    fn boot(cpus: u32) -> Result<Self> {
        let setup = Setup::from_env()?;
        let program = Setup::minimal_vmm()?;
        let dir = tempfile::Builder::new().prefix("minimal-vmm-").tempdir()?;
        let append =
            format!("console=ttyS0 panic=-1 quiet memhp_default_state=online {NO_CLEARING}");
        let mut child = Command::new(&program)
            .arg("--kernel")
            .arg(&setup.kernel)
            .arg("--initrd")
            .arg(&setup.initrd)
            .args(["--append", &append, "--cpus", &cpus.to_string()])
            .args(["--memory", &mib(BOOT), "--max-memory", &mib(LARGE)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(dir.path().join("stderr"))?)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let input = child.stdin.take().context("no pipe")?;
        let output = child.stdout.take().context("no pipe")?;
        let mut vm = Self { child, agent: Agent::new(input, output), dir, ended: false };
        vm.agent.wait_up()?;
        vm.wait_for_line("ready for Dynamic Memory", 0)?;
        let status = vm.status()?;
        ensure!(status == format!("status idle actual {BOOT} hot-added 0"), "{status}");
        Ok(vm)
    }

    /// Asks for a size and waits until the example says that the guest has it.
    fn resize(&mut self, bytes: u64) -> Result<()> {
        let before = self.news()?.len();
        self.agent.tell(&format!("!target {}", mib(bytes)))?;
        self.wait_for_line(&format!("target {bytes}"), before)?;
        self.wait_for_line(&format!("reached {bytes}"), before)?;
        let news = self.news()?;
        let last = news.lines().rev().find_map(|line| line.strip_prefix("actual "));
        ensure!(last == Some(bytes.to_string().as_str()), "{last:?} is not {bytes}");
        Ok(())
    }

    fn refuses(&mut self, bytes: u64) -> Result<()> {
        let before = self.news()?.len();
        self.agent.tell(&format!("!target {}", mib(bytes)))?;
        self.wait_for_line("error: ", before).map(drop)
    }

    fn status(&mut self) -> Result<String> {
        let before = self.news()?.len();
        self.agent.tell("!status")?;
        self.wait_for_line("status ", before)
    }

    /// What it wrote to its standard error.
    fn news(&self) -> Result<String> {
        Ok(fs::read_to_string(self.dir.path().join("stderr"))?)
    }

    /// Waits for a whole line that begins so, after the first `before` bytes.
    fn wait_for_line(&mut self, start: &str, before: usize) -> Result<String> {
        wait_for(&format!("a line `{start}` of the example"), || {
            let status = self.child.try_wait()?;
            ensure!(status.is_none(), "the example has ended: {status:?}");
            let news = self.news()?;
            let whole = news[before..].split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let mut lines = whole.map(str::trim_end);
            Ok(lines.find(|line| line.starts_with(start)).map(str::to_owned))
        })
    }

    fn resident(&self) -> Result<u64> {
        resident(self.child.id())
    }

    /// Waits for the guest's MemTotal: pages count as the guest's before it has taken them back.
    fn memory_total_is(&mut self, expected: u64) -> Result<()> {
        let mut total = 0;
        wait_for("the guest's MemTotal", || {
            total = self.agent.meminfo()?.total;
            Ok((total.abs_diff(expected) <= TOLERANCE).then_some(()))
        })
        .with_context(|| format!("MemTotal is {total} instead of {expected}"))
    }

    /// Has the guest switch itself off. The example then ends without an error.
    fn power_off(mut self) -> Result<()> {
        self.agent.ask("poweroff")?;
        let child = &mut self.child;
        let status = wait_for("the end of the example", || Ok(child.try_wait()?))?;
        ensure!(status.success(), "{status}");
        ensure!(self.news()?.trim_end().ends_with("ended: PowerOff"), "it ended otherwise");
        self.ended = true;
        Ok(())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill().and_then(|()| self.child.wait());
            eprintln!("the guest's last words:\n{}", self.agent.last_words());
            eprintln!("the example's:\n{}", self.news().unwrap_or_default());
        }
    }
}

fn mib(bytes: u64) -> String {
    format!("{}M", bytes / MIB)
}
