//! `cargo xtask bench-peers`: the same guest under `hvb` and under QEMU's two balloons.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::rig::emulator;
use crate::tasks::test;
use crate::{guest_image, workspace};

/// `cargo xtask bench-peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct PeersArgs {
    /// How often each peer is measured; they take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Whom to measure.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = ["hvb", "hv-balloon", "virtio-balloon"],
        default_value = "hvb,hv-balloon,virtio-balloon"
    )]
    peers: Vec<String>,
    /// The most seconds that a step may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 900,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    limit: u64,
    /// Where to write peers.json and peers.svg [default: bench-peers in cargo's target directory].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Keep the rounds that an earlier run wrote to that directory before it was cut off, and measure
    /// the rest.
    #[arg(long)]
    go_on: bool,
    /// Measures this hvb [default: builds one].
    #[arg(long, value_name = "FILE")]
    hvb: Option<PathBuf>,
    /// Boot a kernel that does not clear pages as it allocates them. Debian's does, also those that
    /// it gives away, and in an emulated machine that is most of a shrink.
    #[arg(long)]
    no_clearing: bool,
    /// The guest's kernel.
    #[arg(long, value_enum, default_value = "stable")]
    kernel: guest_image::GuestKernel,
}

/// Builds what is needed and measures where KVM has Hyper-V. The machine should be idle.
pub(crate) fn main(args: &PeersArgs) -> Result<ExitCode> {
    let out = args.out.clone().unwrap_or_else(|| workspace::target().join("bench-peers"));
    let cannot = || format!("--out {}: cannot be a directory to write to", out.display());
    std::fs::create_dir_all(&out).with_context(cannot)?;
    let out = out.canonicalize().with_context(cannot)?;
    let text = out.to_str().with_context(|| format!("--out {}: not UTF-8", out.display()))?;
    let read_only = std::fs::metadata(&out)?.permissions().readonly();
    ensure!(!read_only, "--out {text}: may not be written to");

    eprintln!("bench-peers: building hvb and the guest (a few minutes the first time)");
    let guest = guest_image::build(args.kernel)?;
    let hvb = match &args.hvb {
        Some(file) => {
            let path = file.canonicalize().with_context(|| format!("--hvb {}", file.display()))?;
            ensure!(path.is_file(), "--hvb {}: not a file", file.display());
            path
        }
        None => test::build_release("hvb", "hvb")?.into(),
    };
    let peers = test::build_program("peers", "peers")?;
    let qemu = emulator::get()?;
    let mut rig = std::process::Command::new(std::env::current_exe()?);
    rig.args(["rig", "--writable", text, "--", &peers, "--out", text]);
    rig.args(["--rounds", &args.rounds.to_string(), "--limit", &args.limit.to_string()]);
    rig.args(["--peers", &args.peers.join(",")]);
    if args.no_clearing {
        rig.arg("--no-clearing");
    }
    if args.go_on {
        rig.arg("--go-on");
    }
    rig.env("HVB_BIN", hvb).envs(guest.environment()?).env("HVB_PEER_QEMU", &qemu.program);
    rig.env("HVB_PEER_GUEST", &guest.release);
    let paths = [("HVB_PEER_LIBRARIES", qemu.libraries), ("HVB_PEER_FIRMWARE", qemu.firmware)];
    rig.envs(paths.into_iter().filter_map(|(name, paths)| Some((name, paths?))));
    let status = rig.status().context("cannot start the rig")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
