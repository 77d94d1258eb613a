//! The command line. Stable: options are added, not changed.

use crate::size::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use vmm::{DiskConfig, NetConfig};

/// Maximum number of vCPUs: with more, APIC IDs need more than 8 bits.
const MAX_CPUS: u32 = 254;

/// Maximum wait, in seconds.
const MAX_SECONDS: u64 = 24 * 60 * 60;

/// Boot and resize virtual machines with Hyper-V Dynamic Memory.
#[derive(Debug, Parser)]
#[command(name = "hvb", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = "HVB_LOG sets what is logged to stderr, for example HVB_LOG=debug.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a Linux kernel in a virtual machine.
    Run(Box<RunArgs>),
    /// Set the memory of a running virtual machine.
    Balloon(BalloonArgs),
    /// Show the state of a running virtual machine.
    Info(InfoArgs),
    /// Ask the guest of a running virtual machine to shut down, and end the machine if it does not.
    Stop(StopArgs),
    /// List the virtual machines that have a name.
    List,
    /// Keep all virtual machines of this host at the memory that they need.
    Balance(Box<crate::balance_args::BalanceArgs>),
    /// Show the host and all virtual machines, their memory and what was done last, once a second.
    Top(Box<crate::top_args::TopArgs>),
    /// Say what stops Dynamic Memory on this host and in a virtual machine, and what puts it right.
    Doctor(crate::doctor_args::DoctorArgs),
    /// Write man pages and completions for shells, for packages of hvb.
    #[command(hide = true)]
    Generate(GenerateArgs),
}

/// `hvb generate`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct GenerateArgs {
    /// Directory with the layout of /usr/share.
    pub(crate) directory: PathBuf,
}

/// `hvb run`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(args_override_self = true)]
pub(crate) struct RunArgs {
    /// File with options, as NAME = VALUE in TOML. Options of the command line win, and add to lists.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Print all options as a file for --config, and end.
    #[arg(long)]
    pub(crate) print_config: bool,

    /// Name of the machine, for `hvb list` and the other commands. Its monitor socket is
    /// /run/hvb/NAME.sock, or in $XDG_RUNTIME_DIR/hvb for users other than root, or in $HVB_RUN_DIR.
    #[arg(long, value_name = "NAME", value_parser = crate::names::name)]
    pub(crate) name: Option<String>,

    /// Linux kernel to boot (bzImage, or vmlinux, which starts sooner).
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,

    /// Initial RAM disk for the kernel.
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Kernel command line.
    #[arg(long, value_name = "STRING", default_value = "", allow_hyphen_values = true)]
    pub(crate) append: String,

    /// Number of virtual CPUs.
    #[arg(long, value_name = "N", default_value = "1", value_parser = cpus)]
    pub(crate) cpus: u32,

    /// Memory the guest boots with, for example 512M or 4G.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = page_multiple)]
    pub(crate) memory: ByteSize,

    /// Memory the guest may grow to; defaults to its boot memory. What exceeds that should be a
    /// multiple of the guest's alignment, which is 128M for Linux.
    #[arg(long, value_name = "SIZE", value_parser = page_multiple)]
    pub(crate) max_memory: Option<ByteSize>,

