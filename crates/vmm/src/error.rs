//! Errors on the host's side. Each text names what failed and, where there is one, the remedy.

use std::io;
use std::path::PathBuf;

use guest_ram::{PoolError, RamError, RamPart};
use kvm_hyperv::probe::ProbeError;
use thiserror::Error;
use virtio_devices::VhostError;
use vm_memory::GuestMemoryError;

/// The guest could not be loaded.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file cannot be opened.
    #[error("cannot open the {what} '{}'", path.display())]
    Open {
        /// Which file.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path names a directory or a device.
    #[error("the {what} '{}' is not a regular file", path.display())]
    NotAFile {
        /// Which file.
        what: &'static str,
        /// Its name.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read '{}'", path.display())]
    Read {
        /// Its name.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel has another format.
    #[error("'{}' is no Linux kernel (bzImage or ELF): take one such as a distribution's /boot/vmlinuz-*", path.display())]
    NotAKernel {
        /// Its name.
        path: PathBuf,
    },
    /// The kernel is damaged, or does not fit.
    #[error("cannot load the kernel '{}': is it whole, and does it fit into --memory?", path.display())]
    Kernel {
        /// Its name.
        path: PathBuf,
        /// Why.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The kernel has no 64-bit entry.
    #[error("'{}' is not a 64-bit kernel: take one for x86-64", path.display())]
    Not64Bit {
        /// Its name.
        path: PathBuf,
    },
    /// The kernel does not fit.
    #[error(
        "the kernel '{}' needs {need_mib} MiB to start, and the guest has {room_mib} MiB below \
         4 GiB: give it more with --memory",
        path.display()
    )]
    KernelTooBig {
        /// Its name.
        path: PathBuf,
        /// Memory it needs.
        need_mib: u64,
        /// Memory there is.
        room_mib: u64,
    },
    /// The initrd does not fit.
    #[error(
        "the initrd '{}' of {size_mib} MiB does not fit into the {room_mib} MiB above the kernel: \
         give the guest more with --memory",
        path.display()
    )]
    InitrdTooBig {
        /// Its name.
        path: PathBuf,
        /// Its size.
        size_mib: u64,
        /// Room for it.
        room_mib: u64,
    },
    /// The command line is too long, or contains a zero byte.
    #[error(
        "the kernel command line of {length} bytes cannot be used: it must have at most \
         {limit} bytes, none of them zero"
    )]
    CommandLine {
        /// Its length.
        length: usize,
        /// The most there may be.
        limit: usize,
    },
    /// Less memory than any kernel can boot in.
    #[error(
        "{} MiB of memory is too little to boot: give the guest at least {} MiB with --memory",
        bytes >> 20,
        least >> 20
    )]
    TooSmall {
        /// Bytes asked for.
        bytes: u64,
        /// The least there may be.
        least: u64,
    },
    /// Boot data does not fit into memory.
    #[error("the guest's memory is too small to boot: give it more with --memory")]
    Memory(#[source] GuestMemoryError),
    /// As above, for the zero page.
    #[error("the guest's memory is too small for the zero page: give it more with --memory")]
    ZeroPage(#[source] linux_loader::configurator::Error),
}

/// The machine could not be built, or failed.
#[derive(Debug, Error)]
pub enum MachineError {
    /// A KVM call failed.
    #[error("{what}{}", remedy(source.errno()))]
    Kvm {
        /// What was attempted.
        what: &'static str,
        /// KVM's error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// A system call failed.
    #[error("{what}{}", remedy(source.raw_os_error().unwrap_or_default()))]
    System {
        /// What was attempted.
        what: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The host has run out of something.
    #[error("the host has no {0} left")]
    Resource(&'static str),
    /// A thread panicked.
    #[error("the {0} thread panicked, which is a defect of hvb: please report its output")]
    Panic(&'static str),
    /// The bus could not be started.
    #[error(transparent)]
    StartBus(#[from] vmbus_kvm::StartError),
    /// The bus has failed.
    #[error(transparent)]
    Bus(vmbus_kvm::HostFailure),
    /// The bus has ended; the reason was reported separately.
    #[error(transparent)]
    Stopped(#[from] vmbus_kvm::Stopped),
    /// A thread could not be confined.
    #[error(
        "cannot confine a thread of hvb: does this kernel have CONFIG_SECCOMP_FILTER? \
         --seccomp off does without"
    )]
    Confine(#[source] confinement::ApplyError),
    /// KVM stopped a vCPU for a reason that cannot be handled.
    #[error("vCPU {vcpu} stopped: {reason}")]
    VcpuStopped {
        /// The vCPU's number.
        vcpu: u8,
        /// The reason, in KVM's words.
        reason: String,
    },
}

impl MachineError {
    /// For `map_err` on KVM's calls.
    pub(crate) fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self + Copy {
        move |source| Self::Kvm { what, source }
    }

    /// For `map_err` on other system calls.
    pub(crate) fn system(what: &'static str) -> impl Fn(io::Error) -> Self + Copy {
        move |source| Self::System { what, source }
    }
}

/// `hvb run` failed.
#[derive(Debug, Error)]
pub enum VmmError {
    /// KVM cannot be used.
    #[error(transparent)]
    Probe(ProbeError),
    /// KVM is there, but lacks something.
    #[error("{0}; to try it on this machine anyway, run the command under 'cargo xtask rig --'")]
    NoHyperV(ProbeError),
    /// The guest could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The bus cannot be recorded.
    #[error(
        "cannot write the recording '{}': name a file that hvb may write with --record-bus, or leave \
         it out",
        path.display()
    )]
    Record {
        /// The file's name.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A disk image cannot be used.
    #[error(transparent)]
    Disk(#[from] virtio_devices::ImageError),
    /// Nothing can be reached through a socket.
    #[error(
        "cannot connect to '{}' for --net passt: start passt --socket '{}' first",
        path.display(), path.display()
    )]
    PasstSocket {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tap interface cannot be used.
    #[error("cannot use the interface '{name}' for --net tap{}", tap_remedy(name, source))]
    Tap {
        /// The interface.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An inherited descriptor cannot be used.
    #[error(
        "cannot use the descriptor {number} for --net tap-fd: open a tap interface as it before hvb starts"
    )]
    TapFd {
        /// The descriptor.
        number: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host's kernel does not serve a network card.
    #[error("cannot use vhost-net for --net …,vhost=on{}", vhost_remedy(.0))]
    Vhost(#[source] VhostError),
    /// The host's kernel serves no card that is connected to passt.
    #[error("vhost=on takes a tap interface: leave it out for --net passt")]
    VhostLink,
    /// `passt` cannot be started.
    #[error(
        "cannot start passt for --net passt: install it (Debian's package passt), or leave --net out"
    )]
    Passt(#[source] io::Error),
    /// There are more devices than the machine has places for.
    #[error("a machine has room for {most} disks and networks: leave some out")]
    TooManyDevices {
        /// The most there may be.
        most: usize,
    },
    /// The host has no room for the guest's memory.
    #[error("cannot map {bytes} bytes of guest memory; ask for less with {option}")]
    Memory {
        /// The option that asks for it.
        option: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The host has no huge pages of the size that `--hugepages` asks for.
    #[error("{lack}, or use another --hugepages")]
    HugePages {
        /// What the host lacks, and a remedy.
        lack: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Guest memory could not be set up for another reason.
    #[error(transparent)]
    Ram(guest_ram::RamError),
    /// The machine could not be built, or failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The output of the serial port could not be opened.
    #[error("cannot write the serial port's output to '{}'", path.display())]
    Serial {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The monitor could not be started.
    #[error(transparent)]
    Monitor(#[from] qmp::ServerError),
    /// The guest could not reach all of its memory.
    #[error(
        "the guest's processors have addresses of {bits} bits, too few for {option}: ask for no \
         more than {} MiB",
        most >> 20
    )]
    AddressWidth {
        /// The option that asks for too much.
        option: &'static str,
        /// The width.
        bits: u32,
        /// The most memory that can be reached, in bytes.
        most: u64,
    },
    /// The memory described to the device for the next machine is impossible: a defect.
    #[cfg(feature = "hv-balloon")]
    #[error(transparent)]
    Replace(#[from] vmbus_kvm::ReplaceError),
    /// The system call rules are contradictory: a defect.
    #[error(transparent)]
    Rules(#[from] confinement::CompileError),
    /// This build lacks the device.
    #[error(
        "{option} needs the hv-balloon device, and this program was built without it: build it \
         with the feature hv-balloon, or leave the option out"
    )]
    NoBalloon {
        /// The option that needs it.
        option: &'static str,
    },
    /// The host cannot take the guest's reports.
    #[error("--free-page-reporting on is impossible here, for {0}, or leave the option out")]
    NoReporting(NoReporting),
}

/// Adds the names of `hvb`'s options, which the library does not know.
impl From<RamError> for VmmError {
    fn from(error: RamError) -> Self {
        match error {
            RamError::Map { part, bytes, source } => {
                let option = match part {
                    RamPart::Boot => "--memory",
                    RamPart::HotAdd => "--max-memory",
                };
                Self::Memory { option, bytes, source }
            }
            RamError::Pool(pool) => {
                let lack = pool.to_string();
                match pool {
                    PoolError::NoSuchSize { source, .. } => Self::HugePages { lack, source },
                    other => Self::Ram(other.into()),
                }
            }
            other => Self::Ram(other),
        }
    }
}

impl From<vmbus_kvm::StartError> for VmmError {
    fn from(error: vmbus_kvm::StartError) -> Self {
        MachineError::from(error).into()
    }
}

impl From<vmbus_kvm::Stopped> for VmmError {
    fn from(error: vmbus_kvm::Stopped) -> Self {
        MachineError::from(error).into()
    }
}

/// A remedy to append to an error about a tap interface.
fn vhost_remedy(error: &VhostError) -> &'static str {
    match error {
        VhostError::Open(error) => match error.kind() {
            io::ErrorKind::NotFound => ": load it with 'modprobe vhost_net', or leave vhost=on out",
            io::ErrorKind::PermissionDenied => {
                ": join the group that may ('ls -l /dev/vhost-net' says which), or leave vhost=on out"
            }
            _ => "",
        },
        _ => "",
    }
}

fn tap_remedy(name: &str, source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => {
            format!(": make it with 'ip tuntap add {name} mode tap user $USER', and set it up")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                ": it belongs to another user; 'ip tuntap add {name} mode tap user $USER' says whose it is"
            )
        }
        io::ErrorKind::ResourceBusy => ": another program has it open".to_owned(),
        _ => String::new(),
    }
}

/// A remedy to append to an error's text, if the host has run out of something.
pub(crate) fn remedy(errno: i32) -> &'static str {
    match errno {
        libc::EMFILE => "; raise the limit of open files (ulimit -n, prlimit --nofile)",
        libc::ENFILE => "; raise the host's limit of open files (sysctl fs.file-max)",
        libc::EFBIG => "; raise the limit of file sizes (ulimit -f, prlimit --fsize)",
        libc::ENOMEM => "; free memory on the host, or raise a limit that is set for it",
        _ => "",
    }
}

impl From<ProbeError> for VmmError {
    fn from(error: ProbeError) -> Self {
        match error {
            ProbeError::Missing(_) => Self::NoHyperV(error),
            other => Self::Probe(other),
        }
    }
}

/// An error with all its causes, for a log line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use kvm_hyperv::probe::MissingCapabilities;

    use super::*;

    #[test]
    fn memory_that_cannot_be_had_is_told_with_the_option_that_asks_for_it() {
        let os_error = io::Error::from_raw_os_error;
        for (part, option) in [(RamPart::Boot, "--memory"), (RamPart::HotAdd, "--max-memory")] {
            let error = RamError::Map { part, bytes: 4096, source: os_error(libc::ENOMEM) };
            assert_eq!(
                chain(&VmmError::from(error)),
                format!(
                    "cannot map 4096 bytes of guest memory; ask for less with {option}: Cannot \
                     allocate memory (os error 12)"
                )
            );
        }
        let size = guest_ram::HugePages::Pool1G;
        let pool = PoolError::NoSuchSize { size, source: os_error(libc::ENOENT) };
        assert_eq!(
            chain(&VmmError::from(RamError::Pool(pool))),
            "this host has no huge pages of 1 GiB: boot it with hugepagesz=1G, or use another \
             --hugepages: No such file or directory (os error 2)"
        );
        let pool = PoolError::Short { size, needed: 2, available: 1, enough: 2 };
        let text = chain(&VmmError::from(RamError::Pool(pool)));
        assert!(text.starts_with("2 huge pages of 1 GiB are needed and 1 are free"), "{text}");
    }

    #[test]
    fn who_has_no_hyper_v_is_told_of_the_rig_and_nobody_else() {
        let missing = MissingCapabilities(vec!["KVM_CAP_HYPERV"]);
        let text = chain(&VmmError::from(ProbeError::Missing(missing)));
        assert!(text.contains("KVM_CAP_HYPERV)") && text.contains("cargo xtask rig"), "{text}");
        let text = chain(&VmmError::from(ProbeError::NoDevice));
        assert!(!text.contains("xtask"), "{text}");
    }

    #[test]
    fn what_the_host_has_run_out_of_is_told_with_a_remedy() {
        let text = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            chain(&MachineError::System { what: "cannot do it", source })
        };
        assert_eq!(
            text(libc::EMFILE),
            "cannot do it; raise the limit of open files (ulimit -n, prlimit --nofile): Too many \
             open files (os error 24)"
        );
        let kvm = MachineError::kvm("cannot do it")(kvm_ioctls::Error::new(libc::ENOMEM));
        assert!(chain(&kvm).contains("; free memory on the host"), "{kvm}");
        assert_eq!(text(libc::EPERM), "cannot do it: Operation not permitted (os error 1)");
    }

    #[test]
    fn who_insists_on_vhost_net_is_told_how_to_get_it() {
        let text = |errno| {
            let source = VhostError::Open(io::Error::from_raw_os_error(errno));
            chain(&VmmError::Vhost(source))
        };
        assert!(text(libc::ENOENT).contains("'modprobe vhost_net', or leave vhost=on out"));
        assert!(text(libc::EACCES).contains("join the group that may"));
        assert!(text(libc::EMFILE).ends_with("Too many open files (os error 24)"));
    }
}

/// Why the host cannot take a guest's reports of free pages, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoReporting {
    /// KVM answers the hypercalls itself.
    #[error(
        "this host's KVM does not leave extended hypercalls to hvb: use a host with Linux 6.3 or later"
    )]
    Kvm,
    /// The pool may have no other pages when the guest uses them again.
    #[error(
        "memory of the host's huge page pool cannot be discarded while a guest may touch it: choose \
         --hugepages thp or off"
    )]
    Pool,
}
