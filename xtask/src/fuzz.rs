//! `cargo xtask fuzz`: libFuzzer on every target of `fuzz/`, for so long each.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::workspace;

/// The version of cargo-fuzz that is installed where there is none.
const CARGO_FUZZ: &str = "0.13.2";

/// The most memory that one input may need, in MiB; the guest's RAM of `boot` is part of it.
const MEMORY_MIB: u32 = 1024;

/// The longest that one input may take, in seconds. The slowest take milliseconds.
const INPUT_SECONDS: u32 = 20;

/// The longest input, in bytes: hundreds of steps, or a kernel's header and some code.
const INPUT_BYTES: u32 = 4096;

/// `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86400))]
    seconds: u32,
    /// Adds to the corpora what reaches code that they do not, as few and small inputs as do.
    #[arg(long)]
    keep: bool,
    /// Targets [default: all].
    targets: Vec<String>,
}

/// What became of a target.
struct Outcome {
    target: String,
    executions: String,
    covered: String,
    inputs: usize,
    passed: bool,
}

/// Builds the fuzzers, runs them one after the other, and says how often each ran.
pub(crate) fn main(args: &FuzzArgs) -> Result<ExitCode> {
    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !all.contains(target)) {
        bail!("there is no fuzz target {unknown}: there are {}", all.join(", "));
    }
    let chosen = if args.targets.is_empty() { &all } else { &args.targets };
    let fuzzer = Fuzzer::prepare()?;
    let mut outcomes = Vec::new();
    for target in chosen {
        eprintln!("fuzz: {target}");
        outcomes.push(fuzzer.run(target, args.seconds)?);
        if args.keep {
            fuzzer.keep(target)?;
        }
    }
    print(&outcomes);
    let passed = outcomes.iter().all(|outcome| outcome.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(outcomes: &[Outcome]) {
    println!("{:16} {:>12} {:>10} {:>8}  result", "target", "executions", "covered", "inputs");
    for Outcome { target, executions, covered, inputs, passed } in outcomes {
        let result = if *passed { "ok" } else { "FAILED: see above" };
        println!("{target:16} {executions:>12} {covered:>10} {inputs:>8}  {result}");
    }
}

/// The workspace of the fuzzers.
fn dir() -> PathBuf {
    workspace::root().join("fuzz")
}

/// The names of all targets.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir().join("fuzz_targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// How the fuzzers are built and called here.
struct Fuzzer {
    program: OsString,
    is_nightly: bool,
}

impl Fuzzer {
    /// Installs cargo-fuzz where it is missing, and builds all fuzzers.
    fn prepare() -> Result<Self> {
        let fuzzer = Self { program: cargo_fuzz()?, is_nightly: is_nightly()? };
        let status = fuzzer.command("build").status().context("cannot start cargo-fuzz")?;
        ensure!(status.success(), "the fuzzers do not build: they need a C++ compiler, too");
        Ok(fuzzer)
    }

    /// `cargo fuzz SUBCOMMAND`. Only nightly has the library of the address sanitizer, and all else
    /// a stable compiler does as well when it is told that it is meant.
    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        let sanitizer = if self.is_nightly { "address" } else { "none" };
        command.args(["fuzz", subcommand, "--sanitizer", sanitizer, "--fuzz-dir"]).arg(dir());
        if !self.is_nightly {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command.current_dir(workspace::root());
        command
    }

    /// Fuzzes for so long, from the corpus and what was found before.
    fn run(&self, target: &str, seconds: u32) -> Result<Outcome> {
        let found = found(target)?;
        let mut command = self.command("run");
        command.arg(target).arg(&found).arg(corpus(target)).arg("--");
        command.arg(format!("-max_total_time={seconds}"));
        command.args(["-print_final_stats=1", "-verbosity=1"]);
        command.args([
            format!("-rss_limit_mb={MEMORY_MIB}"),
            format!("-timeout={INPUT_SECONDS}"),
            format!("-max_len={INPUT_BYTES}"),
        ]);
        let words = dir().join("dictionaries").join(target);
        if words.exists() {
            command.arg(format!("-dict={}", words.display()));
        }
        let log = found.with_extension("log");
        command.stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let passed = command.status().context("cannot start cargo-fuzz")?.success();
        let log = fs::read(&log)?;
        let log = String::from_utf8_lossy(&log);
        if !passed {
            eprintln!("{}", tail(&log, 60));
        }
        Ok(Outcome {
            target: target.to_owned(),
            executions: after_last(&log, "stat::number_of_executed_units:"),
            covered: after_last(&log, " cov:"),
            inputs: fs::read_dir(corpus(target))?.count(),
            passed,
        })
    }

    /// Adds to the corpus what was found, as little of it as covers the same.
    fn keep(&self, target: &str) -> Result<()> {
        let mut command = self.command("run");
        command.arg(target).arg(corpus(target)).arg(found(target)?);
        command.args(["--", "-merge=1", &format!("-max_len={INPUT_BYTES}")]);
        let status = command.stderr(Stdio::null()).stdout(Stdio::null()).status()?;
        ensure!(status.success(), "cannot merge what was found for {target}");
        Ok(())
    }
}

fn corpus(target: &str) -> PathBuf {
    dir().join("corpus").join(target)
}

/// Where new inputs go.
fn found(target: &str) -> Result<PathBuf> {
    let dir = workspace::target().join("fuzz-found").join(target);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// The word behind the last `key` in a log.
fn after_last(log: &str, key: &str) -> String {
    let rest = log.rsplit_once(key).map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn is_nightly() -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("--version").output().context("cannot start rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("-nightly"))
}

/// The program `cargo-fuzz`: the user's own, or one installed for this workspace.
fn cargo_fuzz() -> Result<OsString> {
    let has = |program: &Path| {
        let version = Command::new(program).args(["fuzz", "--version"]).output();
        version.is_ok_and(|output| output.status.success())
    };
    if has(Path::new("cargo-fuzz")) {
        return Ok("cargo-fuzz".into());
    }
    let tools = workspace::target().join("tools");
    let program = tools.join("bin/cargo-fuzz");
    if !has(&program) {
        eprintln!("fuzz: installing cargo-fuzz (a minute)");
        let status = workspace::cargo()
            .args(["install", "--quiet", "--locked", "--version", CARGO_FUZZ, "--root"])
            .arg(&tools)
            .arg("cargo-fuzz")
            .status()?;
        ensure!(status.success(), "cannot install cargo-fuzz");
    }
    Ok(program.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_figures_of_a_log_count() {
        let log = "#2 INITED cov: 9 ft: 10\n#99 DONE cov: 12 ft: 15\n\
                   stat::number_of_executed_units: 99\n";
        assert_eq!(after_last(log, " cov:"), "12");
        assert_eq!(after_last(log, "stat::number_of_executed_units:"), "99");
        assert_eq!(after_last("", " cov:"), "?");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
    }
}
