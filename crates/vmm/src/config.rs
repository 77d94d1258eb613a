//! The configuration of a VM.

use std::path::PathBuf;
use std::time::Duration;

use guest_ram::HugePages;
use virtio_devices::{Format, Mac};

use crate::confine::Seccomp;
use crate::console::SerialOutput;

/// The memory of a guest after a reset of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnReset {
    /// Its first boot size; a target set before is forgotten.
    #[default]
    BootSize,
    /// The size it had last; a target it was moving towards stays in force.
    KeepSize,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// The image: a file, or a block device.
    pub path: PathBuf,
    /// Its format; `None` to take it from the file's name (`virtio_devices::Image::open`).
    pub format: Option<Format>,
    /// Whether the guest may only read it.
    pub is_read_only: bool,
    /// The disk's name in the guest, of which 20 bytes count.
    pub id: Option<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// What it is connected to.
    pub link: LinkConfig,
    /// Its address; `None` for one that follows from the VM's first disk, or from its kernel.
    pub mac: Option<Mac>,
    /// Whether the host's kernel serves it.
    pub vhost: UseVhost,
}

/// Whether the host's kernel moves a card's frames, by vhost-net. That takes a tap interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UseVhost {
    /// Where this program may use it.
    #[default]
    Auto,
    /// Yes; it is an error if this program may not.
    On,
    /// No.
    Off,
}

/// What a network card is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkConfig {
    /// A `passt` that listens at this socket, or one to start.
    Passt(Option<PathBuf>),
    /// The tap interface of this name.
    Tap(String),
    /// The tap interface that is open as this descriptor.
    TapFd(i32),
}

/// Whether the guest can report the memory that it frees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreePageReporting {
    /// Yes, where the host can take reports: where KVM leaves extended hypercalls to this program,
    /// and guest memory is not of the host's huge page pool.
    #[default]
    Auto,
    /// Yes; it is an error if the host cannot take reports.
    On,
    /// No.
    Off,
}

/// The configuration of a VM.
#[derive(Clone, Debug)]
pub struct Config {
    /// The kernel, a bzImage or an unpacked one (`vmlinux`, ELF).
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: String,
    /// Number of vCPUs, 1 to [`Config::MAX_VCPUS`].
    pub vcpus: u8,
    /// Boot memory, in bytes: a multiple of the page size.
    pub memory_bytes: u64,
    /// The most memory the guest may grow to, in bytes: a multiple of the page size, and at least
    /// `memory_bytes`. Memory above `memory_bytes` can be added while the guest runs.
    pub max_memory_bytes: u64,
    /// The guest's memory after a reset.
    pub on_reset: OnReset,
    /// The monitor's socket, if there is to be a monitor.
    pub qmp: Option<PathBuf>,
    /// The destination of the serial port.
    pub serial: SerialOutput,
    /// A file to record the guest's whole VMBus and Dynamic Memory conversation to, if wanted
    /// (`bus_recording` has the format). An existing file is overwritten.
    pub record_bus: Option<PathBuf>,
    /// Whether the guest's memory pressure reports are emitted as events.
    pub status_reports: bool,
    /// The wait between the guest's capability report and the first request to it; `None` for as
    /// long as this kind of guest needs (`hv_balloon::Settle::Auto`).
    pub settle: Option<Duration>,
    /// The disks, in the order in which the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// The network cards, in the order in which the guest finds them.
    pub networks: Vec<NetConfig>,
    /// How long a guest that `SIGTERM` asks to shut down may take.
    pub grace: Duration,
    /// The pages that back guest memory.
    pub huge_pages: HugePages,
    /// Whether the guest can report the memory that it frees, so that the host has it back without
    /// being asked for a target.
    pub free_page_reporting: FreePageReporting,
    /// How to treat system calls that none of the VM's threads needs. The calling thread is
    /// confined for good, and so is every thread it starts afterwards.
    pub seccomp: Seccomp,
}

impl Config {
    /// The most vCPUs: APIC ids have 8 bits here, and the I/O APIC needs one.
    pub const MAX_VCPUS: u8 = 254;
}

#[cfg(test)]
pub(crate) mod tests {
    use page_range::PageCount;

    use super::*;

    /// The memory of [`small`].
    pub(crate) const SIZE: PageCount = PageCount::from_bytes(64 << 20);

    /// A machine of [`SIZE`] with no files.
    pub(crate) fn small() -> Config {
        Config {
            kernel: "k".into(),
            initrd: None,
            command_line: String::new(),
            vcpus: 1,
            memory_bytes: SIZE.bytes(),
            max_memory_bytes: SIZE.bytes(),
            on_reset: OnReset::default(),
            qmp: None,
            record_bus: None,
            serial: SerialOutput::None,
            status_reports: false,
            settle: None,
            huge_pages: HugePages::Off,
            free_page_reporting: FreePageReporting::Auto,
            seccomp: Seccomp::Off,
            disks: Vec::new(),
            networks: Vec::new(),
            grace: std::time::Duration::from_secs(20),
        }
    }
}
