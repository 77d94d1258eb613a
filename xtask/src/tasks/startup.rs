//! `cargo xtask bench-startup`: how fast machines start, and how little memory they take.

use std::process::ExitCode;

use anyhow::Result;

use crate::rig::emulator;
use crate::tasks::test;
use crate::{guest_image, workspace};

/// `cargo xtask bench-startup`.
#[derive(Debug, clap::Args)]
pub(crate) struct StartupArgs {
    /// How often to start each machine.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The guests' kernel.
    #[arg(long, value_enum, default_value = "stable")]
    kernel: guest_image::GuestKernel,
}

/// Builds what is needed, and starts the machines where KVM has Hyper-V.
pub(crate) fn main(args: &StartupArgs) -> Result<ExitCode> {
    let guest = guest_image::build(args.kernel)?;
    let hvb = test::build_release("hvb", "hvb")?;
    let startup = test::build_program("e2e", "startup")?;
    println!("bench-startup: Linux {}", guest.release);
    let mut rig = workspace::mortal("TERM", std::env::current_exe()?.as_os_str());
    rig.args(["rig", "--", &startup, "--rounds", &args.rounds.to_string()]);
    rig.env("HVB_BIN", hvb).envs(guest.environment()?);
    rig.envs(emulator::get()?.peer_environment());
    let status = rig.status()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
