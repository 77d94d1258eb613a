//! Runs compiled test programs one after another and counts the results.

use std::env;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::rig;

/// Test programs and how to run them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The programs, in order.
    pub(crate) programs: Vec<Program>,
    /// Arguments for each of them.
    pub(crate) args: Vec<String>,
    /// Whether to show all output as it comes, rather than only that of failures: for slow tests.
    pub(crate) live: bool,
}

/// A test program, as cargo built it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Program {
    /// Its name in the output.
    pub(crate) label: String,
    /// The file.
    pub(crate) executable: PathBuf,
    /// The directory of its package, where cargo would run it.
    pub(crate) dir: PathBuf,
    /// Variables for this program alone.
    pub(crate) env: Vec<(String, String)>,
    /// Arguments for this program alone.
    pub(crate) args: Vec<String>,
}

/// The results of tests.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    /// They passed.
    pub(crate) passed: u64,
    /// They failed, or ended their program.
    pub(crate) failed: u64,
    /// They are marked as ignored.
    pub(crate) ignored: u64,
}

/// The result of one run of a test program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The number of tests with each result.
    pub(crate) tally: Tally,
    /// The names of the failed tests.
    pub(crate) failures: Vec<String>,
}

/// More failures than this are not accidental.
const MOST_RETRIES: usize = 3;

/// The start of the last line of [`run_plan`].
const TOTAL: &str = "suite-total";

/// Runs the plan in a file: `cargo xtask suite`. The last line gives the results.
///
/// # Errors
///
/// There is no such plan, or a program cannot be started.
pub(crate) fn run_plan(plan: &Path) -> Result<ExitCode> {
    let text = std::fs::read(plan).with_context(|| plan.display().to_string())?;
    let tally = run(&serde_json::from_slice(&text)?)?;
    println!("{TOTAL} {} {} {}", tally.passed, tally.failed, tally.ignored);
    Ok(ExitCode::SUCCESS)
}

