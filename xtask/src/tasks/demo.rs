//! `cargo xtask demo`: one guest is shrunk and grown, as seen from both sides.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::rig::emulator;
use crate::tasks::test;
use crate::{disk_image, guest_image, rig, workspace};

/// `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Processors of the guest.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// Memory the guest boots with, in MiB or with a suffix M or G.
    #[arg(long, default_value = "1G", value_parser = rig::parse_mib)]
    memory: u64,
    /// Memory to shrink it to.
    #[arg(long, default_value = "512M", value_parser = rig::parse_mib)]
    to: u64,
    /// Memory to grow it to, past its boot size [default: twice the boot size].
    #[arg(long, value_parser = rig::parse_mib)]
    grow: Option<u64>,
    /// The guest's kernel.
    #[arg(long, value_enum, default_value = "stable")]
    kernel: guest_image::GuestKernel,
    /// Shows a Debian with PostgreSQL instead, under load while its memory follows, and draws it to
    /// workload/workload.svg in cargo's target directory.
    #[arg(long, conflicts_with_all = ["cpus", "memory", "to", "grow", "kernel"])]
    workload: bool,
    /// Shows four machines of hvb and QEMU instead, whose memory follows their need, and draws it to
    /// balance/balance.svg in cargo's target directory.
    #[arg(long, conflicts_with_all = ["workload", "cpus", "memory", "to", "grow"])]
    balance: bool,
}

/// Builds what is needed, runs the demo where KVM has Hyper-V, and returns its exit status.
pub(crate) fn main(args: &DemoArgs) -> Result<ExitCode> {
    if args.workload {
        return workload();
    }
    if args.balance {
        return balance(args.kernel);
    }
    ensure!(args.to < args.memory, "--to must be less than --memory");
    let grow = args.grow.unwrap_or_else(|| args.memory.saturating_mul(2));
    ensure!(args.memory < grow, "--grow must be more than --memory");
    eprintln!("demo: building hvb and the guest (a few minutes the first time)");
    let guest = guest_image::build(args.kernel)?;
    let hvb = test::build_program("hvb", "hvb")?;
    let demo = test::build_program("e2e", "resize_demo")?;
    let mut rig = std::process::Command::new(std::env::current_exe()?);
    rig.args(["rig", "--", &demo]).args([args.cpus.to_string()]);
    rig.args([args.memory, args.to, grow].map(|mib| mib.to_string()));
    rig.env("HVB_BIN", hvb).envs(guest.environment()?);
    let status = rig.status().context("cannot start the rig")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the image if needed, and runs the database in it. The host's kernel is the newer one, whose KVM
/// lets guests report what they free.
fn workload() -> Result<ExitCode> {
    eprintln!("demo: building hvb and a Debian with PostgreSQL (some ten minutes the first time)");
    let image = disk_image::usual()?;
    let hvb = test::build_program("hvb", "hvb")?;
    let program = test::build_program("e2e", "workload")?;
    let output = workspace::target().join("workload");
    let mut rig = std::process::Command::new(std::env::current_exe()?);
    rig.args(["rig", "--kernel", "backports", "--writable"]).arg(&output);
    rig.args(["--", &program, "--picture"]).arg(output.join("workload.svg"));
    rig.env("HVB_BIN", hvb).env("HVB_IMAGE_DISK", &image.image);
    rig.env("HVB_IMAGE_KERNEL", &image.kernel).env("HVB_IMAGE_INITRD", &image.initrd);
    let status = rig.status().context("cannot start the rig")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the four machines, and draws the record of the balancer.
fn balance(kernel: guest_image::GuestKernel) -> Result<ExitCode> {
    eprintln!("demo: building hvb and the guest (a few minutes the first time)");
    let guest = guest_image::build(kernel)?;
    let hvb = test::build_program("hvb", "hvb")?;
    let program = test::build_program("e2e", "balance")?;
    let output = workspace::target().join("balance");
    std::fs::create_dir_all(&output)?;
    let record = output.join("balance.record");
    // A recording is continued where there is one.
    for old in [record.clone(), record.with_extension("2.record")] {
        if old.exists() {
            std::fs::remove_file(&old)?;
        }
    }
    let mut rig = std::process::Command::new(std::env::current_exe()?);
    rig.args(["rig", "--writable"]).arg(&output);
    rig.args(["--", &program, "--record"]).arg(&record);
    rig.env("HVB_BIN", &hvb).envs(guest.environment()?);
    rig.envs(emulator::get()?.peer_environment());
    let status = rig.status().context("cannot start the rig")?;
    if !status.success() {
        return Ok(ExitCode::FAILURE);
    }
    let picture = output.join("balance.svg");
    let mut plot = std::process::Command::new(&hvb);
    let status = plot.args(["balance", "plot"]).arg(&record).arg("-o").arg(&picture).status()?;
    ensure!(status.success(), "hvb balance plot failed");
    println!("the picture: {}", picture.display());
    Ok(ExitCode::SUCCESS)
}
