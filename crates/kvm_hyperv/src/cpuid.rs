//! The CPUID leaves by which a guest recognises Hyper-V and loads VMBus.
//!
//! What KVM reports as supported is a maximum, under KVM's own name. A guest wants `Microsoft Hv`
//! (Linux `arch/x86/kernel/cpu/mshyperv.c`), no KVM leaves beside it, and none of the bits that
//! make Linux think it is the root partition or a confidential VM.
//!
//! [`add_hyperv_leaves`] writes all of them for a VMM that has none; [`merge_hyperv_leaves`]
//! completes those of a VMM that has some. KVM looks for leaf 0x40000001 in `KVM_SET_CPUID2`, so
//! set the table before `KVM_CAP_HYPERV_SYNIC2` and the MSRs.

use std::io;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;
use thiserror::Error;

/// The range that CPUID reserves for hypervisors.
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;

/// The leaves where further hypervisors show themselves.
const OTHER_HYPERVISORS: std::ops::RangeInclusive<u32> = 0x4000_0100..=0x4fff_ffff;

const VENDOR_AND_MAX: u32 = 0x4000_0000;
const INTERFACE: u32 = 0x4000_0001;
const VERSION: u32 = 0x4000_0002;
const FEATURES: u32 = 0x4000_0003;
const RECOMMENDATIONS: u32 = 0x4000_0004;
const LIMITS: u32 = 0x4000_0005;

/// The signature that KVM requires before it treats a vCPU as a Hyper-V one.
const INTERFACE_SIGNATURE: u32 = u32::from_le_bytes(*b"Hv#1");

/// The signature that Linux requires (`ms_hyperv_platform`).
const VENDOR: [u32; 3] = [word(*b"Micr"), word(*b"osof"), word(*b"t Hv")];

/// Bits of leaf 0x40000003 EAX: the MSRs the guest may use (TLFS 2.4.3). With
/// `KVM_CAP_HYPERV_ENFORCE_CPUID`, KVM refuses MSRs whose bits are clear.
pub mod access {
    /// VP runtime. Windows wants it.
    pub const VP_RUNTIME: u32 = 1 << 0;
    /// Reference counter: the guest's clock until it has the TSC page.
    pub const REFERENCE_COUNTER: u32 = 1 << 1;
    /// SynIC: the pages and interrupts of VMBus.
    pub const SYNIC: u32 = 1 << 2;
    /// Synthetic timers. Windows wants them before it loads VMBus.
    pub const SYNTHETIC_TIMERS: u32 = 1 << 3;
    /// EOI, ICR and TPR as MSRs. Windows wants them.
    pub const APIC: u32 = 1 << 4;
    /// Guest OS ID and hypercall page, without which there are no hypercalls. Linux does not
    /// recognise a platform without this bit as Hyper-V.
    pub const HYPERCALL: u32 = 1 << 5;
    /// VP index: the number by which the guest names a VP as the target of messages and interrupts.
    /// Linux does not recognise a platform without this bit as Hyper-V.
    pub const VP_INDEX: u32 = 1 << 6;
    /// Reference TSC page.
    pub const REFERENCE_TSC: u32 = 1 << 9;
    /// TSC and APIC frequency; goes with [`super::features::FREQUENCIES`].
    pub const FREQUENCIES: u32 = 1 << 11;

    /// VMBus needs all of these.
    pub const NEEDED: u32 = REFERENCE_COUNTER | SYNIC | HYPERCALL | VP_INDEX;
}

/// Bits of leaf 0x40000003 EBX: the rights of the guest's partition (TLFS 2.4.3). With
/// `KVM_CAP_HYPERV_ENFORCE_CPUID`, KVM refuses hypercalls whose bits are clear.
pub mod rights {
    /// Access to partition ids. Linux then asks for its own with a hypercall that KVM lacks.
    pub const ACCESS_PARTITION_ID: u32 = 1 << 1;
    /// `HvPostMessage`: the guest's side of every VMBus message.
    pub const POST_MESSAGES: u32 = 1 << 4;
    /// `HvSignalEvent`: the guest's signals on open channels.
    pub const SIGNAL_EVENTS: u32 = 1 << 5;
    /// Extended hypercalls: see [`super::offer_extended_hypercalls`].
    pub const EXTENDED_HYPERCALLS: u32 = 1 << 20;
    /// CPU management. It makes Linux believe that it is the root partition.
    pub const CPU_MANAGEMENT: u32 = 1 << 12;
    /// Isolation. It makes Linux believe that it is a confidential VM.
    pub const ISOLATION: u32 = 1 << 22;

