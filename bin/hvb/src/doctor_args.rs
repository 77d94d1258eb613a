//! The arguments of `hvb doctor`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `hvb doctor`
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(
    after_help = "Exit status: 0 if nothing stops Dynamic Memory, 1 if something does, 2 if it could \
                  not be looked at."
)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) target: Target,

    /// The guest's family, where nothing tells it: leaves out what concerns the other.
    #[arg(long, value_name = "FAMILY", value_enum)]
    pub(crate) guest: Option<GuestArg>,

    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The virtual machine; without one, the host alone is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[group(multiple = false)]
pub(crate) struct Target {
    /// A QEMU that runs, by the number of its process.
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Option<u32>,

    /// Name of a virtual machine, or path of its monitor (QMP) socket: QEMU's or hvb's.
    #[arg(long, value_name = "VM", value_parser = crate::names::socket)]
    pub(crate) socket: Option<PathBuf>,

    /// File with a QEMU command line, as in a shell; - is the standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) command_line: Option<PathBuf>,

    /// File with a libvirt domain, as `virsh dumpxml` prints it; - is the standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) xml: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuestArg {
    Linux,
    Windows,
}
