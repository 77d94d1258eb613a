//! `cargo xtask test`: all tests of the workspace.
//!
//! Tests that need a KVM with Hyper-V are those of the package `e2e` and those in test programs
//! named `kvm_…`. They all run in one rig, those with a guest once for each of its kernels; every
//! other test runs on this machine directly.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use cargo_metadata::{Artifact, Message};
use clap::ValueEnum;
use tempfile::TempDir;

use crate::debian::cache::write_whole;
use crate::debian::packages;
use crate::guest_image::{self, GuestKernel};
use crate::tasks::suite::{self, Plan, Program, Taken, Tally};
use crate::{rig, workspace};

/// The time limit for the tests in a rig, in seconds: several times what they need.
const RIG_LIMIT: &str = "2400";

/// How many emulated machines share the tests that need KVM. Each of them has one processor: see
/// docs/rig.md.
const EMULATED_MACHINES: usize = 2;

/// Tests whose host must leave extended hypercalls to `hvb`, as Linux does from 6.3 on. An emulated
/// machine for them has the backports kernel; all others have the stable one.
const NEEDS_NEWER_KVM: &str = "free_pages::";

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
        packages::ensure_installed(&[packages::CHROMIUM, packages::PASST, packages::TMUX])?;
        total.add(suite::run(&Plan { programs: host, args: args.args.clone(), shared: None })?);
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

/// Builds `hvb` without the Dynamic Memory device and returns a copy of it, since the next build
/// with the device replaces the file that cargo made.
pub(crate) fn build_without_device() -> Result<String> {
    let built = build(&["build", "--package", "hvb", "--bin", "hvb", "--no-default-features"])?;
    let copy = workspace::target().join("hvb-without-device");
    std::fs::copy(executable(built, "hvb")?, &copy)?;
    copy.into_os_string().into_string().map_err(|path| anyhow!("{}: not UTF-8", path.display()))
}

fn executable(artifacts: Vec<Artifact>, program: &str) -> Result<String> {
    let mut executables = artifacts.into_iter().filter(|artifact| artifact.target.name == program);
    let executable = executables.find_map(|artifact| artifact.executable);
    Ok(executable.with_context(|| format!("cargo built no {program}"))?.into_string())
}

fn doc_tests(args: &[String]) -> Result<Tally> {
    let mut cargo = workspace::cargo();
    cargo.args(["test", "--workspace", "--doc", "--quiet", "--"]).args(args);
    suite::run_one("examples in documentation", &mut cargo, false)
}

/// Runs the programs where KVM has Hyper-V, and makes sure that no test was lost on the way.
fn kvm_tests(programs: Vec<Program>, args: &TestArgs) -> Result<Tally> {
    ensure!(!programs.is_empty(), "no test program needs KVM, although some should");
    let mut names = Vec::new();
    for program in &programs {
        names.extend(list_tests(program, &args.args)?);
    }
    if names.is_empty() {
        ensure!(!args.args.is_empty(), "the test programs that need KVM contain no tests");
        println!("  no test matches {}", args.args.join(" "));
        return Ok(Tally::default());
    }
    let programs = for_each_kernel(programs, args.kernel, &args.args)?;
    let expected: usize = programs.iter().map(|(_, tests)| tests.len()).sum();
    let hvb = build_program("hvb", "hvb")?;
    let minimal_vmm = build_program("minimal_vmm", "minimal_vmm")?;

    let machines = match rig::emulates() {
        true => EMULATED_MACHINES.min(std::thread::available_parallelism()?.get()),
        false => 1,
    };
    let (reports, others) = split(programs, |test| test.contains(NEEDS_NEWER_KVM));
    let mut tally = Tally::default();
    let kernels = [(others, GuestKernel::Stable), (reports, GuestKernel::Backports)];
    let shares: Vec<Share> = kernels
        .into_iter()
        .map(|(tests, kernel)| Share::new(tests, kernel, options(&args.args)))
        .collect::<Result<_>>()?;
    let memory = rig::memory_mib(machines)?.to_string();
    let xtask = std::env::current_exe()?;
    let rig = |share: &Share| {
        let mut rig = workspace::mortal("TERM", xtask.as_os_str());
        rig.args(["rig", "--memory", &memory, "--timeout", RIG_LIMIT]);
        rig.args(["--kernel", share.kernel.name(), "--writable"]).arg(share.taken.path());
        rig.arg("--").arg(&xtask).arg("suite").arg(&share.plan);
        rig.env("HVB_BIN", &hvb).env("HVB_MINIMAL_VMM", &minimal_vmm);
        rig
    };
    for results in run_in_rigs(machines, &shares, rig) {
        tally.add(results?);
    }
    ensure!(
        tally.count() == u64::try_from(expected)?,
        "{expected} tests need KVM, but only {} were run: see above",
        tally.count()
    );
    Ok(tally)
}

