#![forbid(unsafe_code)]
//! `hvb`: a small virtual machine monitor with Hyper-V Dynamic Memory, and commands that control a
//! running `hvb` or QEMU.

mod balance;
mod balance_args;
mod balloon;
mod cli;
mod config;
mod definition;
mod disk;
mod doctor;
mod doctor_args;
mod generate;
mod info;
mod list;
mod listen;
mod log;
mod monitor;
mod names;
mod network;
mod report;
mod run;
mod size;
mod stop;
mod top;
mod top_args;

use clap::{CommandFactory, FromArgMatches, error::ErrorKind};
use cli::{Cli, Command};
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let expanded = match definition::expand(words.clone()) {
        Ok(expanded) => expanded,
        Err(error) => return report::failure(&error),
    };
    let parsed = Cli::command().try_get_matches_from(expanded.words).and_then(|matches| {
        let cli = Cli::from_arg_matches(&matches)?;
        Ok((matches, cli))
    });
    let (matches, cli) = match (parsed, expanded.file) {
        (Ok(parsed), _) => parsed,
        (Err(error), Some(file)) if is_right_so_far(words) => {
            return report::definition(&file, &error);
        }
        (Err(error), _) => return report::usage(&error),
    };
    let result = report::start_logging(usual_log(&cli.command)).and_then(|log| match cli.command {
        Command::Run(args) if args.print_config => {
            let run = matches.subcommand_matches("run").cloned().unwrap_or_default();
            config::config(*args)?;
            report::text(&definition::print(&run)?).map(|()| ExitCode::SUCCESS)
        }
        Command::Run(args) => run::run(*args, &log).map(|()| ExitCode::SUCCESS),
        Command::Balloon(args) => balloon::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Info(args) => info::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Stop(args) => stop::run(&args),
        Command::List => list::run().map(|()| ExitCode::SUCCESS),
        Command::Balance(args) => balance::run(*args).map(|()| ExitCode::SUCCESS),
        Command::Top(args) => top::run(*args).map(|()| ExitCode::SUCCESS),
        Command::Doctor(args) => Ok(doctor::run(&args)),
        Command::Generate(args) => generate::run(&args.directory).map(|()| ExitCode::SUCCESS),
    });
    result.unwrap_or_else(|error| report::failure(&error))
}

/// What is logged if `HVB_LOG` does not say: what the balancer does is what it is run for, and a log
/// would run over the screen of `hvb top`, which shows the problems of machines itself.
const fn usual_log(command: &Command) -> &'static str {
    match command {
        Command::Balance(_) => "warn,balance_host=info,balance_web=info",
        Command::Top(_) => "error",
        _ => "warn",
    }
}

/// Whether a command line lacks nothing but options, which a file may have.
fn is_right_so_far(words: Vec<OsString>) -> bool {
    match Cli::command().try_get_matches_from(words) {
        Ok(_) => true,
        Err(error) => error.kind() == ErrorKind::MissingRequiredArgument,
    }
}
