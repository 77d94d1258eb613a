//! Checks whether this host's KVM can run a guest with VMBus.
//!
//! The existence of `/dev/kvm` proves nothing: KVM may have been built without Hyper-V support, or
//! be an emulation. Only the capabilities count.
//!
//! | Needed | Capabilities |
//! |---|---|
//! | always | `KVM_CAP_USER_MEMORY`, `KVM_CAP_IRQ_ROUTING`, `KVM_CAP_IRQFD`, `KVM_CAP_HYPERV`, `KVM_CAP_HYPERV_TIME`, `KVM_CAP_HYPERV_VP_INDEX`, `KVM_CAP_HYPERV_SYNIC2`, `KVM_CAP_HYPERV_CPUID` |
//! | [`Irqchip::Full`] | `KVM_CAP_IRQCHIP`, and `KVM_CAP_IRQFD_RESAMPLE` for acknowledgements |
//! | [`Irqchip::Split`] | `KVM_CAP_SPLIT_IRQCHIP` |
//! | for speed | `KVM_CAP_HYPERV_EVENTFD`: see [`Capabilities::eventfd`] |
//! | for free page reports | `KVM_CAP_SYS_HYPERV_CPUID`, and what it then shows: see [`Capabilities::extended_hypercalls`] |

use std::fmt;

use kvm_bindings::{
    KVM_CAP_HYPERV, KVM_CAP_HYPERV_CPUID, KVM_CAP_HYPERV_EVENTFD, KVM_CAP_HYPERV_SYNIC2,
    KVM_CAP_HYPERV_TIME, KVM_CAP_HYPERV_VP_INDEX, KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQCHIP,
    KVM_CAP_IRQFD, KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SYS_HYPERV_CPUID,
    KVM_CAP_USER_MEMORY,
};
use kvm_ioctls::Kvm;
use thiserror::Error;

use crate::{cpuid, ioctl};

const DEVICE: &str = "/dev/kvm";

/// A capability, and its name in KVM's documentation.
type Needed = (u32, &'static str);

/// What every VMM needs.
const ALWAYS: [Needed; 8] = [
    (KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"),
    (KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING"),
    (KVM_CAP_IRQFD, "KVM_CAP_IRQFD"),
    (KVM_CAP_HYPERV, "KVM_CAP_HYPERV"),
    (KVM_CAP_HYPERV_TIME, "KVM_CAP_HYPERV_TIME"),
    (KVM_CAP_HYPERV_VP_INDEX, "KVM_CAP_HYPERV_VP_INDEX"),
    (KVM_CAP_HYPERV_SYNIC2, "KVM_CAP_HYPERV_SYNIC2"),
    (KVM_CAP_HYPERV_CPUID, "KVM_CAP_HYPERV_CPUID"),
];

/// The interrupt controllers that a VMM leaves to KVM. The SynIC needs the local APICs in the
/// kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Irqchip {
    /// All of them (`KVM_CREATE_IRQCHIP`). KVM can tell when the guest acknowledges a SINT.
    Full,
    /// The local APICs only (`KVM_CAP_SPLIT_IRQCHIP`), as in Cloud Hypervisor and crosvm. KVM does
    /// not signal acknowledgements: see [`crate::sint`].
    Split,
}

impl Irqchip {
    fn needed(self) -> &'static [Needed] {
        match self {
            Self::Full => &[
                (KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"),
                (KVM_CAP_IRQFD_RESAMPLE, "KVM_CAP_IRQFD_RESAMPLE"),
            ],
            Self::Split => &[(KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP")],
        }
    }
}

/// The capabilities of this KVM beyond those that every VMM needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// `HvSignalEvent` can signal an eventfd inside the kernel (`KVM_CAP_HYPERV_EVENTFD`). Without
    /// this, each of the guest's signals is an exit to the VMM.
    pub eventfd: bool,
    /// An irqfd can signal that the guest acknowledged an interrupt (`KVM_CAP_IRQFD_RESAMPLE`).
    /// Whatever this says, KVM refuses such irqfds with a split irqchip.
    pub resample: bool,
    /// Extended hypercalls reach the VMM (Linux 6.3 and later), so that a guest can
    /// [be offered](crate::cpuid::offer_extended_hypercalls) them.
    pub extended_hypercalls: bool,
}

/// KVM cannot be used on this host.
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
    /// KVM is there, but lacks something.
    #[error(
        "{DEVICE} lacks what VMBus needs (missing: {0}): it needs a Linux host kernel with \
         CONFIG_KVM_HYPERV"
    )]
    Missing(MissingCapabilities),
}

/// The names of the capabilities that KVM lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingCapabilities(pub Vec<&'static str>);