/// Programs with the names of some of their tests.
type Tests = Vec<(Program, Vec<String>)>;

/// Those of the tests that match, and the others.
fn split(programs: Tests, matches: impl Fn(&str) -> bool) -> (Tests, Tests) {
    let (mut matching, mut others) = (Vec::new(), Vec::new());
    for (program, tests) in programs {
        let (a, b) = tests.into_iter().partition(|test| matches(test));
        matching.push((program.clone(), a));
        others.push((program, b));
    }
    (matching, others)
}

/// Tests for one kind of machine, which machines of this kind share.
struct Share {
    kernel: GuestKernel,
    count: usize,
    plan: PathBuf,
    taken: TempDir,
}

impl Share {
    fn new(tests: Tests, kernel: GuestKernel, args: Vec<String>) -> Result<Self> {
        let taken = tempfile::Builder::new().prefix("taken-").tempdir_in(workspace::target())?;
        let count = tests.iter().map(|(_, tests)| tests.len()).sum();
        let programs =
            tests.into_iter().map(|(program, args)| Program { args, ..program }).collect();
        let plan = Plan { programs, args, shared: Some(taken.path().into()) };
        let file = workspace::target().join(format!("kvm-tests-{}.json", kernel.name()));
        write_whole(&file, &serde_json::to_vec(&plan)?)?;
        Ok(Self { kernel, count, plan: file, taken })
    }

    /// Whether a machine would find nothing to do.
    fn is_done(&self) -> Result<bool> {
        Ok(Taken(self.taken.path()).count()? == self.count)
    }
}

/// The arguments for a program whose tests are given by name: no filters, and one test at a time,
/// for a guest needs all of the machine, especially an emulated one.
fn options(args: &[String]) -> Vec<String> {
    let mut options = vec!["--exact".to_owned()];
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--skip" => drop(args.next()),
            "--test-threads" => options.extend(args.next().map(|n| format!("--test-threads={n}"))),
            "--exact" => {}
            _ if arg.starts_with("--skip=") => {}
            _ if arg.starts_with('-') => options.push(arg.clone()),
            _ => {}
        }
    }
    if !options.iter().any(|option| option.starts_with("--test-threads")) {
        options.push("--test-threads=1".to_owned());
    }
    options
}

/// Whether a test runs with a kernel, so that both kernels together do not take longer than people will
/// wait: with the first one all that exist for one vCPU or for any number, but for the longest, and with
/// the second one, which gives two vCPUs where there is a choice, those that depend on the guest's
/// drivers. The others run with `--kernel`.
fn is_chosen(kernel: GuestKernel, test: &str) -> bool {
    const WITH_SECOND: [&str; 12] = [
        "hot_add::grows",
        "hot_add::memory_that_stays_offline",
        "kexec::a_kernel_that_knows_added",
        "life::monitor_resets",
        "minimal_vmm::",
        "pause::a_held_guest_stands_still",
        "recording::",
        "reports::reports_agree",
        "resize::bus_is_unloaded",
        "services::a_crashing",
        "services::a_guest_that_is_asked",
        "soak::some_steps",
    ];
    const NOT_WITH_FIRST: [&str; 3] =
        ["kexec::a_kernel_that_knows_added", "recording::", "soak::some_steps"];
    let is_one_of = |parts: &[&str]| parts.iter().any(|part| test.contains(part));
    match kernel {
        GuestKernel::Stable => !test.contains("::two_cpus") && !is_one_of(&NOT_WITH_FIRST),
        GuestKernel::Backports => !test.contains("::one_cpu") && is_one_of(&WITH_SECOND),
    }
}

