//! `cargo xtask test`: all tests of the workspace.
//!
//! Tests that need a KVM with Hyper-V are those of the package `e2e` and those in test programs
//! named `kvm_…`. They all run in one rig, those with a guest once for each of its kernels; every
//! other test runs on this machine directly.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{Artifact, Message};
use clap::ValueEnum;

use crate::debian::cache::write_whole;
use crate::guest_image::{self, GuestKernel};
use crate::tasks::suite::{self, Plan, Program, Tally};
use crate::workspace;

/// The time limit for the tests in the rig, in seconds: several times what they need.
const RIG_LIMIT: &str = "2400";

/// `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Runs only part of the tests.
    #[arg(long)]
    only: Option<Part>,
    /// Runs all tests that boot a guest with this kernel [default: with each kernel, but with the
    /// second one only tests that depend on it].
    #[arg(long, value_enum)]
    kernel: Option<GuestKernel>,
    /// A filter and other arguments for each test program.
    #[arg(last = true)]
    args: Vec<String>,
}

/// A part of the tests, by their requirements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Tests that run on any Linux.
    Host,
    /// Tests that need a KVM with Hyper-V, or the rig.
    Kvm,
}

/// Builds and runs the tests. Fails if any failed, or did not run although it should have.
pub(crate) fn main(args: &TestArgs) -> Result<ExitCode> {
    let (kvm, host): (Vec<Program>, Vec<Program>) =
        test_programs()?.into_iter().partition(needs_kvm);
    let mut total = Tally::default();
    if args.only != Some(Part::Kvm) {
        println!("tests on this machine");
        total.add(suite::run(&Plan { programs: host, args: args.args.clone(), live: false })?);
        total.add(doc_tests(&args.args)?);
    }
    if args.only != Some(Part::Host) {
        println!("tests that need KVM with Hyper-V");
        total.add(kvm_tests(kvm, args)?);
    }
    println!("{total}");
    ensure!(total.count() > 0, "no test matches {}", args.args.join(" "));
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn needs_kvm(program: &Program) -> bool {
    let (package, target) = program.label.split_once(' ').unwrap_or_default();
    target.starts_with("kvm_") || (package == "e2e" && target != "unit")
}

fn boots_guests(program: &Program) -> bool {
    program.label.starts_with("e2e ")
}

/// Builds all test programs.
fn test_programs() -> Result<Vec<Program>> {
    let artifacts = build(&["test", "--workspace", "--no-run"])?;
    let programs = artifacts.into_iter().filter(|artifact| artifact.profile.test);
    let mut programs: Vec<Program> = programs.filter_map(program).collect();
    programs.sort_by(|a, b| a.label.cmp(&b.label));
    Ok(programs)
}

fn program(artifact: Artifact) -> Option<Program> {
    let dir = artifact.manifest_path.parent()?;
    let target = match artifact.target.is_test() {
        true => artifact.target.name.as_str(),
        false => "unit",
    };
    Some(Program {
        label: format!("{} {target}", dir.file_name()?),
        executable: artifact.executable?.into(),
        dir: dir.into(),
        env: Vec::new(),
        args: Vec::new(),
    })
}

/// Runs cargo and collects the files it built.
fn build(args: &[&str]) -> Result<Vec<Artifact>> {
    let mut cargo = workspace::cargo();
    cargo.args(args).args(["--quiet", "--message-format=json-render-diagnostics"]);
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut artifacts = Vec::new();
    for message in Message::parse_stream(BufReader::new(child.stdout.take().context("no pipe")?)) {
        if let Message::CompilerArtifact(artifact) = message?
            && artifact.executable.is_some()
        {
            artifacts.push(artifact);
        }
    }
    ensure!(child.wait()?.success(), "the build failed");
    Ok(artifacts)
}

/// Builds a program of the workspace and returns its path.
///
/// # Errors
///
/// It does not compile.
pub(crate) fn build_program(package: &str, program: &str) -> Result<String> {
    executable(build(&["build", "--package", package, "--bin", program])?, program)
}

/// As [`build_program`], with optimisation, for measurements.
///
/// # Errors
///
/// It does not compile.
pub(crate) fn build_release(package: &str, program: &str) -> Result<String> {
    executable(build(&["build", "--release", "--package", package, "--bin", program])?, program)
}

fn executable(artifacts: Vec<Artifact>, program: &str) -> Result<String> {
    let mut executables = artifacts.into_iter().filter(|artifact| artifact.target.name == program);
    let executable = executables.find_map(|artifact| artifact.executable);
    Ok(executable.with_context(|| format!("cargo built no {program}"))?.into_string())
}

fn doc_tests(args: &[String]) -> Result<Tally> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--workspace", "--doc", "--quiet", "--"]).args(args);
    Ok(suite::run_one("examples in documentation", &mut cargo, false)?.tally)
}