    /// VMBus needs all of these.
    pub const NEEDED: u32 = POST_MESSAGES | SIGNAL_EVENTS;
    /// Any of these makes Linux mistake its role.
    pub const MISLEADING: u32 = ACCESS_PARTITION_ID | CPU_MANAGEMENT | ISOLATION;
}

/// Bits of leaf 0x40000003 EDX: features (TLFS 2.4.3).
pub mod features {
    /// The frequency MSRs are there.
    pub const FREQUENCIES: u32 = 1 << 8;
    /// The crash MSRs are there; see [`crate::crash`].
    pub const CRASH_MSRS: u32 = 1 << 10;
    /// Synthetic timers may raise a vector directly. Without this, Linux receives timer messages in
    /// the slot of SINT 2, which VMBus then shares.
    pub const DIRECT_TIMERS: u32 = 1 << 19;
}

/// Bits of leaf 0x40000004 EAX: recommendations (TLFS 2.4.4).
pub mod hints {
    /// Relaxed timing: Windows' watchdogs allow for a VP that the host does not schedule.
    pub const RELAXED_TIMING: u32 = 1 << 5;
    /// Do not use automatic EOI, which keeps KVM from using the processor's virtual APIC.
    pub const DEPRECATE_AUTO_EOI: u32 = 1 << 9;
}

/// The rights that [`add_hyperv_leaves`] offers if KVM has them, apart from synthetic timers.
const ACCESS: u32 = access::NEEDED
    | access::VP_RUNTIME
    | access::APIC
    | access::REFERENCE_TSC
    | access::FREQUENCIES;

const HINTS: u32 = hints::RELAXED_TIMING | hints::DEPRECATE_AUTO_EOI;

/// Leaf 0x40000004 EBX: never report long spin waits.
const NEVER_NOTIFY: u32 = u32::MAX;

/// Whether a guest is offered synthetic timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticTimers {
    /// Yes: Windows wants them before it loads VMBus (QEMU `docs/system/i386/hyperv.rst`).
    Offered,
    /// No: the guest uses the local APIC's timer, which KVM emulates as well. A Linux that uses
    /// direct synthetic timers loses its clock for good when `hv_vmbus` is unloaded (seen on 6.1).
    Withheld,
}

/// The Hyper-V leaves that KVM can offer on this host.
///
/// # Errors
/// The kernel's error.
pub fn supported(vcpu: &VcpuFd) -> io::Result<CpuId> {
    crate::ioctl::supported_hv_cpuid(vcpu)
}

/// Replaces all hypervisor leaves in `cpuid` with those for a guest with VMBus. Offers nothing that
/// `supported` lacks.
pub fn add_hyperv_leaves(
    cpuid: &mut Vec<kvm_cpuid_entry2>,
    supported: &[kvm_cpuid_entry2],
    timers: SyntheticTimers,
) {
    let (timer_access, timer_features) = match timers {
        SyntheticTimers::Offered => (access::SYNTHETIC_TIMERS, features::DIRECT_TIMERS),
        SyntheticTimers::Withheld => (0, 0),
    };
    cpuid.retain(|entry| !HYPERVISOR_LEAVES.contains(&entry.function));
    let offered = leaf(supported, FEATURES);
    let [vendor0, vendor1, vendor2] = VENDOR;
    cpuid.extend([
        entry(VENDOR_AND_MAX, [LIMITS, vendor0, vendor1, vendor2]),
        entry(INTERFACE, [INTERFACE_SIGNATURE, 0, 0, 0]),
        version(supported),
        entry(
            FEATURES,
            [
                offered.eax & (ACCESS | timer_access),
                offered.ebx & rights::NEEDED,
                0,
                offered.edx & (features::FREQUENCIES | timer_features),
            ],
        ),
        recommendations(supported),
        limits(supported),
    ]);
}