/// The results in that last line.
pub(crate) fn parse_total(line: &str) -> Option<Tally> {
    let mut numbers = line.strip_prefix(TOTAL)?.split_whitespace().map(|n| n.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(Tally { passed: next()?, failed: next()?, ignored: next()? })
}

/// Runs a plan on this machine.
///
/// # Errors
///
/// A program cannot be started. A failed test is not an error.
pub(crate) fn run(plan: &Plan) -> Result<Tally> {
    let mut total = Tally::default();
    for program in &plan.programs {
        let mut command = test_program(program);
        command.args(&program.args).args(&plan.args);
        let mut outcome = run_one(&program.label, &mut command, plan.live)?;
        if is_worth_a_retry(&outcome) && plan.live && env::var_os(rig::EMULATED).is_some() {
            retry(program, &mut outcome)?;
        }
        total.add(outcome.tally);
    }
    Ok(total)
}

fn test_program(program: &Program) -> Command {
    let mut command = Command::new(&program.executable);
    command.current_dir(&program.dir);
    command.env("CARGO_MANIFEST_DIR", &program.dir);
    command.envs(program.env.iter().map(|(name, value)| (name, value)));
    // A test that returns an error gives the reason; a backtrace of the harness does not help.
    command.env("RUST_LIB_BACKTRACE", "0");
    command
}

/// Whether tests failed, by name, and so few that chance may be the cause.
fn is_worth_a_retry(outcome: &Outcome) -> bool {
    let failed = outcome.failures.len();
    (1..=MOST_RETRIES).contains(&failed) && outcome.tally.failed == failed as u64
}

/// Runs the failed tests once more, and says so. QEMU's emulation of SVM occasionally loses a
/// guest; a failure that recurs is the project's own.
fn retry(program: &Program, outcome: &mut Outcome) -> Result<()> {
    println!("    once more, as emulation may be the cause: {}", outcome.failures.join(", "));
    let mut command = test_program(program);
    command.args(["--exact", "--test-threads=1"]).args(&outcome.failures);
    let again = run_one(&program.label, &mut command, true)?.tally;
    if again.passed <= outcome.tally.failed {
        outcome.tally.passed += again.passed;
        outcome.tally.failed -= again.passed;
    }
    println!("    {} of them passed at the second attempt", again.passed);
    Ok(())
}

/// Runs one test program, or anything else with a summary like libtest's, and prints the results.
///
/// # Errors
///
/// It cannot be started.
pub(crate) fn run_one(label: &str, command: &mut Command, live: bool) -> Result<Outcome> {
    if live {
        println!("  {label}");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // One pipe would be needed for both kinds of output in their original order; failures print to
    // stdout.
    command.stderr(Stdio::inherit());
    let mut child = command.spawn().with_context(|| format!("cannot run {label}"))?;
    let (mut tally, mut failures) = (Tally::default(), Vec::new());
    let mut kept = Vec::new();
    let mut begin = Instant::now();
    for line in BufReader::new(child.stdout.take().context("no pipe")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let took = std::mem::replace(&mut begin, Instant::now()).elapsed();
        if let Some(part) = parse_result(&line) {
            tally.add(part);
        }
        failures.extend(parse_failure(&line).map(ToOwned::to_owned));
        match live {
            true => print_live(&line, took),
            false => kept.push(line),
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        kept.push(format!("{label} ended with {status}"));
        tally.failed += 1;
    }
    if tally.failed > 0 {
        println!("{}", kept.join("\n"));
    }
    if tally != Tally::default() && !live {
        println!("  {label:<32} {tally}");
    }
    std::io::stdout().flush()?;
    Ok(Outcome { tally, failures })
}

/// Prints libtest's lines without headings and blank lines, and with the duration of each test.
/// That is the time since the previous line, as tests with live output run one at a time.
fn print_live(line: &str, took: Duration) {
    if line.is_empty() || line.starts_with("running ") {
        return;
    }
    match line.starts_with("test ") && !line.starts_with("test result") {
        true => println!("    {line} {:.1}s", took.as_secs_f64()),
        false => println!("    {line}"),
    }
}

impl Tally {
    /// Adds another tally.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// The number of tests.
    pub(crate) fn count(&self) -> u64 {
        self.passed + self.failed + self.ignored
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        match self.ignored {
            0 => Ok(()),
            ignored => write!(f, ", {ignored} skipped"),
        }
    }
}

/// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; …`
fn parse_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let count = |word: &str| {
        let part = counts.split("; ").find_map(|part| part.strip_suffix(word));
        part.and_then(|number| number.trim().parse().ok())
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, ignored: count("ignored")? })
}

/// `test life::boots ... FAILED`
fn parse_failure(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_result_line_of_libtest_is_understood() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.50s";
        assert_eq!(parse_result(line), Some(Tally { passed: 12, failed: 2, ignored: 1 }));
        assert_eq!(parse_result("test x ... ok"), None);
    }

    #[test]
    fn a_test_that_passes_at_the_second_attempt_is_no_failure() {
        let line = "test life::boots ... FAILED";
        let failures: Vec<_> = parse_failure(line).map(ToOwned::to_owned).into_iter().collect();
        let tally = Tally { passed: 4, failed: 1, ignored: 0 };
        let mut outcome = Outcome { tally, failures };
        assert!(is_worth_a_retry(&outcome));

        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, verdict: &str| {
            let file = dir.path().join(name);
            // It succeeds only if it is given the right filter.
            let script = format!("#!/bin/sh\ntest \"$3\" = life::boots && echo '{verdict}'\n");
            std::fs::write(&file, script).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            let dir = dir.path().to_owned();
            Program { label: name.into(), executable: file, dir, env: vec![], args: vec![] }
        };
        retry(
            &program("fails", "test result: FAILED. 0 passed; 1 failed; 0 ignored"),
            &mut outcome,
        )
        .unwrap();
        assert_eq!(outcome.tally, tally);
        retry(&program("passes", "test result: ok. 1 passed; 0 failed; 0 ignored"), &mut outcome)
            .unwrap();
        assert_eq!(outcome.tally, Tally { passed: 5, failed: 0, ignored: 0 });
    }

    #[test]
    fn the_total_survives_the_trip_through_the_rig() {
        let tally = Tally { passed: 3, failed: 0, ignored: 1 };
        assert_eq!(parse_total(&format!("{TOTAL} 3 0 1")), Some(tally));
        assert_eq!(parse_total(&format!("{TOTAL} 3 0")), None);
        assert_eq!(parse_total("test result: ok."), None);
    }

    #[test]
    fn a_program_that_dies_without_a_word_counts_as_a_failure() {
        let outcome = run_one("false", &mut Command::new("false"), false).unwrap();
        assert_eq!(outcome.tally, Tally { passed: 0, failed: 1, ignored: 0 });
        assert!(!is_worth_a_retry(&outcome));
    }
}