/// Repeats the programs that boot a guest for each of its kernels, or only for the one requested, with
/// the tests of each that are to run.
fn for_each_kernel(
    programs: Vec<Program>,
    only: Option<GuestKernel>,
    args: &[String],
) -> Result<Tests> {
    let mut all = Vec::new();
    let (guests, others): (Vec<_>, Vec<_>) = programs.into_iter().partition(boots_guests);
    for program in others {
        let tests = list_tests(&program, args)?;
        all.push((program, tests));
    }
    for kernel in GuestKernel::ALL.into_iter().filter(|k| only.is_none_or(|only| only == *k)) {
        let guest = guest_image::build(kernel)?;
        for program in &guests {
            let mut tests = list_tests(program, args)?;
            tests.retain(|test| only.is_some() || is_chosen(kernel, test));
            let mut program = program.clone();
            program.label = format!("{} with Linux {}", program.label, guest.release);
            program.env = guest.environment()?.map(|(name, v)| (name.to_owned(), v)).into();
            all.push((program, tests));
        }
    }
    Ok(all)
}

/// Runs so many machines at the same time, each with one share after the other, and returns their results.
fn run_in_rigs(
    machines: usize,
    shares: &[Share],
    rig: impl Fn(&Share) -> Command + Sync,
) -> Vec<Result<Tally>> {
    let run = |machine: usize| {
        let mark = if machines == 1 { String::new() } else { format!("{}|", machine + 1) };
        let mut total = Tally::default();
        for share in shares {
            if !share.is_done()? {
                total.add(run_in_rig(&mut rig(share), &mark)?);
            }
        }
        Ok(total)
    };
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = (0..machines).map(|n| scope.spawn(move || run(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    })
}

/// Shows the output of the suite as it comes, each line after the mark, and takes the tally from
/// its end.
fn run_in_rig(rig: &mut Command, mark: &str) -> Result<Tally> {
    let mut child = rig.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut tally = None;
    for line in BufReader::new(child.stdout.take().context("no pipe")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        match suite::parse_total(&line) {
            Some(total) => tally = Some(total),
            None => println!("{mark}{line}"),
        }
    }
    let status = child.wait()?;
    match tally {
        Some(tally) if status.success() => Ok(tally),
        _ => bail!("the tests that need KVM did not run to their end ({status})"),
    }
}

/// The names of the tests of a program that match. Listing them needs no KVM.
fn list_tests(program: &Program, args: &[String]) -> Result<Vec<String>> {
    let mut command = Command::new(&program.executable);
    command
        .args(&program.args)
        .args(args)
        .args(["--list", "--format", "terse"])
        .current_dir(&program.dir);
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{} cannot list its tests", program.label);
    let lines = output.stdout.lines().map_while(Result::ok);
    Ok(lines.filter_map(|line| line.strip_suffix(": test").map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(label: &str) -> Program {
        Program {
            label: label.to_owned(),
            executable: "x".into(),
            dir: "/".into(),
            env: Vec::new(),
            args: vec!["--skip".to_owned(), "slow".to_owned()],
        }
    }

    #[test]
    fn tests_are_split_by_name_and_none_is_lost() {
        let tests = ["free_pages::a", "life::b"].map(str::to_owned).to_vec();
        let (reports, others) = split(vec![(program("p"), tests)], |t| t.contains(NEEDS_NEWER_KVM));
        assert_eq!(reports[0].1, ["free_pages::a"]);
        assert_eq!(others[0].1, ["life::b"]);
    }

    #[test]
    fn kernels_share_the_tests() {
        let with = |test| GuestKernel::ALL.map(|kernel| is_chosen(kernel, test));
        assert_eq!(with("bad_input::a_size"), [true, false]);
        assert_eq!(with("life::guest_reboots::one_cpu"), [true, false]);
        assert_eq!(with("minimal_vmm::grows::one_cpu"), [true, false]);
        assert_eq!(with("minimal_vmm::grows::two_cpus"), [false, true]);
        assert_eq!(with("reports::reports_agree_with"), [true, true]);
        assert_eq!(with("recording::a_recorded"), [false, true]);
    }

    #[test]
    fn filters_are_no_options() {
        let options =
            |line: &str| options(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ");
        assert_eq!(options("life"), "--exact --test-threads=1");
        assert_eq!(
            options("life --skip reset --nocapture --test-threads 3 --skip=x --exact"),
            "--exact --nocapture --test-threads=3"
        );
    }
}
