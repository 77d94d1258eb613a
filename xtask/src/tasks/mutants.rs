//! `cargo xtask mutants`: whether a test fails when the code is wrong.
//!
//! `cargo-mutants` changes one place at a time (a comparison, an operator, what a function returns)
//! and runs the tests. A change that no test notices is printed as MISSED. `.cargo/mutants.toml` lists
//! the places that are left alone, with the reasons; docs/mutants.md the results.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;

use crate::cargo_tool::CargoTool;
use crate::workspace;

const TOOL: CargoTool = CargoTool { package: "cargo-mutants", version: "27.1.0" };

/// A loop that never ends would run until the time limit. This is many times what the tests of a
/// crate take, on a slow, busy machine too: a mutant whose tests are merely late would count as found.
const LEAST_LIMIT_SECONDS: &str = "300";

/// `cargo xtask mutants`.
#[derive(Debug, clap::Args)]
pub(crate) struct MutantsArgs {
    /// One crate only.
    #[arg(long = "crate", value_enum)]
    only: Option<Subject>,
    /// Only part K of N equal parts of each crate's mutants, counted from 0.
    #[arg(long, value_name = "K/N")]
    shard: Option<String>,
    /// More options for cargo-mutants, such as `--file PATTERN` or `--list`.
    #[arg(last = true)]
    options: Vec<String>,
}

/// A crate whose code is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Subject {
    PageRange,
    HvBalloon,
    Vmbus,
}

impl Subject {
    const fn name(self) -> &'static str {
        match self {
            Self::PageRange => "page_range",
            Self::HvBalloon => "hv_balloon",
            Self::Vmbus => "vmbus",
        }
    }

    /// The packages whose tests have to notice: those that test the crate and take seconds.
    const fn judges(self) -> &'static str {
        match self {
            Self::PageRange => "page_range",
            Self::HvBalloon => "hv_balloon,guest_model,dynmem_vsp",
            Self::Vmbus => "vmbus,guest_model,dynmem_vsp",
        }
    }
}

/// Runs cargo-mutants for each crate. Fails if a mutant of any of them was missed.
pub(crate) fn main(args: &MutantsArgs) -> Result<ExitCode> {
    // cargo-mutants makes one directory only.
    let output = workspace::target().join("mutants");
    std::fs::create_dir_all(&output)?;
    let mut code = ExitCode::SUCCESS;
    let subjects = Subject::value_variants().iter();
    for &subject in subjects.filter(|subject| args.only.is_none_or(|only| only == **subject)) {
        let mut command = TOOL.command()?;
        command.args(["--package", subject.name(), "--test-package", subject.judges()]);
        command.args(["--minimum-test-timeout", LEAST_LIMIT_SECONDS, "--no-shuffle"]);
        command.arg("--output").arg(output.join(subject.name()));
        if let Some(shard) = &args.shard {
            // Parts that follow one another would be of one file.
            command.args(["--shard", shard, "--sharding", "round-robin"]);
        }
        if !command.args(&args.options).status()?.success() {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
