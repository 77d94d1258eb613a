//! The numbers of this crate's ioctls, for a VMM's system call filter.
//!
//! A filter compares them with the second argument of `ioctl`. The libraries that make the requests
//! do not export the numbers.
//!
//! | Number | Made by | On which thread |
//! |---|---|---|
//! | [`KVM_CHECK_EXTENSION`] | [`crate::probe`], [`crate::vm::slot_limit`] | the setup thread |
//! | [`KVM_GET_SUPPORTED_HV_CPUID`] | [`crate::probe`], [`crate::cpuid::supported`] | the setup thread |
//! | [`KVM_SET_GSI_ROUTING`], [`KVM_IRQFD`] | [`crate::sint::SintLines`] | the setup thread |
//! | [`KVM_SET_SIGNAL_MASK`] | [`crate::kick::prepare_thread`] | the vCPU's |
//! | [`KVM_GET_MSRS`] | [`crate::msr::guest_os_id`], [`crate::crash`] | the vCPU's |
//! | [`KVM_X86_SET_MSR_FILTER`] | [`crate::crash::intercept`] | the setup thread |
//! | [`KVM_HYPERV_EVENTFD`] | [`crate::signal`] | the device's |
//! | [`KVM_SET_USER_MEMORY_REGION`] | [`crate::vm::GuestVm`] | those that add memory, and the one that drops the VM |
//!
//! The eventfds of [`crate::sint`] are read and written with `read` and `write`, and
//! [`crate::kick::acknowledge`] calls `rt_sigpending` and `rt_sigtimedwait`.

use kvm_bindings::{
    KVMIO, kvm_cpuid2, kvm_hyperv_eventfd, kvm_irq_routing, kvm_irqfd, kvm_msr_filter, kvm_msrs,
    kvm_signal_mask, kvm_userspace_memory_region,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

const fn request<T>(direction: u32, number: u32) -> u32 {
    let size = size_of::<T>();
    #[expect(clippy::cast_possible_truncation, reason = "both have at most 32 bits")]
    let number = ioctl_expr(direction, KVMIO, number, size as u32) as u32;
    number
}

/// Queries a capability.
pub const KVM_CHECK_EXTENSION: u32 = request::<()>(_IOC_NONE, 0x03);
/// Adds or deletes a memory slot.
pub const KVM_SET_USER_MEMORY_REGION: u32 =
    request::<kvm_userspace_memory_region>(_IOC_WRITE, 0x46);
/// Replaces the routes of all GSIs.
pub const KVM_SET_GSI_ROUTING: u32 = request::<kvm_irq_routing>(_IOC_WRITE, 0x6a);
/// Connects an eventfd to a GSI.
pub const KVM_IRQFD: u32 = request::<kvm_irqfd>(_IOC_WRITE, 0x76);
/// Reads MSRs.
pub const KVM_GET_MSRS: u32 = request::<kvm_msrs>(_IOC_READ | _IOC_WRITE, 0x88);
/// Sets the signals that are blocked while a vCPU runs.
pub const KVM_SET_SIGNAL_MASK: u32 = request::<kvm_signal_mask>(_IOC_WRITE, 0x8b);
/// Connects an eventfd to the guest's signals.
pub const KVM_HYPERV_EVENTFD: u32 = request::<kvm_hyperv_eventfd>(_IOC_WRITE, 0xbd);
/// Has accesses to some MSRs exit to the VMM.
pub const KVM_X86_SET_MSR_FILTER: u32 = request::<kvm_msr_filter>(_IOC_WRITE, 0xc6);
/// Reads the Hyper-V leaves that KVM can offer.
pub const KVM_GET_SUPPORTED_HV_CPUID: u32 = request::<kvm_cpuid2>(_IOC_READ | _IOC_WRITE, 0xc1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // As strace prints them.
        assert_eq!(KVM_CHECK_EXTENSION, 0xae03);
        assert_eq!(KVM_SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(KVM_SET_GSI_ROUTING, 0x4008_ae6a);
        assert_eq!(KVM_IRQFD, 0x4020_ae76);
        assert_eq!(KVM_GET_MSRS, 0xc008_ae88);
        assert_eq!(KVM_SET_SIGNAL_MASK, 0x4004_ae8b);
        assert_eq!(KVM_HYPERV_EVENTFD, 0x4018_aebd);
        assert_eq!(KVM_GET_SUPPORTED_HV_CPUID, 0xc008_aec1);
        assert_eq!(KVM_X86_SET_MSR_FILTER, 0x4188_aec6);
    }
}
