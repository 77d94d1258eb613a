//! The rig: runs a command where KVM can be a Hyper-V host.
//!
//! If this machine's KVM can, the command simply runs. Otherwise QEMU's software emulation of a
//! processor with SVM runs Debian's kernel, whose `kvm_amd` supports all of Hyper-V, and the
//! command runs in that machine, on this machine's files: read-only, under a writable layer that is
//! discarded.

pub(crate) mod emulator;
pub(crate) mod host;
mod link;
mod machine;
mod terminal;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use guest_agent::boot::USUAL_MODULES;
use guest_agent::rig::{JOB_FILE, Job};

use crate::guest_image::initramfs::Initramfs;
use crate::guest_image::{self, GuestKernel, kernels, modules};
use host::HyperV;
use machine::Machine;

/// The exit status when the rig itself failed, not the command in it.
const RIG_FAILED: u8 = 125;

/// `cargo xtask rig`.
#[derive(Debug, clap::Args)]
pub(crate) struct RigArgs {
    /// Processors of the emulated machine. With more than one, QEMU loses nested guests: see
    /// docs/rig.md.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: u32,
    /// Memory of the emulated machine in MiB, or with a suffix M or G [default: 60 % of this
    /// machine's, at most 12G].
    #[arg(long, value_parser = parse_memory)]
    pub(crate) memory: Option<u64>,
    /// Ends the command after this many seconds [default: never].
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// A directory in which the command may make permanent changes; may be given several times.
    #[arg(long, value_name = "DIR")]
    pub(crate) writable: Vec<PathBuf>,
    /// Emulates all processors in one host thread, or each in its own.
    #[arg(long, value_enum, default_value = "multi")]
    pub(crate) threads: machine::Threads,
    /// The kernel of the emulated machine. The stable one of Debian 12 (Linux 6.1) does not leave
    /// extended hypercalls to hvb, so guests cannot report free pages there.
    #[arg(long, value_enum, default_value = "stable")]
    pub(crate) kernel: GuestKernel,
    /// A kernel parameter for the emulated machine; may be given several times.
    #[arg(long, value_name = "PARAMETER")]
    pub(crate) append: Vec<String>,
    /// Emulates even if it is not needed.
    #[arg(long)]
    pub(crate) emulate: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

/// Runs the command and returns its exit status, or 125 if the rig itself failed.
pub(crate) fn main(args: &RigArgs) -> ExitCode {
    let outcome = match host::probe() {
        HyperV::Present if !args.emulate => exec(&args.command),
        HyperV::Present => emulate(args, "asked to"),
        HyperV::Absent(reason) => emulate(args, &reason),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: rig: {error:#}");
        ExitCode::from(RIG_FAILED)
    })
}

/// Obtains everything that an emulated machine needs.
///
/// # Errors
///
/// Something cannot be installed, downloaded or built.
pub(crate) fn prepare() -> Result<()> {
    emulator::get()?;
    for kernel in GuestKernel::ALL {
        initramfs(kernel, None)?;
    }
    Ok(())
}

fn exec(command: &[String]) -> Result<ExitCode> {
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    Err(error).with_context(|| command[0].clone())
}

/// Whether commands run in an emulated machine, as KVM has no Hyper-V support here.
pub(crate) fn emulates() -> bool {
    matches!(host::probe(), HyperV::Absent(_))
}

/// The memory of an emulated machine, in MiB, when `machines` of them share this one.
///
/// # Errors
///
/// This machine does not tell its memory.
pub(crate) fn memory_mib(machines: usize) -> Result<u64> {
    let share = host::memory_mib()? * 6 / 10 / u64::try_from(machines.max(1))?;
    Ok(share.min(12 * 1024))
}

fn emulate(args: &RigArgs, reason: &str) -> Result<ExitCode> {
    let memory_mib = match args.memory {
        Some(mib) => mib,
        None => memory_mib(1)?,
    };
    let job = job(args)?;
    eprintln!(
        "rig: {reason}, so this runs in an emulated machine that has it ({} CPUs, {} MiB)",
        args.cpus, memory_mib
    );
    let spec = machine::Spec {
        emulator: emulator::get()?,
        kernel: kernels::get(args.kernel.for_rig())?.image,
        initramfs: initramfs(args.kernel, Some(&job))?,
        cpus: args.cpus,
        memory_mib,
        threads: args.threads,
        append: args.append.clone(),
        writable: job.writable.clone(),
    };
    let terminal = job.terminal.is_some();
    let machine = Machine::start(&spec)?;
    link::relay(machine, terminal, args.timeout.map(Duration::from_secs))
}

fn initramfs(kernel: GuestKernel, job: Option<&Job>) -> Result<Vec<u8>> {
    const MODULES: [&str; 9] = [
        "virtio_pci",
        "virtio_console",
        "9pnet_virtio",
        "9p",
        "overlay",
        "kvm",
        "kvm_amd",
        "tun",
        "vhost_net",
    ];
    let kernel = kernels::get(kernel.for_rig())?;
    let mut image = Initramfs::default();
    image.add_program("/init", &guest_image::static_program("rig_init")?)?;
    image.add_modules(USUAL_MODULES, &modules::with_dependencies(&kernel.modules, &MODULES)?)?;
    if let Some(job) = job {
        image.add_file(JOB_FILE, &serde_json::to_vec(job)?)?;
    }
    image.finish()
}

fn job(args: &RigArgs) -> Result<Job> {
    let mut writable = Vec::new();
    for (n, dir) in args.writable.iter().enumerate() {
        std::fs::create_dir_all(dir)?;
        writable.push((format!("writable{n}"), dir.canonicalize()?));
    }
    Ok(Job {
        command: args.command.clone(),
        env: std::env::vars().filter(|(name, _)| is_passed(name)).collect(),
        cwd: std::env::current_dir()?,
        writable,
        terminal: terminal::size_if_interactive(),
    })
}

/// Whether to pass a variable of the caller's environment to the command in the rig.
fn is_passed(name: &str) -> bool {
    const NAMES: [&str; 11] = [
        "PATH",
        "HOME",
        "USER",
        "LANG",
        "LC_ALL",
        "TERM",
        "TZ",
        "TMPDIR",
        "CI",
        "NO_COLOR",
        "LD_LIBRARY_PATH",
    ];
    const PREFIXES: [&str; 4] = ["RUST", "CARGO_", "HVB_", "HV_BALLOON_"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Parses a size in MiB, or with a suffix M or G.
pub(crate) fn parse_mib(text: &str) -> Result<u64> {
    let (digits, unit) = match text.strip_suffix(['G', 'g']) {
        Some(digits) => (digits, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    let count: u64 = digits.parse().context("not a size such as 4096, 4096M or 4G")?;
    count.checked_mul(unit).context("too large")
}

fn parse_memory(text: &str) -> Result<u64> {
    let mib = parse_mib(text)?;
    ensure!(mib >= 512, "less than the 512 MiB that the emulated machine needs");
    Ok(mib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mebibytes_unless_they_say_otherwise() {
        assert_eq!(parse_mib("4096").unwrap(), 4096);
        assert_eq!(parse_mib("4096M").unwrap(), 4096);
        assert_eq!(parse_mib("4G").unwrap(), 4096);
        for bad in ["", "G", "4T", "-1", "100", "99999999999999999999G"] {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_gets_what_configures_it_and_not_the_rest() {
        assert!(["PATH", "RUST_LOG", "CARGO_MANIFEST_DIR", "HVB_BIN"].into_iter().all(is_passed));
        assert!(!["SSH_AUTH_SOCK", "DISPLAY", "PWD"].into_iter().any(is_passed));
    }
}
