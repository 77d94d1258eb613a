//! Whether this host's KVM can run a guest with VMBus.
//!
//! The existence of `/dev/kvm` says nothing: KVM may be built without Hyper-V, or be an
//! emulation. Only the capabilities count.

use std::fmt;

use kvm_bindings::{
    KVM_CAP_HYPERV, KVM_CAP_HYPERV_CPUID, KVM_CAP_HYPERV_EVENTFD, KVM_CAP_HYPERV_SYNIC2,
    KVM_CAP_HYPERV_TIME, KVM_CAP_HYPERV_VP_INDEX, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD,
    KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_USER_MEMORY,
};
use kvm_ioctls::Kvm;
use thiserror::Error;

const DEVICE: &str = "/dev/kvm";

/// What must be there, with the name under which KVM's documentation lists it.
const NEEDED: [(u32, &str); 9] = [
    (KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
    (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD"),
    (KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE"),
    (KVM_CAP_HYPERV, "KVM_CAP_HYPERV"),
    (KVM_CAP_HYPERV_TIME, "KVM_CAP_HYPERV_TIME"),
    (KVM_CAP_HYPERV_VP_INDEX, "KVM_CAP_HYPERV_VP_INDEX"),
    (KVM_CAP_HYPERV_SYNIC2, "KVM_CAP_HYPERV_SYNIC2"),
    (KVM_CAP_HYPERV_CPUID, "KVM_CAP_HYPERV_CPUID"),
];

/// What this KVM can do beyond what is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `HvSignalEvent` can signal an eventfd inside the kernel (`KVM_CAP_HYPERV_EVENTFD`).
    pub eventfd: bool,
}

/// KVM cannot be used here.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// There is no KVM.
    #[error(
        "{DEVICE} is missing: load the kvm_intel or kvm_amd module, or enable nested \
         virtualization if this is a virtual machine"
    )]
    NoDevice,
    /// This user may not use it.
    #[error("no permission on {DEVICE}: run as root or add the user to the group that owns it")]
    Permission,
    /// It cannot be opened for another reason.
    #[error("cannot open {DEVICE}")]
    Open(#[source] kvm_ioctls::Error),
    /// KVM is there, and lacks something.
    #[error(
        "{DEVICE} has no Hyper-V support (missing: {0}): VMBus needs a Linux host kernel with \
         CONFIG_KVM_HYPERV; to try it on this machine anyway, run the command under \
         'cargo xtask rig --'"
    )]
    Missing(MissingCapabilities),
}

/// The names of the capabilities that KVM lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingCapabilities(Vec<&'static str>);

impl fmt::Display for MissingCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// Opens `/dev/kvm` and checks it.
///
/// # Errors
/// [`ProbeError`], with the remedy in its text.
pub fn open() -> Result<(Kvm, Capabilities), ProbeError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => ProbeError::NoDevice,
        libc::EACCES | libc::EPERM => ProbeError::Permission,
        _ => ProbeError::Open(error),
    })?;
    let capabilities = check(|capability| kvm.check_extension_raw(capability.into()) > 0)?;
    Ok((kvm, capabilities))
}

fn check(has: impl Fn(u32) -> bool) -> Result<Capabilities, ProbeError> {
    let missing: Vec<_> =
        NEEDED.iter().filter(|(number, _)| !has(*number)).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        Ok(Capabilities { eventfd: has(KVM_CAP_HYPERV_EVENTFD) })
    } else {
        Err(ProbeError::Missing(MissingCapabilities(missing)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_named() {
        let without = [KVM_CAP_HYPERV_SYNIC2, KVM_CAP_HYPERV_CPUID];
        let error = check(|capability| !without.contains(&capability)).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("KVM_CAP_HYPERV_SYNIC2, KVM_CAP_HYPERV_CPUID"), "{text}");
    }

    #[test]
    fn the_eventfd_is_optional() {
        let capabilities = check(|capability| capability != KVM_CAP_HYPERV_EVENTFD).unwrap();
        assert_eq!(capabilities, Capabilities { eventfd: false });
    }
}
