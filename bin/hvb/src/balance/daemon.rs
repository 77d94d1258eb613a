//! The balancer as a process: its files, signals and service manager.

use std::path::{Path, PathBuf};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use balance_host::{Configuration, Daemon, Handle, HostReader, Notice, Setup};
use balance_web::{Socket, Token};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::file;
use crate::balance_args::DaemonArgs;
use crate::report::chain;
use crate::{names, run};

/// Runs until a signal ends it.
pub(super) fn run(args: DaemonArgs) -> Result<()> {
    let DaemonArgs {
        config,
        vms,
        dry_run,
        on_exit,
        control,
        record,
        listen,
        listen_token_file,
        ..
    } = args;
    let is_ours = control.control.is_none();
    let control = control.path()?;
    if let Some(directory) = control.parent().filter(|_| is_ours) {
        run::make_private(directory)
            .with_context(|| format!("{}: cannot be made for sockets", directory.display()))?;
    }
    run::give_up_privileges()?;
    allow_descriptors();
    // Signals that come from now on are not lost.
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot handle signals")?;
    // Told before anything runs, if the address cannot be had.
    let token = listen_token_file.as_deref().map(Token::read).transpose()?;
    let socket = listen.map(|listen| Socket::bind(listen, token)).transpose()?;
    let config_file: Option<PathBuf> = config.clone();
    let mut was_empty = None;
    let load = move || {
        let file = config.as_deref();
        let checked = match (file, was_empty) {
            (Some(file), Some(was_empty)) => can_be_read_again(file, was_empty),
            _ => Ok(()),
        };
        let loaded = checked.and_then(|()| load(file, &vms));
        if loaded.is_ok() {
            let found = file.and_then(|file| fs::metadata(file).ok());
            was_empty = Some(found.is_some_and(|found| found.len() == 0));
        }
        loaded.map_err(|error| chain(&error))
    };
    let daemon = Daemon::start(Setup {
        load: Box::new(load),
        file: config_file,
        control: Some(control),
        dry_run,
        on_exit: on_exit.into(),
        host: HostReader::default(),
        record,
    })?;
    let handle = daemon.handle();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || watch(signals, &handle))
        .context("cannot start the thread for signals")?;
    // It ends with this function.
    let _web = socket.map(|socket| socket.serve(daemon.view())).transpose()?;
    let has_watchdog = sd_notify::watchdog_enabled().is_some();
    daemon.run(|notice| tell(notice, has_watchdog));
    Ok(())
}

/// A VM takes four descriptors, and the usual limit is made for programs that use `select`.
pub(crate) fn allow_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the limit of open files stays low: {error}");
    }
}

/// Refuses what is no file to read again: a pipe, which would hold up all machines until somebody writes to
/// it and then has nothing more, and a file that has become empty, which is one that somebody is writing.
fn can_be_read_again(file: &Path, was_empty: bool) -> Result<()> {
    let (found, name) = (fs::metadata(file), file.display());
    let found = found.with_context(|| name.to_string())?;
    ensure!(found.is_file(), "{name}: no regular file, and read at the start only");
    let remedy = "to go back to the defaults, write a comment into it";
    ensure!(was_empty || found.len() > 0, "{name}: it has become empty; {remedy}");
    Ok(())
}

/// The settings of a file, and of the command line, which wins.
pub(crate) fn load(file: Option<&Path>, vms: &[String]) -> Result<Configuration> {
    let mut configuration = match file {
        Some(file) => file::read(file)?,
        None => Configuration::default(),
    };
    if !vms.is_empty() {
        configuration.patterns = vms.to_vec();
    }
    if configuration.patterns.is_empty() {
        let usual = names::directory()?.join("*.sock");
        configuration.patterns = vec![usual.display().to_string()];
    }
    Ok(configuration)
}

fn watch(mut signals: Signals, handle: &Handle) {
    for signal in signals.forever() {
        if signal == SIGHUP {
            handle.reload();
        } else {
            handle.end();
        }
    }
}

/// Tells systemd, if it started this.
fn tell(notice: Notice, has_watchdog: bool) {
    let result = match notice {
        Notice::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Notice::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
        Notice::Alive if has_watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
        Notice::Alive => Ok(()),
        Notice::Ending => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = result {
        tracing::warn!("the service manager was not told: {error}");
    }
}