/// Offers the crash MSRs as well, if `supported` has them: the guest then says that it crashes, and why.
/// The VMM must expect the exits in [`crate::crash`].
pub fn add_crash_msrs(cpuid: &mut [kvm_cpuid_entry2], supported: &[kvm_cpuid_entry2]) {
    let offered = leaf(supported, FEATURES).edx & features::CRASH_MSRS;
    for entry in cpuid.iter_mut().filter(|entry| entry.function == FEATURES) {
        entry.edx |= offered;
    }
}

/// Whether this KVM leaves extended hypercalls to the VMM, as Linux does from 6.3 on.
pub(crate) fn passes_extended_hypercalls(supported: &[kvm_cpuid_entry2]) -> bool {
    leaf(supported, FEATURES).ebx & rights::EXTENDED_HYPERCALLS != 0
}

/// Offers the guest extended hypercalls, in a table that [`add_hyperv_leaves`] or
/// [`merge_hyperv_leaves`] has completed. The VMM must answer `HvExtCallQueryCapabilities` then, as
/// `vmbus_kvm` does.
///
/// Returns whether they are offered: not if `supported` lacks them.
pub fn offer_extended_hypercalls(
    cpuid: &mut [kvm_cpuid_entry2],
    supported: &[kvm_cpuid_entry2],
) -> bool {
    let entry = cpuid.iter_mut().find(|entry| entry.function == FEATURES);
    match entry {
        Some(entry) if passes_extended_hypercalls(supported) => {
            entry.ebx |= rights::EXTENDED_HYPERCALLS;
            true
        }
        _ => false,
    }
}

/// A VMM's table could not be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MergeError {
    /// The table has no Hyper-V leaves: use [`add_hyperv_leaves`].
    #[error("the CPUID table has no Hyper-V leaves: leaf 0x40000001 is not 'Hv#1'")]
    NotHyperV,
    /// The table has bits of [`rights::MISLEADING`] set.
    #[error(
        "leaf 0x40000003 EBX of the CPUID table has {0:#x} set: a guest takes itself for a root \
         partition or a confidential VM and does not use VMBus"
    )]
    Misleading(u32),
}

/// Adds what VMBus needs to a VMM's own Hyper-V leaves (for example those of Cloud Hypervisor with
/// `kvm_hyperv=on`) and keeps everything else that they offer. Offers nothing that `supported`
/// lacks.
///
/// - Leaf 0x40000003 gets [`access::NEEDED`] and [`rights::NEEDED`], leaf 0x40000004
///   [`hints::DEPRECATE_AUTO_EOI`].
/// - Leaves 0x40000002 to 0x40000005 are added if they are missing.
/// - Leaf 0x40000000 gets the vendor `Microsoft Hv`, without which Linux does not recognise
///   Hyper-V, and a maximum of at least 0x40000005.
/// - Leaves from 0x40000100 on are removed: if another hypervisor shows itself there, as KVM does,
///   Linux chooses the one with the highest leaf and does not load VMBus.
///
/// # Errors
/// [`MergeError`]; the table is unchanged.
pub fn merge_hyperv_leaves(
    cpuid: &mut Vec<kvm_cpuid_entry2>,
    supported: &[kvm_cpuid_entry2],
) -> Result<(), MergeError> {
    if leaf(cpuid, INTERFACE).eax != INTERFACE_SIGNATURE {
        return Err(MergeError::NotHyperV);
    }
    match leaf(cpuid, FEATURES).ebx & rights::MISLEADING {
        0 => {}
        bits => return Err(MergeError::Misleading(bits)),
    }
    cpuid.retain(|entry| !OTHER_HYPERVISORS.contains(&entry.function));
    let add = |cpuid: &mut Vec<_>, new: kvm_cpuid_entry2, merge: fn(&mut _, _)| {
        let mut old =
            cpuid.iter_mut().filter(|e: &&mut kvm_cpuid_entry2| e.function == new.function);
        match old.next() {
            Some(old) => merge(old, new),
            None => cpuid.push(new),
        }
    };
    let [vendor0, vendor1, vendor2] = VENDOR;
    add(cpuid, entry(VENDOR_AND_MAX, [LIMITS, vendor0, vendor1, vendor2]), |old, new| {
        *old = kvm_cpuid_entry2 { eax: old.eax.max(new.eax), ..new };
    });
    add(cpuid, version(supported), |_, _| {});
    let offered = leaf(supported, FEATURES);
    let needed = [offered.eax & access::NEEDED, offered.ebx & rights::NEEDED, 0, 0];
    add(cpuid, entry(FEATURES, needed), |old, new| {
        old.eax |= new.eax;
        old.ebx |= new.ebx;
    });
    add(cpuid, recommendations(supported), |old, new| {
        old.eax |= new.eax & hints::DEPRECATE_AUTO_EOI;
    });
    add(cpuid, limits(supported), |_, _| {});
    Ok(())
}

