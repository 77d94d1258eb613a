//! The arguments of `hvb top`.

use std::time::Duration;

use balance_top::Sort;
use clap::Args;

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

    /// What to sort by: name, status, pressure, assigned, demand, rss or age.
    #[arg(long, value_name = "COLUMN", default_value = "name", value_parser = sort)]
    pub(crate) sort: Sort,

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

fn sort(text: &str) -> Result<Sort, String> {
    let found = Sort::ALL.into_iter().find(|sort| sort.word() == text);
    found.ok_or_else(|| {
        let words = Sort::ALL.map(Sort::word).join(", ");
        format!("invalid column '{text}': give one of {words}")
    })
}
