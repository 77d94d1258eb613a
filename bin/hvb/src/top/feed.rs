//! Where the figures come from: a balancer that runs, or the machines' monitors.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_host::{Daemon, HostReader, OnExit, Operator, Setup, Status, View, VmStatus};
use balance_top::Source;

use crate::balance::{daemon, file, operator};
use crate::balance_args::ControlArgs;

/// How often the first decision is waited for. It comes when all monitors have answered, or after two
/// seconds.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long first reports are waited for.
const REPORTS: Duration = Duration::from_millis(2500);

/// Tells the figures of all machines.
pub(super) enum Feed {
    /// A balancer. The connection is made anew after it failed.
    Balancer { control: PathBuf, connection: Option<Box<Operator>> },
    /// A balancer within this process that decides and changes nothing.
    Monitors { view: View, thread: JoinHandle<()> },
}

impl Feed {
    /// Connects to the balancer. If none runs and none was named, or patterns of sockets are given, asks
    /// the machines themselves.
    pub(super) fn open(control: ControlArgs, vms: &[String]) -> Result<Self> {
        if !vms.is_empty() {
            return Self::watch(vms);
        }
        let was_named = control.control.is_some();
        let control = control.path()?;
        let connection = match was_named {
            true => Some(operator::connect(&control)?),
            false => operator::find(&control)?,
        };
        match connection {
            None => Self::watch(vms),
            Some(balancer) => Ok(Self::Balancer { control, connection: Some(Box::new(balancer)) }),
        }
    }

    fn watch(vms: &[String]) -> Result<Self> {
        daemon::allow_descriptors();
        let vms = vms.to_vec();
        let load = move || daemon::load(None, &vms).map_err(|error| format!("{error:#}"));
        let daemon = Daemon::start(Setup {
            load: Box::new(load),
            file: None,
            control: None,
            dry_run: true,
            on_exit: OnExit::Keep,
            host: HostReader::default(),
            record: None,
        })?;
        let view = daemon.view();
        // It holds nothing that would have to be given back, so it may end with the process.
        let thread = thread::Builder::new().name("watch".to_owned());
        let thread = thread.spawn(move || daemon.run(|_| {})).context("cannot start a thread")?;
        Ok(Self::Monitors { view, thread })
    }

    pub(super) fn source(&self) -> Source {
        match self {
            Self::Balancer { .. } => Source::Balancer,
            Self::Monitors { .. } => Source::Monitors,
        }
    }

    /// The figures of now.
    pub(super) fn status(&mut self) -> Result<Status> {
        match self {
            Self::Balancer { .. } => self.ask(|balancer| Ok(balancer.status()?)),
            Self::Monitors { view, thread } => loop {
                // It has no end but a panic, whose text is on the standard error.
                ensure!(
                    !thread.is_finished(),
                    "the machines are not asked any more: a defect of hvb"
                );
                let status = view.status();
                if status.decisions > 0 {
                    return Ok(status);
                }
                thread::sleep(LOOK_AGAIN);
            },
        }
    }

    /// Waits for the guests' first reports, where the machines themselves are asked: they come once a
    /// second, and without them no demand is known.
    pub(super) fn settle(&mut self) -> Result<()> {
        let Self::Monitors { .. } = self else { return Ok(()) };
        let deadline = Instant::now() + REPORTS;
        while Instant::now() < deadline {
            let status = self.status()?;
            let is_known = |vm: &VmStatus| vm.problem.is_some() || vm.report_age_ms.is_some();
            if status.vms.iter().all(is_known) {
                // The decision that takes the last of them in is made within milliseconds.
                let decisions = status.decisions;
                while self.status()?.decisions == decisions && Instant::now() < deadline {
                    thread::sleep(LOOK_AGAIN);
                }
                return Ok(());
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Changes a setting of a machine, given as KEY=VALUE.
    pub(super) fn set(&mut self, vm: &str, setting: &str) -> Result<()> {
        let wish = file::wish(&[setting.to_owned()])?;
        self.ask(|balancer| balancer.set(vm, wish).map(|_| ()).map_err(Into::into))
    }

    fn ask<T>(&mut self, question: impl FnOnce(&mut Operator) -> Result<T>) -> Result<T> {
        let Self::Balancer { control, connection } = self else {
            bail!("no balancer runs: start hvb balance");
        };
        let mut balancer = match connection.take() {
            Some(balancer) => balancer,
            None => Box::new(operator::connect(control)?),
        };
        let answer = question(&mut balancer);
        // One that said no answers again. After any other failure its answers may be out of step.
        let is_well = match &answer {
            Ok(_) => true,
            Err(error) => {
                matches!(error.downcast_ref(), Some(balance_host::ClientError::Command { .. }))
            }
        };
        *connection = is_well.then_some(balancer);
        answer
    }
}
