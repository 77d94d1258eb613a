//! The demo, run by `cargo xtask demo`: resizes a running Linux guest and prints the effect as both
//! sides saw it.
//!
//! Ends with status 0 only if the guest's MemTotal and the host's resident memory agree.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{MIB, PATIENCE, Vm, VmConfig, has_size};

/// The share of the resized memory whose change each side must see, in percent. The kernel and
/// `hvb` meanwhile use the rest for themselves.
const AGREEMENT: u64 = 90;

/// How often the demo checks whether the guest has followed.
const LOOK: Duration = Duration::from_millis(2);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match sizes(&arguments).and_then(|(cpus, sizes)| demo(cpus, sizes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The guest's sizes in the demo, in bytes.
#[derive(Clone, Copy)]
struct Sizes {
    boot: u64,
    small: u64,
    large: u64,
}

/// Parses the arguments: processors, and the sizes at boot, shrunk and grown in MiB.
fn sizes(arguments: &[String]) -> Result<(u32, Sizes)> {
    let [cpus, boot, small, large] = arguments else {
        bail!("give processors, and sizes at boot, shrunk and grown; or run cargo xtask demo")
    };
    let mib = |text: &str| anyhow::Ok(text.parse::<u64>()? * MIB);
    let sizes = Sizes { boot: mib(boot)?, small: mib(small)?, large: mib(large)? };
    ensure!(
        sizes.small > 0 && sizes.small < sizes.boot,
        "{small} MiB must be less than {boot} MiB"
    );
    ensure!(sizes.boot < sizes.large, "{large} MiB must be more than {boot} MiB");
    Ok((cpus.parse()?, sizes))
}

/// The machine's memory at one moment.
#[derive(Clone, Copy)]
struct View {
    total: u64,
    free: u64,
    resident: u64,
}

fn demo(cpus: u32, sizes: Sizes) -> Result<()> {
    let Sizes { boot, small, large } = sizes;
    println!(
        "An unmodified Debian Linux is resized while it runs, by its own hv_balloon driver.\n"
    );
    let start = Instant::now();
    let mut vm = Vm::start(&VmConfig {
        cpus,
        memory: boot,
        max_memory: Some(large),
        // What is shown is the balloon's part alone.
        free_page_reporting: Some("off"),
        ..VmConfig::default()
    })?;
    vm.wait_for_driver()?;
    let booted = start.elapsed();
    let kernel = vm.agent.ask("cat /proc/sys/kernel/osrelease")?.lines.join(" ");
    println!("  guest      Linux {kernel}, {cpus} vCPU{}", if cpus == 1 { "" } else { "s" });
    println!("  protocols  VMBus {}", said(&mut vm, "Vmbus version", ':')?);
    let dynamic_memory = said(&mut vm, "Dynamic Memory protocol version", ' ')?;
    println!("             Dynamic Memory {dynamic_memory}");
    println!(
        "\n  {:<14}{:>9}{:>14}{:>12}{:>15}{:>11}",
        "", "size", "MemTotal", "MemFree", "host resident", "seconds"
    );

    let whole = row(&mut vm, "booted", booted)?;
    let begin = Instant::now();
    vm.agent.dirty_free_memory()?;
    let used = row(&mut vm, "all written", begin.elapsed())?;
    let shrinking = resize(&mut vm, small)?;
    let first_resize = start.elapsed();
    let shrunk = row(&mut vm, "shrunk", shrinking)?;
    let returning = resize(&mut vm, boot)?;
    let returned = row(&mut vm, "given back", returning)?;
    let growing = resize(&mut vm, large)?;
    let grown = row(&mut vm, "grown", growing)?;

    let moved = boot - small;
    println!(
        "\n  from start to the end of the first resize: {:.1} s\n",
        first_resize.as_secs_f64()
    );
    agree("the guest lost", moved, used.total.saturating_sub(shrunk.total))?;
    agree("the host gained", moved, used.resident.saturating_sub(shrunk.resident))?;
    agree("the guest got back", moved, returned.total.saturating_sub(shrunk.total))?;
    let total = returned.total;
    ensure!(total == whole.total, "MemTotal is {total} and was {}", whole.total);
    agree("the guest grew by", large - boot, grown.total.saturating_sub(total))?;
    vm.power_off()?;
    println!("  the guest switched itself off; both sides agree");
    Ok(())
}

/// The text after the last `separator` in the line of the guest's kernel log that contains `words`.
fn said(vm: &mut Vm, words: &str, separator: char) -> Result<String> {
    let lines = vm.agent.ask(&format!("dmesg {words}"))?.lines;
    let line =
        lines.first().with_context(|| format!("the guest's kernel did not say '{words}'"))?;
    Ok(line.rsplit(separator).next().unwrap_or(line).trim().to_owned())
}

/// Sets a size and waits until the machine has it; returns the time it took.
fn resize(vm: &mut Vm, size: u64) -> Result<Duration> {
    let begin = Instant::now();
    vm.set_target(size)?;
    loop {
        let status = vm.dynamic_memory()?;
        if has_size(&status, size) {
            return Ok(begin.elapsed());
        }
        if let Some(reason) = status.stopped {
            bail!("stopped at {} MiB: {reason}", status.actual / MIB);
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "a guest of {} MiB: not within {PATIENCE:?}, still at {} MiB",
            size / MIB,
            status.actual / MIB
        );
        std::thread::sleep(LOOK);
    }
}

fn row(vm: &mut Vm, what: &str, took: Duration) -> Result<View> {
    let meminfo = vm.agent.meminfo().context("asking the guest")?;
    let view = View { total: meminfo.total, free: meminfo.free, resident: vm.resident()? };
    println!(
        "  {what:<14}{:>5} MiB{:>10} MiB{:>8} MiB{:>11} MiB{:>11.3}",
        vm.actual()? / MIB,
        view.total / MIB,
        view.free / MIB,
        view.resident / MIB,
        took.as_secs_f64()
    );
    Ok(view)
}

/// Prints how much of a resize one side saw, and checks that it is enough.
fn agree(who: &str, moved: u64, seen: u64) -> Result<()> {
    println!("  {who:<20}{:>6} MiB of {} MiB", seen / MIB, moved / MIB);
    ensure!(seen >= moved / 100 * AGREEMENT, "{who} less than {AGREEMENT} % of what was moved");
    Ok(())
}
