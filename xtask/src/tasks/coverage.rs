//! `cargo xtask coverage`: how much of the code the tests without a guest run through.
//!
//! `cargo-llvm-cov` does the work, with LLVM's tools from Debian: rustup's component with these tools
//! is not on every machine, and LLVM reads what a newer LLVM has recorded.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo_tool::CargoTool;
use crate::debian::packages::{self, Program};

const LLVM_COV: Program = Program { file: "llvm-cov-19", package: "llvm-19" };
const LLVM_PROFDATA: Program = Program { file: "llvm-profdata-19", package: "llvm-19" };

const TOOL: CargoTool = CargoTool { package: "cargo-llvm-cov", version: "0.6.21" };

/// Code that is no part of what ships: tests and their equipment, benchmarks, tasks.
const IGNORED: &str = "(^|/)(tests|benches|xtask|fuzz|examples)/|/tests\\.rs$";

/// `cargo xtask coverage`.
#[derive(Debug, clap::Args)]
pub(crate) struct CoverageArgs {
    /// Prints the source with the number of times each line ran, instead of a table of files.
    #[arg(long)]
    text: bool,
    /// The packages whose tests to run [default: the libraries'].
    packages: Vec<String>,
}

/// The tests of these packages need neither KVM nor a program that is built elsewhere.
const PACKAGES: &[&str] = &[
    "balancer",
    "balance_host",
    "balance_sim",
    "balance_top",
    "balance_web",
    "bus_recording",
    "bus_replay",
    "doctor",
    "timeline",
    "page_range",
    "dynmem_protocol",
    "saved_state",
    "hv_balloon",
    "vmbus",
    "dynmem_vsp",
    "integration_services",
    "guest_model",
    "sim",
    "fuzz_bodies",
    "qmp",
    "guest_ram",
    "vmbus_kvm",
    "vmm",
];

/// The simulation's runs, of which there are 100,000 otherwise: counting makes each many times slower, and the
/// last of them go where the first went.
const RUNS: (&str, &str) = ("HV_BALLOON_RUNS", "4000");

/// Builds and runs the tests and prints the table.
pub(crate) fn main(args: &CoverageArgs) -> Result<ExitCode> {
    packages::ensure_installed(&[LLVM_COV, LLVM_PROFDATA])?;
    let mut command = TOOL.command()?;
    command.env("LLVM_COV", LLVM_COV.file).env("LLVM_PROFDATA", LLVM_PROFDATA.file);
    if std::env::var_os(RUNS.0).is_none() {
        command.env(RUNS.0, RUNS.1);
    }
    command.args(["--ignore-filename-regex", IGNORED]);
    command.arg(if args.text { "--text" } else { "--summary-only" });
    let default = || PACKAGES.iter().map(|&name| name.to_owned()).collect();
    let packages = if args.packages.is_empty() { default() } else { args.packages.clone() };
    for package in packages {
        command.args(["--package", &package]);
    }
    let status = command.status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
