//! `cargo xtask record-bus`: real guests are recorded for the replays in `tests/bus_replay`.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::guest_image::{self, GuestKernel};
use crate::tasks::test;
use crate::workspace;

/// Where the recordings are, below the root of the workspace.
const CAPTURES: &str = "tests/bus_replay/captures";

/// `cargo xtask record-bus`.
#[derive(Debug, clap::Args)]
pub(crate) struct RecordBusArgs {
    /// Records only a guest with this kernel [default: one with each].
    #[arg(long, value_enum)]
    kernel: Option<GuestKernel>,
}

/// Builds what is needed, records the guests where KVM has Hyper-V, and returns the exit status.
pub(crate) fn main(args: &RecordBusArgs) -> Result<ExitCode> {
    let hvb = test::build_program("hvb", "hvb")?;
    let record = test::build_program("e2e", "record_bus")?;
    let dir = workspace::root().join(CAPTURES).canonicalize().context(CAPTURES)?;
    let kernels = args.kernel.map_or_else(|| GuestKernel::ALL.to_vec(), |kernel| vec![kernel]);
    for kernel in kernels {
        let guest = guest_image::build(kernel)?;
        let file = dir.join(format!("linux-{}.jsonl", series(&guest.release)));
        println!("record-bus: Linux {} to {}", guest.release, file.display());
        let mut rig = workspace::mortal("TERM", std::env::current_exe()?.as_os_str());
        rig.args(["rig", "--writable"]).arg(&dir).args(["--", &record]).arg(&file);
        rig.env("HVB_BIN", &hvb).envs(guest.environment()?);
        if !rig.status().context("cannot start the rig")?.success() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The first two numbers of a kernel's release: 6.1 of `6.1.0-44-cloud-amd64`.
fn series(release: &str) -> String {
    release.split(['.', '-', '+']).take(2).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_is_named_after_the_kernels_series() {
        assert_eq!(series("6.1.0-44-cloud-amd64"), "6.1");
        assert_eq!(series("6.12.74+deb12-cloud-amd64"), "6.12");
    }
}
