//! `hvb run`: boots a kernel in a virtual machine.

use anyhow::{Context, Result};
use vmm::Seccomp;

use crate::cli::RunArgs;
use crate::config::config;
use crate::log::Log;

/// Runs the virtual machine until it ends.
pub(crate) fn run(args: RunArgs, log: &Log) -> Result<()> {
    let config = config(args)?;
    give_up_privileges()?;
    let seccomp = config.seccomp;
    log.on_thread(move || confine_log(seccomp)).context("the log's thread is gone")??;
    Ok(vmm::run(&config)?)
}

/// Confines the log thread. It was started before main gave up its privileges, so it did not
/// inherit that as the other threads do.
fn confine_log(seccomp: Seccomp) -> Result<()> {
    give_up_privileges()?;
    Ok(vmm::confine_log_thread(seccomp)?)
}

fn give_up_privileges() -> Result<()> {
    confinement::no_new_privileges().context("cannot give up new privileges")
}
