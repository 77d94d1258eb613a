//! The capabilities of this machine.

use std::fs;

use anyhow::{Context, Result};
use kvm_hyperv::probe::{Irqchip, ProbeError};

/// Whether this machine's KVM can be a Hyper-V host.
#[derive(Debug)]
pub(crate) enum HyperV {
    /// Yes.
    Present,
    /// No, for this reason.
    Absent(String),
}

/// Checks in the same way as `hvb` itself.
pub(crate) fn probe() -> HyperV {
    match kvm_hyperv::probe::open(Irqchip::Full) {
        Ok(_) => HyperV::Present,
        Err(ProbeError::NoDevice) => HyperV::Absent("there is no /dev/kvm".to_owned()),
        Err(ProbeError::Missing(_)) => {
            HyperV::Absent("this machine's KVM has no Hyper-V support".to_owned())
        }
        Err(error @ (ProbeError::Permission | ProbeError::Open(_))) => {
            HyperV::Absent(format!("/dev/kvm cannot be used ({error})"))
        }
    }
}

/// All memory of this machine, in MiB.
pub(crate) fn memory_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:")).context("no MemTotal")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
