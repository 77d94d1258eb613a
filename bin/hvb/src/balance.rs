//! `hvb balance`: keeps all VMs of a host at the memory that they need.

pub(crate) mod daemon;
pub(crate) mod file;
pub(crate) mod operator;
mod plot;
mod replay;
mod simulate;

use std::path::PathBuf;

use anyhow::Result;
use balance_host::{OnExit, Wish};

use crate::balance_args::{BalanceArgs, BalanceCommand, ControlArgs, OnExitArg};
use crate::names;
use crate::report;

impl From<OnExitArg> for OnExit {
    fn from(arg: OnExitArg) -> Self {
        match arg {
            OnExitArg::Keep => Self::Keep,
            OnExitArg::GiveBack => Self::GiveBack,
        }
    }
}

impl ControlArgs {
    pub(crate) fn path(self) -> Result<PathBuf> {
        self.control.map_or_else(|| Ok(names::directory()?.join("balance.control")), Ok)
    }
}

/// Runs the balancer, or tells one that runs what to do.
pub(crate) fn run(args: BalanceArgs) -> Result<()> {
    let hold = |hold| Wish { hold: Some(hold), ..Wish::default() };
    match args.command {
        None if args.daemon.check => {
            let file = args.daemon.config.as_deref();
            let configuration = daemon::load(file, &args.daemon.vms)?;
            // As the daemon does when it starts.
            balance_host::find(&configuration.patterns)?;
            report::text(&file::print(&configuration)?)
        }
        None => daemon::run(args.daemon),
        Some(BalanceCommand::Status { json, control }) => operator::status(&control.path()?, json),
        Some(BalanceCommand::Explain { vm, control }) => operator::explain(&control.path()?, &vm),
        Some(BalanceCommand::Set { vm, settings, control }) => {
            operator::set(&control.path()?, &vm, file::wish(&settings)?)
        }
        Some(BalanceCommand::Reserve { size, lasting, timeout, control }) => {
            operator::reserve(&control.path()?, size, lasting, timeout)
        }
        Some(BalanceCommand::Hold { vm, control }) => {
            operator::set(&control.path()?, &vm, hold(true))
        }
        Some(BalanceCommand::Replay { file, config }) => replay::run(&file, config.as_deref()),
        Some(BalanceCommand::Plot { file, output, vms }) => plot::run(&file, &output, &vms),
        Some(BalanceCommand::Release { vm, control }) => {
            operator::set(&control.path()?, &vm, hold(false))
        }
        Some(BalanceCommand::Simulate { files, config }) => {
            simulate::run(&files, config.as_deref())
        }
    }
}
