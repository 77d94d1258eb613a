//! `hvb run`: boots a kernel in a virtual machine.

use anyhow::{Context, Result};

use crate::cli::RunArgs;
use crate::config::config;
use crate::log::Log;

/// Runs the machine until it ends.
pub(crate) fn run(args: RunArgs, log: &Log) -> Result<()> {
    let config = config(args)?;
    confinement::no_new_privileges().context("cannot give up new privileges")?;
    let seccomp = config.seccomp;
    log.on_thread(move || vmm::confine_log_thread(seccomp))
        .context("the log's thread is gone")??;
    Ok(vmm::run(&config)?)
}
