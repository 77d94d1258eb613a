#![forbid(unsafe_code)]
//! `hvb`: a small virtual machine monitor with Hyper-V Dynamic Memory, and commands that control a
//! running `hvb` or QEMU.

mod balloon;
mod cli;
mod config;
mod disk;
mod info;
mod log;
mod monitor;
mod network;
mod report;
mod run;
mod size;
mod stop;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    let result = report::start_logging().and_then(|log| match cli.command {
        Command::Run(args) => run::run(*args, &log).map(|()| ExitCode::SUCCESS),
        Command::Balloon(args) => balloon::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Info(args) => info::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Stop(args) => stop::run(&args),
    });
    result.unwrap_or_else(|error| report::failure(&error))
}
