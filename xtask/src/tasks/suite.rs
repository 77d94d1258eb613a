//! Runs compiled test programs one after another and counts the results. Several machines can work on one
//! list of tests: each takes the next one that none has taken.

use std::fmt;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Test programs and how to run them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The programs, in order.
    pub(crate) programs: Vec<Program>,
    /// Arguments for each of them.
    pub(crate) args: Vec<String>,
    /// For slow tests: each is run by itself, with its output as it comes, by one of the machines that
    /// share this directory. The arguments of the programs are then the names of their tests.
    pub(crate) shared: Option<PathBuf>,
}

/// Which tests have been taken by a machine, in a directory that machines share.
#[derive(Debug)]
pub(crate) struct Taken<'a>(pub(crate) &'a Path);

impl Taken<'_> {
    /// Takes the test with this number, unless another machine has it.
    fn take(&self, number: usize) -> Result<bool> {
        // Only one of those that make a directory succeeds.
        match std::fs::create_dir(self.0.join(number.to_string())) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("test {number} of {}", self.0.display()))
            }
        }
    }

    /// How many tests have been taken.
    pub(crate) fn count(&self) -> Result<usize> {
        Ok(std::fs::read_dir(self.0)?.count())
    }
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
    if let Some(dir) = &plan.shared {
        return run_share(plan, &Taken(dir));
    }
    let mut total = Tally::default();
    for program in &plan.programs {
        let mut command = test_program(program);
        command.args(&program.args).args(&plan.args);
        total.add(run_one(&program.label, &mut command, false)?);
    }
    Ok(total)
}

/// Runs those tests that no other machine takes.
fn run_share(plan: &Plan, taken: &Taken) -> Result<Tally> {
    let mut total = Tally::default();
    let mut number = 0;
    for program in &plan.programs {
        let mut is_first = true;
        for test in &program.args {
            number += 1;
            if !taken.take(number)? {
                continue;
            }
            if std::mem::take(&mut is_first) {
                println!("  {}", program.label);
            }
            let mut command = test_program(program);
            total.add(run_one(test, command.arg(test).args(&plan.args), true)?);
        }
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

/// Runs one test program, or anything else with a summary like libtest's, and prints the results.
///
/// # Errors
///
/// It cannot be started.
pub(crate) fn run_one(label: &str, command: &mut Command, live: bool) -> Result<Tally> {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    // One pipe would be needed for both kinds of output in their original order; failures print to
    // stdout.
    command.stderr(Stdio::inherit());
    let mut child = command.spawn().with_context(|| format!("cannot run {label}"))?;
    let mut tally = Tally::default();
    let mut kept = Vec::new();
    let mut begin = Instant::now();
    for line in BufReader::new(child.stdout.take().context("no pipe")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let took = std::mem::replace(&mut begin, Instant::now()).elapsed();
        if let Some(part) = parse_result(&line) {
            tally.add(part);
        }
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
    Ok(tally)
}

/// Prints libtest's lines without headings, sums and blank lines, and with the duration of each test.
/// That is the time since the previous line, as tests with live output run one at a time.
fn print_live(line: &str, took: Duration) {
    if line.is_empty() || line.starts_with("running ") || line.starts_with("test result: ok") {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_line_of_libtest_is_understood() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.50s";
        assert_eq!(parse_result(line), Some(Tally { passed: 12, failed: 2, ignored: 1 }));
        assert_eq!(parse_result("test x ... ok"), None);
    }

    #[test]
    fn the_total_survives_the_trip_through_the_rig() {
        let tally = Tally { passed: 3, failed: 0, ignored: 1 };
        assert_eq!(parse_total(&format!("{TOTAL} 3 0 1")), Some(tally));
        assert_eq!(parse_total(&format!("{TOTAL} 3 0")), None);
        assert_eq!(parse_total("test result: ok."), None);
    }

    #[test]
    fn machines_that_share_tests_run_each_of_them_once() {
        let programs = |tests: [&[&str]; 2]| {
            let program = |tests: &&[&str]| Program {
                label: "p".to_owned(),
                executable: "true".into(),
                dir: "/".into(),
                env: Vec::new(),
                args: tests.iter().map(|&test| test.to_owned()).collect(),
            };
            tests.iter().map(program).collect()
        };
        let shared = tempfile::tempdir().unwrap();
        let taken = Taken(shared.path());
        assert!(taken.take(2).unwrap(), "by another machine");
        let programs = programs([&["a", "b"], &["c"]]);
        let plan = Plan { programs, args: Vec::new(), shared: Some(shared.path().into()) };
        run(&plan).unwrap();
        assert_eq!(taken.count().unwrap(), 3);
        assert!((1..=3).all(|number| !taken.take(number).unwrap()));
        assert!(Taken(Path::new("/nowhere")).take(1).is_err());
    }

    #[test]
    fn a_program_that_dies_without_a_word_counts_as_a_failure() {
        let tally = run_one("false", &mut Command::new("false"), false).unwrap();
        assert_eq!(tally, Tally { passed: 0, failed: 1, ignored: 0 });
    }
}
