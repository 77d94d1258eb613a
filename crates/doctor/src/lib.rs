#![forbid(unsafe_code)]
//! What stops Hyper-V Dynamic Memory: in a QEMU's command line, in a libvirt domain, behind a monitor,
//! and on a host.
//!
//! The crate does no I/O. It takes texts and answers, and gives [`Finding`]s with the exact text that
//! puts each right:
//!
//! - [`command_line`] splits a command line as a shell does, or takes the words of a process;
//! - [`libvirt`] reads a domain's XML, as the options that libvirt makes of it;
//! - [`Description::of_options`] understands such options, and files of `-readconfig`;
//! - [`monitor`] asks a QEMU, and [`own`] reads what `hvb` answers;
//! - [`examine`] holds a description against what VMBus and the guest's driver need;
//! - [`host`] does the same with a host's figures.
//!
//! All input is foreign. It is bounded ([`MAX_TEXT_BYTES`]), and what cannot be understood is an
//! [`Unreadable`] or a *gap*, which the report names.

pub mod command_line;
mod config_file;
mod cpu;
mod description;
mod dialect;
mod finding;
pub mod host;
mod layout;
pub mod libvirt;
pub mod monitor;
mod options;
pub mod own;
mod render;
mod rules;
mod size;

pub use description::{Backend, Chipset, Description, HvBalloon, Memory, Origin, ReadConfig};
pub use finding::{Finding, Guest, Guests, Level, Remedy, Report, Section};
pub use options::OptionList;
pub use rules::examine;

/// The longest text that is read, in bytes. The longest command lines and domains have some hundred
/// kilobytes.
pub const MAX_TEXT_BYTES: usize = 4 << 20;

/// Why a text says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is too long.
    #[error("longer than {} MiB: this is no command line and no domain", MAX_TEXT_BYTES >> 20)]
    TooLong,
    /// A quote has no end.
    #[error("a quote is not closed, or the text ends in a backslash: give the whole command line")]
    OpenQuote,
    /// No QEMU is started there.
    #[error(
        "there is no QEMU in it: give the words from qemu-system-x86_64 on, or options that begin with '-'"
    )]
    NoQemu,
    /// It is XML.
    #[error("this is XML: give it with --xml")]
    IsXml,
    /// It is our own VMM.
    #[error("this is hvb, which has what its guest needs: give its monitor with --socket")]
    Hvb,
    /// It is no XML.
    #[error("not XML: {0}")]
    Xml(String),
    /// The XML has no domain.
    #[error("there is no <domain> in it: give what `virsh dumpxml NAME` prints")]
    NoDomain,
    /// The domain is another hypervisor's.
    #[error("a domain of type '{0}': only those of QEMU (kvm, qemu) can have hv-balloon")]
    Hypervisor(String),
}
