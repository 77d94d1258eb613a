//! The CPUID leaves that make a guest believe in Hyper-V and load VMBus.
//!
//! What KVM reports as supported is a maximum under its own name; a guest wants `Microsoft Hv`
//! (Linux `arch/x86/kernel/cpu/mshyperv.c`), no KVM leaves beside it, and none of the bits that
//! would make Linux think it is the root partition, or a confidential VM.

use std::io;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::VcpuFd;

/// The range that CPUID reserves for hypervisors.
const HYPERVISOR_LEAVES: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;

const VENDOR_AND_MAX: u32 = 0x4000_0000;
const INTERFACE: u32 = 0x4000_0001;
const VERSION: u32 = 0x4000_0002;
const FEATURES: u32 = 0x4000_0003;
const RECOMMENDATIONS: u32 = 0x4000_0004;
const LIMITS: u32 = 0x4000_0005;

/// The signature KVM looks for before it treats a vCPU as a Hyper-V one.
const INTERFACE_SIGNATURE: u32 = u32::from_le_bytes(*b"Hv#1");

/// Leaf 0x40000003 EAX: VP runtime (0), reference counter (1), SynIC (2), APIC access (4),
/// hypercall (5), VP index (6), reference TSC (9), frequencies (11).
const PARTITION_ACCESS: u32 = 0x77 | 1 << 9 | 1 << 11;

/// Leaf 0x40000003 EAX: synthetic timers.
const TIMER_ACCESS: u32 = 1 << 3;

/// Leaf 0x40000003 EBX: post messages (4), signal events (5). Left clear: access partition id (1)
/// and CPU management (12), which make Linux believe it is the root partition, and isolation (22).
const PARTITION_RIGHTS: u32 = 1 << 4 | 1 << 5;

/// Leaf 0x40000003 EDX: frequencies.
const PARTITION_FEATURES: u32 = 1 << 8;

/// Leaf 0x40000003 EDX: synthetic timers may raise a vector directly. Without that Linux has timer
/// messages in the slot of SINT 2, which VMBus then shares.
const DIRECT_TIMERS: u32 = 1 << 19;

/// Leaf 0x40000004 EAX: relaxed timing (5), deprecate automatic EOI (9).
const HINTS: u32 = 1 << 5 | 1 << 9;

/// Leaf 0x40000004 EBX: never report long spin waits.
const NEVER_NOTIFY: u32 = u32::MAX;

/// Whether a guest is offered synthetic timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticTimers {
    /// Yes: Windows wants them before it loads VMBus (QEMU `docs/system/i386/hyperv.rst`).
    Offered,
    /// No: the guest uses the local APIC's timer, which KVM emulates as well. A Linux that took
    /// direct synthetic timers loses its clock for good when `hv_vmbus` is unloaded (seen on 6.1).
    Withheld,
}

/// The leaves KVM could offer on this host.
///
/// # Errors
/// What the kernel says.
pub fn supported(vcpu: &VcpuFd) -> io::Result<CpuId> {
    crate::ioctl::supported_hv_cpuid(vcpu)
}

/// Replaces all hypervisor leaves in `cpuid` with those for a guest with VMBus, offering nothing
/// that `supported` lacks.
pub fn add_hyperv_leaves(
    cpuid: &mut Vec<kvm_cpuid_entry2>,
    supported: &[kvm_cpuid_entry2],
    timers: SyntheticTimers,
) {
    let (timer_access, timer_features) = match timers {
        SyntheticTimers::Offered => (TIMER_ACCESS, DIRECT_TIMERS),
        SyntheticTimers::Withheld => (0, 0),
    };
    let leaf = |function: u32| {
        supported.iter().find(|entry| entry.function == function).copied().unwrap_or_default()
    };
    cpuid.retain(|entry| !HYPERVISOR_LEAVES.contains(&entry.function));
    let features = leaf(FEATURES);
    let version = leaf(VERSION);
    let limits = leaf(LIMITS);
    cpuid.extend([
        entry(VENDOR_AND_MAX, [LIMITS, word(*b"Micr"), word(*b"osof"), word(*b"t Hv")]),
        entry(INTERFACE, [INTERFACE_SIGNATURE, 0, 0, 0]),
        entry(VERSION, [version.eax, version.ebx, 0, 0]),
        entry(
            FEATURES,
            [
                features.eax & (PARTITION_ACCESS | timer_access),
                features.ebx & PARTITION_RIGHTS,
                0,
                features.edx & (PARTITION_FEATURES | timer_features),
            ],
        ),
        entry(RECOMMENDATIONS, [leaf(RECOMMENDATIONS).eax & HINTS, NEVER_NOTIFY, 0, 0]),
        entry(LIMITS, [limits.eax, limits.ebx, 0, 0]),
    ]);
}

fn word(text: [u8; 4]) -> u32 {
    u32::from_le_bytes(text)
}

fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &[kvm_cpuid_entry2], function: u32) -> kvm_cpuid_entry2 {
        *cpuid.iter().find(|entry| entry.function == function).unwrap()
    }

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
}
