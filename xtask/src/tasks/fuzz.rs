//! `cargo xtask fuzz`: runs libFuzzer on every target of `fuzz/`, each for a given time.
//!
//! The programs are built by cargo alone, with the compiler flags that cargo-fuzz would pass. That
//! saves building cargo-fuzz, which takes as long as building all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::debian::packages::{self, Program};
use crate::workspace;

/// The compiler for libFuzzer itself.
const CXX: Program = Program { file: "c++", package: "g++" };

/// The flags that make a program observable for libFuzzer: counters at every edge, and the operands
/// of comparisons. A stable compiler knows all of them. Otherwise the build is like a test's, with
/// checks of arithmetic and debug assertions.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
    "-Cdebug-assertions",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/// The most memory that one input may need, in MiB; this includes the guest's RAM of `boot`.
const MEMORY_MIB: u32 = 1024;

/// The longest time that one input may take, in seconds. The slowest take milliseconds.
const INPUT_SECONDS: u32 = 20;

/// The longest input, in bytes: hundreds of steps, or a kernel's header and some code.
const INPUT_BYTES: u32 = 4096;

/// `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86400))]
    seconds: u32,
    /// Compiles in less than half the time what then runs slowly: to see whether the fuzzers work.
    #[arg(long, conflicts_with = "keep")]
    quick: bool,
    /// Adds inputs to the corpora that reach code which these do not, as few and as small as
    /// possible.
    #[arg(long)]
    keep: bool,
    /// Targets [default: all].
    targets: Vec<String>,
}

/// The result of a target.
struct Outcome {
    target: String,
    executions: String,
    covered: String,
    /// CPU time on all processors, including the fuzzer's own work.
    cpu: Duration,
    /// The number of inputs in its corpus, and their size in bytes.
    corpus: (usize, u64),
    passed: bool,
}

/// Builds the fuzzers, runs them one after another, and prints how often each ran.
pub(crate) fn main(args: &FuzzArgs) -> Result<ExitCode> {
    let all = targets()?;
    if let Some(unknown) = args.targets.iter().find(|target| !all.contains(target)) {
        bail!("there is no fuzz target {unknown}: there are {}", all.join(", "));
    }
    let chosen = if args.targets.is_empty() { &all } else { &args.targets };
    let programs = build(chosen, if args.quick { "quick" } else { "release" })?;
    let mut outcomes = Vec::new();
    for target in chosen {
        eprintln!("fuzz: {target}");
        let program = programs.join(target);
        outcomes.push(run(&program, target, args)?);
    }
    print(&outcomes);
    let passed = outcomes.iter().all(|outcome| outcome.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(outcomes: &[Outcome]) {
    println!("target           executions  CPU time   edges  inputs    bytes  result");
    for Outcome { target, executions, covered, cpu, corpus: (inputs, bytes), passed } in outcomes {
        let cpu = cpu.as_secs_f64();
        let result = if *passed { "ok" } else { "FAILED: see above" };
        println!(
            "{target:15} {executions:>11} {cpu:>7.0} s {covered:>7} {inputs:>7} {bytes:>8}  {result}"
        );
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

/// Builds the programs of these targets with a profile of `fuzz/Cargo.toml` and returns their directory.
fn build(targets: &[String], profile: &str) -> Result<PathBuf> {
    packages::ensure_installed(&[CXX])?;
    let (host, built) = (host()?, workspace::target().join("fuzz"));
    let mut cargo = workspace::cargo();
    cargo.current_dir(dir()).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    // With an explicit target, the flags do not apply to build scripts and macros.
    cargo.args(["build", "--profile", profile, "--target", &host, "--target-dir"]).arg(&built);
    for target in targets {
        cargo.args(["--bin", target]);
    }
    let status = cargo.stdin(Stdio::null()).status().context("cannot start cargo")?;
    ensure!(status.success(), "the fuzzers do not build");
    Ok(built.join(host).join(profile))
}

/// The compiler's target for programs that run here.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV does not name the host")?.to_owned())
}

/// Fuzzes for the given time, starting from the corpus and earlier findings.
fn run(program: &Path, target: &str, args: &FuzzArgs) -> Result<Outcome> {
    let found = workspace::target().join("fuzz-found").join(target);
    let artifacts = dir().join("artifacts").join(target);
    for dir in [&found, &artifacts] {
        fs::create_dir_all(dir)?;
    }
    let corpus = dir().join("corpus").join(target);
    let log_file = found.with_extension("log");
    let mut fuzzer = Command::new(program);
    fuzzer.arg(&found).arg(&corpus).args(limits()).args([
        format!("-max_total_time={}", args.seconds),
        "-print_final_stats=1".to_owned(),
        format!("-artifact_prefix={}/", artifacts.display()),
    ]);
    let words = dir().join("dictionaries").join(target);
    if words.exists() {
        fuzzer.arg(format!("-dict={}", words.display()));
    }
    fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log_file)?);
    let before = cpu_of_children()?;
    let passed = fuzzer.status().context("cannot start the fuzzer")?.success();
    let cpu = cpu_of_children()?.saturating_sub(before);
    let log = fs::read(&log_file)?;
    let log = String::from_utf8_lossy(&log);
    if !passed {
        eprintln!("{}", tail(&log, 60));
    }
    if args.keep && passed {
        keep(program, &corpus, &found)?;
    }
    Ok(Outcome {
        target: target.to_owned(),
        executions: after_last(&log, "stat::number_of_executed_units:"),
        covered: after_last(&log, " cov:"),
        cpu,
        corpus: size(&corpus)?,
        passed,
    })
}

fn limits() -> [String; 3] {
    [
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-timeout={INPUT_SECONDS}"),
        format!("-max_len={INPUT_BYTES}"),
    ]
}

/// Adds the findings to the corpus, reduced to what covers the same. How often an input reaches
/// code matters only for fuzzing and is left out: every `cargo test` replays the corpus.
fn keep(program: &Path, corpus: &Path, found: &Path) -> Result<()> {
    let mut fuzzer = Command::new(program);
    fuzzer.args(["-set_cover_merge=1", "-use_counters=0"]).args(limits()).arg(corpus).arg(found);
    fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = fuzzer.status().context("cannot start the fuzzer")?;
    ensure!(status.success(), "cannot merge {} into the corpus", found.display());
    Ok(())
}

/// The number of files in a folder, and their size in bytes.
fn size(dir: &Path) -> Result<(usize, u64)> {
    let mut size = (0, 0);
    for entry in fs::read_dir(dir)? {
        size = (size.0 + 1, size.1 + entry?.metadata()?.len());
    }
    Ok(size)
}

/// The CPU time of all ended child processes of this one.
fn cpu_of_children() -> Result<Duration> {
    let text = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let ticks = ticks_of_children(&text).context("/proc/self/stat is not as in proc(5)")?;
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_millis(ticks.saturating_mul(1000) / a_second))
}

/// Parses fields 16 and 17 of `/proc/PID/stat` (proc(5)). The second field is a name in brackets.
fn ticks_of_children(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(13).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

/// The word after the last `key` in a log.
fn after_last(log: &str, key: &str) -> String {
    let rest = log.rsplit_once(key).map(|(_, rest)| rest);
    rest.and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
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

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_move_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4 9 8 7 6 100 101 30 12 20 0 1 0 5";
        assert_eq!(ticks_of_children(stat), Some(42));
        assert_eq!(ticks_of_children("7 (a) S 1"), None);
    }
}