fn version(supported: &[kvm_cpuid_entry2]) -> kvm_cpuid_entry2 {
    let version = leaf(supported, VERSION);
    entry(VERSION, [version.eax, version.ebx, 0, 0])
}

fn recommendations(supported: &[kvm_cpuid_entry2]) -> kvm_cpuid_entry2 {
    entry(RECOMMENDATIONS, [leaf(supported, RECOMMENDATIONS).eax & HINTS, NEVER_NOTIFY, 0, 0])
}

fn limits(supported: &[kvm_cpuid_entry2]) -> kvm_cpuid_entry2 {
    let limits = leaf(supported, LIMITS);
    entry(LIMITS, [limits.eax, limits.ebx, 0, 0])
}

/// The leaf, or zeros if it is missing, as on a processor.
fn leaf(cpuid: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
    cpuid.iter().find(|entry| entry.function == function).copied().unwrap_or_default()
}

const fn word(text: [u8; 4]) -> u32 {
    u32::from_le_bytes(text)
}

fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_sees_hyper_v_and_not_kvm() {
        let mut cpuid =
            vec![entry(1, [1; 4]), entry(0x4000_0000, [7; 4]), entry(0x4000_0100, [9; 4])];
        add_hyperv_leaves(&mut cpuid, &[], SyntheticTimers::Offered);
        let vendor = leaf(&cpuid, 0x4000_0000);
        assert_eq!((vendor.ebx, vendor.ecx, vendor.edx), (0x7263_694d, 0x666f_736f, 0x7648_2074));
        assert_eq!(leaf(&cpuid, 0x4000_0001).eax, 0x3123_7648);
        assert!(cpuid.iter().all(|entry| entry.function != 0x4000_0100));
        assert_eq!(leaf(&cpuid, 1).eax, 1);
    }

    #[test]
    fn nothing_is_offered_that_kvm_lacks_or_that_misleads_linux() {
        let mut cpuid = Vec::new();
        let all = [entry(0x4000_0003, [u32::MAX; 4])];
        add_hyperv_leaves(&mut cpuid, &all, SyntheticTimers::Offered);
        let features = leaf(&cpuid, 0x4000_0003);
        assert_eq!(features.ebx & (1 << 1 | 1 << 12 | 1 << 22), 0);
        assert_eq!(features.ebx, 0x30);
        assert_eq!(leaf(&cpuid, 0x4000_0004).eax, 0);
    }

    #[test]
    fn synthetic_timers_can_be_withheld() {
        let all = [entry(0x4000_0003, [u32::MAX; 4])];
        let features = |timers| {
            let mut cpuid = Vec::new();
            add_hyperv_leaves(&mut cpuid, &all, timers);
            let features = leaf(&cpuid, 0x4000_0003);
            (features.eax, features.edx)
        };
        assert_eq!(features(SyntheticTimers::Offered), (0xa7f, 0x8_0100));
        assert_eq!(features(SyntheticTimers::Withheld), (0xa77, 0x100));
    }

    /// The leaves of Cloud Hypervisor's option `kvm_hyperv`, followed by KVM's own.
    fn other_vmms_table() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(1, [1; 4]),
            entry(0x4000_0000, [0x4000_000a, word(*b"Linu"), word(*b"x KV"), word(*b"M Hv")]),
            entry(0x4000_0001, [INTERFACE_SIGNATURE, 0, 0, 0]),
            entry(0x4000_0003, [0x26e, 0, 0, 1 << 3]),
            entry(0x4000_0004, [1 << 5, 0xfff, 0, 0]),
            entry(0x4000_0100, [9; 4]),
        ]
    }

    #[test]
    fn a_table_that_is_there_keeps_what_it_has_and_gets_what_vmbus_needs() {
        let supported = [
            entry(0x4000_0002, [0x3839, 0xa_0000, 0, 0]),
            entry(0x4000_0003, [u32::MAX; 4]),
            entry(0x4000_0004, [u32::MAX; 4]),
            entry(0x4000_0005, [64, 64, 0, 0]),
        ];
        let mut cpuid = other_vmms_table();
        merge_hyperv_leaves(&mut cpuid, &supported).unwrap();
        let registers = |function| {
            let leaf = leaf(&cpuid, function);
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        };
        assert_eq!(registers(1), [1; 4]);
        let [vendor0, vendor1, vendor2] = VENDOR;
        assert_eq!(registers(0x4000_0000), [0x4000_000a, vendor0, vendor1, vendor2]);
        assert_eq!(registers(0x4000_0002), [0x3839, 0xa_0000, 0, 0]);
        assert_eq!(registers(0x4000_0003), [0x26e, 0x30, 0, 1 << 3]);
        assert_eq!(registers(0x4000_0004), [1 << 5 | 1 << 9, 0xfff, 0, 0]);
        assert_eq!(registers(0x4000_0005), [64, 64, 0, 0]);
        assert!(cpuid.iter().all(|entry| entry.function < 0x4000_0100));
        let before = cpuid.clone();
        merge_hyperv_leaves(&mut cpuid, &supported).unwrap();
        assert_eq!(cpuid, before, "merging again changes nothing");
    }

    #[test]
    fn extended_hypercalls_are_offered_only_where_asked_for_and_possible() {
        let newer = entry(FEATURES, [u32::MAX; 4]);
        let older = entry(FEATURES, [u32::MAX, !rights::EXTENDED_HYPERCALLS, 0, 0]);
        for (supported, expected) in [(newer, true), (older, false)] {
            let mut cpuid = Vec::new();
            add_hyperv_leaves(&mut cpuid, &[supported], SyntheticTimers::Offered);
            assert_eq!(leaf(&cpuid, FEATURES).ebx, rights::NEEDED);
            assert_eq!(offer_extended_hypercalls(&mut cpuid, &[supported]), expected);
            let bit = if expected { rights::EXTENDED_HYPERCALLS } else { 0 };
            assert_eq!(leaf(&cpuid, FEATURES).ebx, rights::NEEDED | bit);
        }
        assert!(!offer_extended_hypercalls(&mut [], &[newer]));
    }

    #[test]
    fn a_merge_offers_nothing_that_kvm_lacks() {
        let mut cpuid = other_vmms_table();
        merge_hyperv_leaves(&mut cpuid, &[]).unwrap();
        assert_eq!(leaf(&cpuid, 0x4000_0003).ebx, 0);
        assert_eq!(leaf(&cpuid, 0x4000_0004).eax, 1 << 5);
    }

    #[test]
    fn a_table_that_cannot_be_completed_is_left_alone() {
        let mut none = vec![entry(1, [1; 4]), entry(0x4000_0100, [9; 4])];
        let before = none.clone();
        assert_eq!(merge_hyperv_leaves(&mut none, &[]), Err(MergeError::NotHyperV));
        assert_eq!(none, before);
        for bit in [1, 12, 22] {
            let mut cpuid = other_vmms_table();
            cpuid[3].ebx |= 1 << bit;
            let before = cpuid.clone();
            let error = merge_hyperv_leaves(&mut cpuid, &[]);
            assert_eq!(error, Err(MergeError::Misleading(1 << bit)));
            assert_eq!(cpuid, before);
        }
    }
}
