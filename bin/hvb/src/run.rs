//! `hvb run`: boots a kernel in a virtual machine.

use crate::cli::RunArgs;
use anyhow::{Result, bail};

/// Runs the machine until it ends.
pub(crate) fn run(args: RunArgs) -> Result<()> {
    bail!("{}: running a machine is not there yet", args.kernel.display())
}
