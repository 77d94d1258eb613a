//! The arguments of `hvb top`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::balance_args::ControlArgs;
use crate::cli::seconds;

/// `hvb top`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) control: ControlArgs,

    /// Ask no balancer, but the machines with these monitor (QMP) sockets themselves: paths with
    /// wildcards, which name the machines. May be given several times. This is also what happens if no
    /// balancer runs.
    #[arg(long, value_name = "GLOB", conflicts_with = "control")]
    pub(crate) vms: Vec<String>,

    /// What to sort by.
    #[arg(long, value_name = "COLUMN", value_enum, default_value = "name")]
    pub(crate) sort: SortArg,

    /// Show only machines with this text in their name.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) filter: String,

    /// Print the figures once and end.
    #[arg(long)]
    pub(crate) once: bool,

    /// Print JSON, a line each time, with sizes in KiB.
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,

    /// Print a table for spreadsheets, a line for each machine each time, with sizes in KiB.
    #[arg(long)]
    pub(crate) csv: bool,

    /// How often --json and --csv print.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortArg {
    /// From A.
    Name,
    /// The worst first.
    Status,
    /// The highest first.
    Pressure,
    /// The most first.
    Assigned,
    /// The most first.
    Demand,
    /// The most first.
    Rss,
    /// The oldest data first.
    Age,
}
