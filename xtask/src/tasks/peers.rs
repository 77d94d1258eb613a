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
    /// How often to measure each peer; they take turns.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// The peers to measure.
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = ["hvb", "hv-balloon", "virtio-balloon"],
        default_value = "hvb,hv-balloon,virtio-balloon"
    )]
    peers: Vec<String>,
    /// The longest time that a step may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 900,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    limit: u64,
    /// The directory for peers.json and peers.svg [default: bench-peers in cargo's target
    /// directory].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Keeps the rounds that an interrupted run wrote to that directory, and measures the rest.
    #[arg(long)]
    go_on: bool,
    /// Measures this hvb [default: builds one].
    #[arg(long, value_name = "FILE")]
    hvb: Option<PathBuf>,
    /// Boots a kernel that does not clear pages as it allocates them. Debian's does, even those
    /// that it gives away, which takes most of a shrink's time in an emulated machine.
    #[arg(long)]
    no_clearing: bool,
    /// The guest's kernel.
    #[arg(long, value_enum, default_value = "stable")]
    kernel: guest_image::GuestKernel,
}

/// Builds what is needed and measures where KVM has Hyper-V. The machine should be idle.
pub(crate) fn main(args: &PeersArgs) -> Result<ExitCode> {
    let out = args.out.clone().unwrap_or_else(|| workspace::target().join("bench-peers"));
    let cannot = || format!("--out {}: cannot be created", out.display());
    std::fs::create_dir_all(&out).with_context(cannot)?;
    let out = out.canonicalize().with_context(cannot)?;
    let text = out.to_str().with_context(|| format!("--out {}: not UTF-8", out.display()))?;
    let read_only = std::fs::metadata(&out)?.permissions().readonly();
    ensure!(!read_only, "--out {text}: cannot be written to");

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
    rig.env("HVB_BIN", hvb).envs(guest.environment()?);
    rig.envs(emulator::get()?.peer_environment()).env("HVB_PEER_GUEST", &guest.release);
    let status = rig.status().context("cannot start the rig")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
