//! `hvb run`: boots a kernel in a virtual machine.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::{fs, io};

use anyhow::{Context, Result};
use vmm::Seccomp;

use crate::cli::RunArgs;
use crate::config::config;
use crate::log::Log;

/// Runs the virtual machine until it ends.
pub(crate) fn run(args: RunArgs, log: &Log) -> Result<()> {
    let is_named = args.name.is_some() && args.qmp.is_none();
    let config = config(args)?;
    if let Some(directory) = config.qmp.as_deref().filter(|_| is_named).and_then(Path::parent) {
        make_private(directory)
            .with_context(|| format!("{}: cannot be made for sockets", directory.display()))?;
    }
    give_up_privileges()?;
    let seccomp = config.seccomp;
    log.on_thread(move || confine_log(seccomp)).context("the log's thread is gone")??;
    Ok(vmm::run(&config, tell_readiness)?)
}

/// Creates the directory of sockets, for this user alone.
pub(crate) fn make_private(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Tells systemd, if it started this, that the monitor listens.
fn tell_readiness() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("the service manager was not told that the monitor listens: {error}");
    }
}

/// Confines the log thread. It was started before main gave up its privileges, so it did not
/// inherit that as the other threads do.
fn confine_log(seccomp: Seccomp) -> Result<()> {
    give_up_privileges()?;
    Ok(vmm::confine_log_thread(seccomp)?)
}

pub(crate) fn give_up_privileges() -> Result<()> {
    confinement::no_new_privileges().context("cannot give up new privileges")
}