/// Runs the programs where KVM has Hyper-V, and makes sure that no test was lost on the way.
fn kvm_tests(programs: Vec<Program>, args: &TestArgs) -> Result<Tally> {
    ensure!(!programs.is_empty(), "no test program needs KVM, although some should");
    let count = |programs: &[Program]| {
        programs.iter().map(|p| count_tests(p, &args.args)).sum::<Result<u64>>()
    };
    if count(&programs)? == 0 {
        ensure!(!args.args.is_empty(), "the test programs that need KVM contain no tests");
        println!("  no test matches {}", args.args.join(" "));
        return Ok(Tally::default());
    }
    let programs = for_each_kernel(programs, args.kernel)?;
    let expected = count(&programs)?;
    let hvb = build_program("hvb", "hvb")?;
    let minimal_vmm = build_program("minimal_vmm", "minimal_vmm")?;

    let plan = Plan { programs, args: one_at_a_time(&args.args), live: true };
    let file = workspace::target().join("kvm-tests.json");
    write_whole(&file, &serde_json::to_vec(&plan)?)?;
    let xtask = std::env::current_exe()?;
    let mut rig = workspace::mortal("TERM", xtask.as_os_str());
    rig.args(["rig", "--timeout", RIG_LIMIT, "--"]).arg(&xtask).arg("suite").arg(&file);
    rig.env("HVB_BIN", hvb).env("HVB_MINIMAL_VMM", minimal_vmm);
    let tally = run_in_rig(&mut rig)?;
    ensure!(
        tally.count() == expected,
        "{expected} tests need KVM, but only {} were run: see above",
        tally.count()
    );
    Ok(tally)
}

/// The tests to skip with a kernel, so that all kernels together do not take longer than people
/// will wait: tests for one and for two vCPUs run once each, with different kernels; slow tests,
/// and those in which no guest takes part, run with one. With `--kernel` nothing is skipped.
const fn left_out(kernel: GuestKernel) -> &'static [&'static str] {
    match kernel {
        GuestKernel::Stable => &["--skip", "::two_cpus", "--skip", "steps_of_the_long_soak"],
        GuestKernel::Backports => &[
            "--skip",
            "::one_cpu",
            "--skip",
            "bad_input::",
            "--skip",
            "monitor::",
            "--skip",
            "reset::",
            "--skip",
            "host_faults::",
            "--skip",
            "life::console",
            "--skip",
            "life::odd_sizes",
            "--skip",
            "life::quit",
            "--skip",
            "life::sig",
            "--skip",
            "shrinks_and_grows_ten_times",
            "--skip",
            "a_hundred_random_resizes",
        ],
    }
}

/// Repeats the programs that boot a guest for each of its kernels, or only for the one requested.
fn for_each_kernel(programs: Vec<Program>, only: Option<GuestKernel>) -> Result<Vec<Program>> {
    let (guests, mut all): (Vec<_>, Vec<_>) = programs.into_iter().partition(boots_guests);
    let kernels = GuestKernel::ALL.into_iter().filter(|k| only.is_none_or(|only| only == *k));
    for kernel in kernels {
        let guest = guest_image::build(kernel)?;
        for program in &guests {
            let mut program = program.clone();
            program.label = format!("{} with Linux {}", program.label, guest.release);
            program.env = guest.environment()?.map(|(name, v)| (name.to_owned(), v)).into();
            if only.is_none() {
                program.args = left_out(kernel).iter().map(|&arg| arg.to_owned()).collect();
            }
            all.push(program);
        }
    }
    Ok(all)
}

/// Shows the output of the suite as it comes, and takes the tally from its end.
fn run_in_rig(rig: &mut Command) -> Result<Tally> {
    let mut child = rig.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut tally = None;
    for line in BufReader::new(child.stdout.take().context("no pipe")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        match suite::parse_total(&line) {
            Some(total) => tally = Some(total),
            None => println!("{line}"),
        }
    }
    let status = child.wait()?;
    match tally {
        Some(tally) if status.success() => Ok(tally),
        _ => bail!("the tests that need KVM did not run to their end ({status})"),
    }
}

/// Runs one guest at a time: a guest needs all of the machine, especially an emulated one.
fn one_at_a_time(args: &[String]) -> Vec<String> {
    let mut args = args.to_vec();
    if !args.iter().any(|arg| arg.starts_with("--test-threads")) {
        args.push("--test-threads=1".to_owned());
    }
    args
}

/// How many tests of a program match. Listing them needs no KVM.
fn count_tests(program: &Program, args: &[String]) -> Result<u64> {
    let mut command = Command::new(&program.executable);
    command
        .args(&program.args)
        .args(args)
        .args(["--list", "--format", "terse"])
        .current_dir(&program.dir);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} cannot list its tests", program.label);
    let tests = output.stdout.lines().map_while(Result::ok).filter(|l| l.ends_with(": test"));
    Ok(u64::try_from(tests.count())?)
}