    /// Disk: an image file or block device. May be given several times. Without a format, a name
    /// that ends with .qcow2 means qcow2, and any other raw.
    #[arg(
        long,
        value_name = "FILE[,readonly][,format=raw|qcow2][,id=NAME]",
        value_parser = crate::disk::parse
    )]
    pub(crate) disk: Vec<DiskConfig>,

    /// Network card: passt starts passt, passt=SOCKET connects to one that runs, tap=NAME opens a tap
    /// interface, tap-fd=N takes over one that is open. With a tap interface, the host's kernel moves
    /// the frames if /dev/vhost-net can be opened, unless vhost=off; vhost=on makes it an error if it
    /// cannot. May be given several times. Without an address, the card has one that follows from the path of the first writable disk, or of the
    /// monitor socket, or of the kernel.
    #[arg(
        long,
        value_name = "passt[=SOCKET]|tap=NAME|tap-fd=N[,mac=MAC][,vhost=on|off|auto]",
        value_parser = crate::network::parse
    )]
    pub(crate) net: Vec<NetConfig>,

    /// Path at which to create a monitor (QMP) socket, instead of the one that the name gives.
    #[arg(long, value_name = "PATH")]
    pub(crate) qmp: Option<PathBuf>,

    /// Destination of the guest's serial console: stdio, file:PATH or none.
    #[arg(long, value_name = "WHERE", default_value = "stdio", value_parser = serial)]
    pub(crate) serial: Serial,

    /// Have the guest report its memory pressure every second.
    #[arg(long)]
    pub(crate) status_report: bool,

    /// File to record the guest's whole VMBus and Dynamic Memory conversation to, for a report or a
    /// replay. It holds messages and ring packets, and no other guest memory.
    #[arg(long, value_name = "FILE")]
    pub(crate) record_bus: Option<PathBuf>,

    /// Wait before the first request to a new guest: auto or SECONDS. auto means 50 s, which
    /// Windows needs, or no wait for Linux.
    #[arg(long, value_name = "SECONDS", default_value = "auto", value_parser = settle)]
    pub(crate) settle: Settle,

    /// Huge pages for guest memory.
    #[arg(long, value_name = "KIND", value_enum, default_value = "thp")]
    pub(crate) hugepages: HugePages,

    /// Lets the guest report memory that it frees, which the host then has back without a target:
    /// [default: on, where the host can].
    #[arg(long, value_name = "SWITCH", value_enum)]
    pub(crate) free_page_reporting: Option<Switch>,

    /// Memory of the guest after a reset.
    #[arg(long, value_name = "SIZE", value_enum, default_value = "boot-size")]
    pub(crate) on_reset: OnReset,

    /// How long a guest may take to shut down that SIGTERM or SIGHUP asks to; then the machine is ended.
    /// A second SIGTERM ends it at once, and so does SIGINT.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = any_seconds)]
    pub(crate) grace: Duration,

    /// System calls that hvb does not need: on ends hvb with a message, log has the kernel log
    /// them, off allows them.
    #[arg(long, value_name = "MODE", value_enum, default_value = "on")]
    pub(crate) seccomp: Seccomp,
}

/// `hvb balloon`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct BalloonArgs {
    /// Name of the virtual machine, or path of its monitor (QMP) socket.
    #[arg(value_name = "VM", value_parser = crate::names::socket)]
    pub(crate) socket: PathBuf,

    /// New memory size of the guest, for example 512M or 4G.
    #[arg(value_parser = size)]
    pub(crate) size: ByteSize,

    /// Wait until the guest has reached this size.
    #[arg(long)]
    pub(crate) wait: bool,

    /// With --wait: give up after this long without progress.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

/// `hvb info`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct InfoArgs {
    /// Name of the virtual machine, or path of its monitor (QMP) socket.
    #[arg(value_name = "VM", value_parser = crate::names::socket)]
    pub(crate) socket: PathBuf,

    /// Write what the machine's flight recorder holds to this file, with the state of vCPUs, threads
    /// and balloon, for a report on a guest that hangs.
    #[arg(long, value_name = "FILE")]
    pub(crate) dump: Option<PathBuf>,
}

/// `hvb stop`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    after_help = "Exit status: 0 if the guest shut down, 3 if the machine was ended without it, \
                        1 if the guest cannot be asked."
)]
pub(crate) struct StopArgs {
    /// Name of the virtual machine, or path of its monitor (QMP) socket.
    #[arg(value_name = "VM", value_parser = crate::names::socket)]
    pub(crate) socket: PathBuf,

    /// End the machine after this long; 0 ends it without asking the guest.
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = any_seconds)]
    pub(crate) timeout: Duration,
}

/// Whether to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    /// Do it.
    On,
    /// Do not.
    Off,
}

/// Destination of the guest's serial console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Serial {
    Stdio,
    File(PathBuf),
    None,
}

/// The wait before the first request to a new guest; `None` for as long as this kind of guest needs.
/// The command line parser would take an `Option` for an option that may be left out.
pub(crate) type Settle = Option<Duration>;

/// Huge pages for guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HugePages {
    /// Small pages only.
    Off,
    /// Transparent huge pages where the host has them.
    Thp,
    /// 2 MiB pages from the host's pool.
    #[value(name = "2M")]
    Mib2,
    /// 1 GiB pages from the host's pool.
    #[value(name = "1G")]
    Gib1,
}

/// The memory of a guest after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnReset {
    /// The boot size.
    BootSize,
    /// The size it had, or was moving to.
    KeepSize,
}

/// The effect of system calls that `hvb run` does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Seccomp {
    /// End hvb with a message that names the call.
    On,
    /// Allow them, and have the kernel log them.
    Log,
    /// Allow them.
    Off,
}

pub(crate) fn size(text: &str) -> Result<ByteSize, String> {
    text.parse().map_err(|error| format!("invalid size '{text}': {error}"))
}

fn page_multiple(text: &str) -> Result<ByteSize, String> {
    let size = size(text)?;
    if size.bytes() % 4096 != 0 {
        return Err(format!("invalid size '{text}': memory comes in pages of 4096 bytes"));
    }
    Ok(size)
}

