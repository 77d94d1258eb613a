//! `hvb doctor`: what stops Dynamic Memory. Everything is read, and nothing changed.

mod file;
mod host;
mod socket;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use doctor::command_line::Invocation;
use doctor::{Description, Guest, Level, Report, Section, Unreadable, command_line, libvirt, own};

use crate::doctor_args::{DoctorArgs, GuestArg, Target};
use crate::report;
use host::Process;

/// Exit status if something could not be looked at.
const NOT_LOOKED_AT: u8 = 2;

/// A VM that was looked at.
enum Machine {
    Qemu(Box<Description>),
    Own(own::Own),
}

impl Machine {
    fn examine(&self) -> Section {
        match self {
            Self::Qemu(machine) => doctor::examine(machine),
            Self::Own(own) => own::examine(own),
        }
    }

    /// The bytes that it can have at most.
    fn most(&self) -> Option<u64> {
        match self {
            Self::Qemu(machine) => machine.most(),
            Self::Own(own) => Some(own.maximum),
        }
    }
}

/// Looks, and reports.
pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    match look(args).and_then(|report| print(&report, args.json).map(|()| report)) {
        Ok(report) => match report.level() {
            Level::Stops => ExitCode::FAILURE,
            Level::Unknown => ExitCode::from(NOT_LOOKED_AT),
            Level::Fine | Level::Note | Level::Limits if is_unknown(&report) => {
                ExitCode::from(NOT_LOOKED_AT)
            }
            Level::Fine | Level::Note | Level::Limits => ExitCode::SUCCESS,
        },
        Err(error) => {
            report::failure(&error);
            ExitCode::from(NOT_LOOKED_AT)
        }
    }
}

fn is_unknown(report: &Report) -> bool {
    let mut all = report.sections.iter().flat_map(|section| &section.findings);
    all.any(|finding| finding.level == Level::Unknown)
}

fn print(report: &Report, json: bool) -> Result<()> {
    match json {
        true => report::line(&serde_json::to_string(report)?),
        false => report::text(&report.to_string()),
    }
}

fn look(args: &DoctorArgs) -> Result<Report> {
    let (machine, pid) = match &args.target {
        Target { pid: Some(pid), .. } => (Some(process(*pid)?), Some(*pid)),
        Target { socket: Some(socket), .. } => {
            let (machine, pid) = socket::read(socket)?;
            (Some(machine), pid)
        }
        Target { command_line: Some(file), .. } => {
            let invocation = command_line::of_text(&file::text(file)?);
            let invocation = invocation.with_context(|| file.display().to_string())?;
            (Some(understand(&invocation, file.parent().unwrap_or(Path::new(".")))), None)
        }
        Target { xml: Some(file), .. } => {
            let text = file::text(file)?;
            let found = libvirt::read(&text, &mut |name| file::beside(Path::new("/"), name));
            let found = found.with_context(|| file.display().to_string())?;
            (Some(Machine::Qemu(Box::new(found))), None)
        }
        Target { .. } => (None, None),
    };
    let machine = machine.map(|machine| match (machine, args.guest) {
        (Machine::Qemu(mut machine), Some(guest)) => {
            machine.guest = Some(match guest {
                GuestArg::Linux => Guest::Linux,
                GuestArg::Windows => Guest::Windows,
            });
            Machine::Qemu(machine)
        }
        (machine, _) => machine,
    });
    let root = Path::new("/");
    let mut processes = Process::all(root);
    if let (Some(machine), Some(pid)) = (&machine, pid) {
        let most = machine.most();
        processes.retain(|process| process.pid != pid);
        processes.push(Process { pid, name: format!("with process {pid}"), most });
    }
    let figures = doctor::host::Host { kvm: host::kvm(), ..host::read(root, &processes) };
    let sections = std::iter::once(doctor::host::examine(&figures));
    Ok(Report { sections: sections.chain(machine.as_ref().map(Machine::examine)).collect() })
}

/// A process, by its command line.
fn process(pid: u32) -> Result<Machine> {
    let directory = Path::new("/proc").join(pid.to_string());
    let words = file::words(&directory)?;
    match command_line::of_words(&words) {
        Ok(invocation) => Ok(understand_in(&directory, &invocation)),
        Err(Unreadable::Hvb) => {
            let socket = own_socket(&directory, &words)
                .context("this hvb has no monitor: start it with --name or --qmp")?;
            Ok(socket::read(&socket)?.0)
        }
        Err(error) => Err(error).with_context(|| format!("process {pid}")),
    }
}

/// Files that a process names are in its own root and working directory.
fn understand_in(process: &Path, invocation: &Invocation) -> Machine {
    let mut read = |name: &str| {
        let below = match Path::new(name).strip_prefix("/") {
            Ok(inner) => process.join("root").join(inner),
            Err(_) => process.join("cwd").join(name),
        };
        file::limited(&below).map_err(|error| format!("{error:#}"))
    };
    Machine::Qemu(Box::new(Description::of_options(invocation, &mut read)))
}

fn understand(invocation: &Invocation, directory: &Path) -> Machine {
    let mut read = |name: &str| file::beside(directory, name);
    Machine::Qemu(Box::new(Description::of_options(invocation, &mut read)))
}

/// The monitor of an `hvb run`, by its words.
fn own_socket(process: &Path, words: &[String]) -> Option<std::path::PathBuf> {
    let value = |option: &str| {
        let assigned = words.iter().find_map(|word| word.strip_prefix(option)?.strip_prefix('='));
        let next = || words.iter().skip_while(|word| *word != option).nth(1).map(String::as_str);
        assigned.or_else(next)
    };
    match (value("--qmp"), value("--name")) {
        // A path from the root is not below the process's directory: `join` replaces it.
        (Some(path), _) => Some(process.join("cwd").join(path)),
        (None, Some(name)) => crate::names::socket_of(name).ok(),
        (None, None) => None,
    }
}