impl fmt::Display for MissingCapabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// Opens `/dev/kvm` and checks it for a VMM with this `irqchip`.
///
/// # Errors
/// [`ProbeError`], with the remedy in its text.
pub fn open(irqchip: Irqchip) -> Result<(Kvm, Capabilities), ProbeError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => ProbeError::NoDevice,
        libc::EACCES | libc::EPERM => ProbeError::Permission,
        _ => ProbeError::Open(error),
    })?;
    let capabilities = check_for(&kvm, irqchip)?;
    Ok((kvm, capabilities))
}

/// Checks for what every VMM needs, whatever its irqchip.
///
/// # Errors
/// [`ProbeError::Missing`].
pub fn check(kvm: &Kvm) -> Result<Capabilities, ProbeError> {
    check_all(|capability| has(kvm, capability), &[], || passes_extended_hypercalls(kvm))
}

/// Checks for all that a VMM with this `irqchip` needs.
///
/// # Errors
/// [`ProbeError::Missing`].
pub fn check_for(kvm: &Kvm, irqchip: Irqchip) -> Result<Capabilities, ProbeError> {
    let needed = irqchip.needed();
    check_all(|capability| has(kvm, capability), needed, || passes_extended_hypercalls(kvm))
}

fn has(kvm: &Kvm, capability: u32) -> bool {
    kvm.check_extension_raw(capability.into()) > 0
}

fn passes_extended_hypercalls(kvm: &Kvm) -> bool {
    ioctl::supported_hv_cpuid(kvm).is_ok_and(|it| cpuid::passes_extended_hypercalls(it.as_slice()))
}

fn check_all(
    has: impl Fn(u32) -> bool,
    more: &[Needed],
    passes_extended_hypercalls: impl FnOnce() -> bool,
) -> Result<Capabilities, ProbeError> {
    let missing: Vec<_> =
        ALWAYS.iter().chain(more).filter(|(number, _)| !has(*number)).map(|(_, n)| *n).collect();
    if missing.is_empty() {
        Ok(Capabilities {
            eventfd: has(KVM_CAP_HYPERV_EVENTFD),
            resample: has(KVM_CAP_IRQFD_RESAMPLE),
            extended_hypercalls: has(KVM_CAP_SYS_HYPERV_CPUID) && passes_extended_hypercalls(),
        })
    } else {
        Err(ProbeError::Missing(MissingCapabilities(missing)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(missing: &[u32], irqchip: Option<Irqchip>) -> Result<Capabilities, ProbeError> {
        let more = irqchip.map_or(&[][..], Irqchip::needed);
        check_all(|capability| !missing.contains(&capability), more, || true)
    }

    #[test]
    fn everything_missing_is_named() {
        let error = without(&[KVM_CAP_HYPERV_SYNIC2, KVM_CAP_HYPERV_CPUID], None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("KVM_CAP_HYPERV_SYNIC2, KVM_CAP_HYPERV_CPUID"), "{text}");
    }

    #[test]
    fn the_text_names_nothing_of_the_program_that_embeds_this() {
        let text = without(&[KVM_CAP_HYPERV], None).unwrap_err().to_string();
        assert!(!text.contains("cargo") && !text.contains("--"), "{text}");
    }

    #[test]
    fn eventfds_acknowledgements_and_extended_hypercalls_are_optional() {
        let optional = [KVM_CAP_HYPERV_EVENTFD, KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_SYS_HYPERV_CPUID];
        let none = Capabilities { eventfd: false, resample: false, extended_hypercalls: false };
        assert_eq!(without(&optional, None).unwrap(), none);
        let all = Capabilities { eventfd: true, resample: true, extended_hypercalls: true };
        assert_eq!(without(&[], None).unwrap(), all);
        without(&[KVM_CAP_IRQCHIP, KVM_CAP_SPLIT_IRQCHIP], None).unwrap();
    }

    #[test]
    fn each_irqchip_needs_its_own_capabilities() {
        let error = without(&[KVM_CAP_IRQFD_RESAMPLE], Some(Irqchip::Full)).unwrap_err();
        assert!(error.to_string().contains("KVM_CAP_IRQFD_RESAMPLE"), "{error}");
        without(&[KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_IRQCHIP], Some(Irqchip::Split)).unwrap();
        let error = without(&[KVM_CAP_SPLIT_IRQCHIP], Some(Irqchip::Split)).unwrap_err();
        assert!(error.to_string().contains("KVM_CAP_SPLIT_IRQCHIP"), "{error}");
        without(&[KVM_CAP_SPLIT_IRQCHIP], Some(Irqchip::Full)).unwrap();
    }
}