fn cpus(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(0) => Err(format!("invalid number of vCPUs '{text}': a guest needs at least 1")),
        Ok(count @ 1..=MAX_CPUS) => Ok(count),
        _ => Err(format!("invalid number of vCPUs '{text}': give a number from 1 to {MAX_CPUS}")),
    }
}

fn serial(text: &str) -> Result<Serial, String> {
    match text.split_once(':') {
        None if text == "stdio" => Ok(Serial::Stdio),
        None if text == "none" => Ok(Serial::None),
        Some(("file", path)) if !path.is_empty() => Ok(Serial::File(path.into())),
        _ => Err(format!("invalid serial console '{text}': give stdio, file:PATH or none")),
    }
}

fn settle(text: &str) -> Result<Settle, String> {
    match text {
        "auto" => Ok(None),
        _ => Ok(Some(whole_seconds(text).ok_or_else(|| {
            format!("invalid wait '{text}': give auto or seconds from 0 to {MAX_SECONDS}")
        })?)),
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    whole_seconds(text)
        .filter(|time| !time.is_zero())
        .ok_or_else(|| format!("invalid time '{text}': give seconds from 1 to {MAX_SECONDS}"))
}

fn any_seconds(text: &str) -> Result<Duration, String> {
    whole_seconds(text)
        .ok_or_else(|| format!("invalid time '{text}': give seconds from 0 to {MAX_SECONDS}"))
}

fn whole_seconds(text: &str) -> Option<Duration> {
    let seconds = text.parse().ok().filter(|&seconds: &u64| seconds <= MAX_SECONDS)?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(arguments: &str) -> RunArgs {
        let words = ["hvb", "run", "--kernel", "k"].into_iter().chain(arguments.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(arguments) => *arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_has_defaults() {
        let expected = RunArgs {
            config: None,
            print_config: false,
            name: None,
            kernel: "k".into(),
            initrd: None,
            append: String::new(),
            cpus: 1,
            memory: "1G".parse().unwrap(),
            max_memory: None,
            qmp: None,
            serial: Serial::Stdio,
            status_report: false,
            disk: Vec::new(),
            net: Vec::new(),
            record_bus: None,
            settle: None,
            hugepages: HugePages::Thp,
            free_page_reporting: None,
            on_reset: OnReset::BootSize,
            grace: Duration::from_secs(60),
            seccomp: Seccomp::On,
        };
        assert_eq!(run(""), expected);
    }

    #[test]
    fn run_takes_every_option() {
        let expected = RunArgs {
            config: None,
            print_config: false,
            name: None,
            kernel: "k".into(),
            initrd: Some("i".into()),
            append: "-x=1".into(),
            cpus: 4,
            memory: "512M".parse().unwrap(),
            max_memory: Some("4G".parse().unwrap()),
            qmp: Some("q".into()),
            serial: Serial::File("log:1".into()),
            status_report: true,
            disk: Vec::new(),
            net: Vec::new(),
            record_bus: Some("bus".into()),
            settle: Some(Duration::from_secs(3)),
            hugepages: HugePages::Mib2,
            free_page_reporting: Some(Switch::Off),
            on_reset: OnReset::KeepSize,
            grace: Duration::from_secs(5),
            seccomp: Seccomp::Log,
        };
        let arguments = "--initrd i --append -x=1 --cpus 4 --memory 512M --max-memory 4G --qmp q \
                         --serial file:log:1 --status-report --settle 3 --hugepages 2M \
                         --on-reset keep-size --grace 5 --seccomp log --record-bus bus \
                         --free-page-reporting off";
        assert_eq!(run(arguments), expected);
        assert_eq!(run("--hugepages 1G --serial none").hugepages, HugePages::Gib1);
    }

    #[test]
    fn values_are_checked() {
        assert!(cpus("0").unwrap_err().contains("at least 1"));
        assert!(cpus("255").unwrap_err().contains("1 to 254"));
        assert!(cpus("two").is_err());
        assert_eq!(cpus("254"), Ok(254));
        assert!(serial("file:").is_err());
        assert!(serial("tcp:1").is_err());
        assert!(settle("-1").is_err());
        assert!(settle("86401").is_err());
        assert_eq!(settle("0"), Ok(Some(Duration::ZERO)));
        assert!(seconds("0").is_err());
        assert_eq!(any_seconds("0"), Ok(Duration::ZERO));
        assert!(any_seconds("soon").unwrap_err().starts_with("invalid time 'soon': give seconds"));
        assert!(page_multiple("4097").is_err());
        assert!(size("12Q").unwrap_err().starts_with("invalid size '12Q': "));
    }
}
