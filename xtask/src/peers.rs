//! `cargo xtask bench-peers`: the same guest under `hvb` and under QEMU's hv-balloon.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{emulator, guest, test};

/// `cargo xtask bench-peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct PeersArgs {
    /// How often each peer is measured; they take turns.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The guest's kernel.
    #[arg(long, value_enum, default_value = "stable")]
    kernel: guest::GuestKernel,
}

/// Builds what is needed and measures where KVM has Hyper-V. The machine should be idle.
pub(crate) fn main(args: &PeersArgs) -> Result<ExitCode> {
    let guest = guest::build(args.kernel)?;
    let hvb = test::build_release("hvb", "hvb")?;
    let peers = test::build_program("e2e", "peers")?;
    let qemu = emulator::get()?;
    let mut rig = std::process::Command::new(std::env::current_exe()?);
    rig.args(["rig", "--", &peers, &args.rounds.to_string()]);
    rig.env("HVB_BIN", hvb).envs(guest.environment()?).env("HVB_PEER_QEMU", &qemu.program);
    let paths = [("HVB_PEER_LIBRARIES", qemu.libraries), ("HVB_PEER_FIRMWARE", qemu.firmware)];
    rig.envs(paths.into_iter().filter_map(|(name, paths)| Some((name, paths?))));
    let status = rig.status().context("cannot start the rig")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
