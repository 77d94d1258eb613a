//! What this machine can do.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use kvm_ioctls::{Cap, Kvm};

/// Whether this machine's KVM can be a Hyper-V host.
#[derive(Debug)]
pub(crate) enum HyperV {
    /// It can.
    Present,
    /// It cannot, and why.
    Absent(String),
}

/// Asks KVM itself: `/dev/kvm` is there on machines, too, whose KVM was built without Hyper-V.
pub(crate) fn probe() -> HyperV {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            let error = std::io::Error::from_raw_os_error(error.errno());
            return HyperV::Absent(match error.kind() {
                ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
                _ => format!("/dev/kvm cannot be opened ({error})"),
            });
        }
    };
    match kvm.check_extension_int(Cap::HypervSynic2) {
        1.. => HyperV::Present,
        _ => HyperV::Absent("this machine's KVM has no Hyper-V support".to_owned()),
    }
}

/// All memory of this machine, in MiB.
pub(crate) fn memory_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).context("no MemTotal")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
