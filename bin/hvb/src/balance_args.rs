//! The arguments of `hvb balance`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::cli::{seconds, size};
use crate::size::ByteSize;

/// `hvb balance`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BalanceArgs {
    #[command(subcommand)]
    pub(crate) command: Option<BalanceCommand>,

    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct DaemonArgs {
    /// File with settings in TOML. It is read again when it changes, and on SIGHUP.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Monitor (QMP) sockets of the virtual machines: paths with wildcards, which name the machines. May
    /// be given several times [default: those of machines with a name].
    #[arg(long, value_name = "GLOB")]
    pub(crate) vms: Vec<String>,

    /// Decide and log, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Check the file, print all settings as such a file, and end.
    #[arg(long)]
    pub(crate) check: bool,

    /// File to record all samples and decisions to, for `hvb balance replay` and `plot`. A recording
    /// that is there is continued. It grows without end.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,

    /// What becomes of the machines when the balancer ends.
    #[arg(long, value_name = "WHAT", value_enum, default_value = "keep")]
    pub(crate) on_exit: OnExitArg,

    /// Serve metrics, JSON and a page over HTTP on this address: a port of the loopback interface, or an
    /// IP address with a port.
    #[arg(long, value_name = "ADDRESS", value_parser = crate::listen::address)]
    pub(crate) listen: Option<SocketAddr>,

    /// File with the token that HTTP clients must give. Addresses that other hosts can reach need one.
    #[arg(long, value_name = "FILE", requires = "listen")]
    pub(crate) listen_token_file: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) control: ControlArgs,
}

#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct ControlArgs {
    /// Control socket of the balancer [default: balance.control, where the sockets of machines with a
    /// name are].
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExitArg {
    /// They keep what they have.
    Keep,
    /// Those that have less than they booted with get it back.
    GiveBack,
}

/// Commands to a balancer that runs.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum BalanceCommand {
    /// Show the host and all machines.
    Status {
        /// Print JSON, with sizes in KiB.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Say why a machine has the memory that it has.
    Explain {
        /// Name of the machine.
        vm: String,
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Change settings of a machine until the balancer ends.
    Set {
        /// Name of the machine.
        vm: String,
        /// Settings as in the file: startup, minimum, maximum, buffer, weight, hold.
        #[arg(value_name = "KEY=VALUE", required = true)]
        settings: Vec<String>,
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Free memory for a machine that is about to start, and say when it is there.
    Reserve {
        /// How much.
        #[arg(value_parser = size)]
        size: ByteSize,
        /// Keep it free this long, or until a new machine is there.
        #[arg(long = "for", value_name = "SECONDS", default_value = "300", value_parser = seconds)]
        lasting: Duration,
        /// Give up after this long.
        #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
        timeout: Duration,
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Leave a machine as it is.
    Hold {
        /// Name of the machine.
        vm: String,
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Balance a machine again.
    Release {
        /// Name of the machine.
        vm: String,
        #[command(flatten)]
        control: ControlArgs,
    },
    /// Make the decisions of a recording again, and say whether they are the same.
    Replay {
        /// What `hvb balance --record` wrote.
        file: PathBuf,
        /// Show what these settings would have decided instead. The machines do what they did then.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Draw a recording as a timeline: memory and pressure of the host and of each machine.
    Plot {
        /// What `hvb balance --record` wrote.
        file: PathBuf,
        /// The picture to write (SVG).
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// A machine to draw. May be given several times [default: all].
        #[arg(long = "vm", value_name = "VM")]
        vms: Vec<String>,
    },
    /// Play scenarios with the balancer's policy on a simulated host, and show what comes of it.
    Simulate {
        /// Scenarios in TOML.
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        /// File with settings of the balancer, whose policy and host's reserve to play with.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}
