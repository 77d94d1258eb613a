//! `cargo xtask boots`: guests are booted again and again, and those that do not come up are counted.

use std::process::ExitCode;

use anyhow::Result;

use crate::rig::emulator;
use crate::tasks::test;
use crate::{guest_image, workspace};

/// `cargo xtask boots`.
#[derive(Debug, clap::Args)]
pub(crate) struct BootsArgs {
    /// How many guests to boot.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// The guests' numbers of processors, which take turns.
    #[arg(long, default_value = "1,2", value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Vec<u32>,
    /// How many guests run at a time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    parallel: u32,
    /// The guests' kernel.
    #[arg(long, value_enum, default_value = "stable")]
    kernel: guest_image::GuestKernel,
    /// The program that runs them. QEMU is the control: what fails there as well is not ours.
    #[arg(long, value_enum, default_value = "hvb")]
    vmm: Vmm,
    /// How often each guest of `hvb` shrinks and grows back before it is powered off.
    #[arg(long, default_value_t = 0)]
    resizes: u32,
    /// Passed on to `cargo xtask rig`, before the command: for example
    /// `--rig-option=--threads=single`. May be given several times.
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    rig_option: Vec<String>,
}

/// What may run the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Vmm {
    /// `hvb`.
    Hvb,
    /// `hvb` built without the Dynamic Memory device.
    HvbWithoutDevice,
    /// QEMU with its hv-balloon.
    HvBalloon,
    /// QEMU with its virtio-balloon.
    VirtioBalloon,
}

/// Builds what is needed, boots the guests where KVM has Hyper-V, and returns the exit status: 0 if
/// all came up.
pub(crate) fn main(args: &BootsArgs) -> Result<ExitCode> {
    let guest = guest_image::build(args.kernel)?;
    let hvb = match args.vmm {
        Vmm::HvbWithoutDevice => test::build_without_device()?,
        Vmm::Hvb | Vmm::HvBalloon | Vmm::VirtioBalloon => test::build_program("hvb", "hvb")?,
    };
    let boots = test::build_program("e2e", "boots")?;
    println!("boots: Linux {}", guest.release);
    let cpus: Vec<String> = args.cpus.iter().map(u32::to_string).collect();
    let mut rig = workspace::mortal("TERM", std::env::current_exe()?.as_os_str());
    rig.arg("rig").args(&args.rig_option);
    rig.args(["--", &boots]);
    rig.args(["--count", &args.count.to_string(), "--cpus", &cpus.join(",")]);
    rig.args(["--parallel", &args.parallel.to_string()]);
    rig.args(["--resizes", &args.resizes.to_string(), "--vmm"]);
    rig.arg(match args.vmm {
        Vmm::Hvb | Vmm::HvbWithoutDevice => "hvb",
        Vmm::HvBalloon => "hv-balloon",
        Vmm::VirtioBalloon => "virtio-balloon",
    });
    rig.env("HVB_BIN", hvb).envs(guest.environment()?);
    rig.envs(emulator::get()?.peer_environment());
    let status = rig.status()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
