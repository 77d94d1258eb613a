//! The requests of KVM that this program makes (Linux `include/uapi/linux/kvm.h`), as its filters
//! need them. The libraries that make them do not tell their numbers.

use kvm_bindings::{
    KVMIO, kvm_cpuid2, kvm_enable_cap, kvm_hyperv_eventfd, kvm_irq_routing, kvm_irqfd, kvm_msrs,
    kvm_pit_config, kvm_regs, kvm_signal_mask, kvm_sregs, kvm_userspace_memory_region,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// A request with its name.
pub(super) struct Request {
    pub(super) name: &'static str,
    pub(super) number: u32,
}

const fn request<T>(name: &'static str, direction: u32, number: u32) -> Request {
    let size = size_of::<T>();
    #[expect(clippy::cast_possible_truncation, reason = "both have at most 32 bits")]
    let number = ioctl_expr(direction, KVMIO, number, size as u32) as u32;
    Request { name, number }
}

/// Runs a vCPU. First where it is allowed: filters look in order.
const RUN: Request = request::<()>("KVM_RUN", _IOC_NONE, 0x80);
const GET_MSRS: Request = request::<kvm_msrs>("KVM_GET_MSRS", _IOC_READ | _IOC_WRITE, 0x88);
const SET_USER_MEMORY_REGION: Request =
    request::<kvm_userspace_memory_region>("KVM_SET_USER_MEMORY_REGION", _IOC_WRITE, 0x46);

/// What a vCPU's thread asks of its vCPU while the guest runs.
pub(super) const OF_VCPUS: [Request; 2] = [RUN, GET_MSRS];

/// What the device's thread asks of the VM.
pub(super) const OF_THE_DEVICE: [Request; 1] =
    [request::<kvm_hyperv_eventfd>("KVM_HYPERV_EVENTFD", _IOC_WRITE, 0xbd)];

/// What the memory's thread asks of the VM.
pub(super) const OF_THE_MEMORY: [Request; 1] = [SET_USER_MEMORY_REGION];

/// What it takes to build a machine.
pub(super) const TO_BUILD: [Request; 21] = [
    request::<()>("KVM_CREATE_VM", _IOC_NONE, 0x01),
    request::<()>("KVM_CHECK_EXTENSION", _IOC_NONE, 0x03),
    request::<()>("KVM_GET_VCPU_MMAP_SIZE", _IOC_NONE, 0x04),
    request::<kvm_cpuid2>("KVM_GET_SUPPORTED_CPUID", _IOC_READ | _IOC_WRITE, 0x05),
    request::<()>("KVM_CREATE_VCPU", _IOC_NONE, 0x41),
    SET_USER_MEMORY_REGION,
    request::<()>("KVM_SET_TSS_ADDR", _IOC_NONE, 0x47),
    request::<u64>("KVM_SET_IDENTITY_MAP_ADDR", _IOC_WRITE, 0x48),
    request::<()>("KVM_CREATE_IRQCHIP", _IOC_NONE, 0x60),
    request::<kvm_irq_routing>("KVM_SET_GSI_ROUTING", _IOC_WRITE, 0x6a),
    request::<kvm_irqfd>("KVM_IRQFD", _IOC_WRITE, 0x76),
    request::<kvm_pit_config>("KVM_CREATE_PIT2", _IOC_WRITE, 0x77),
    request::<kvm_regs>("KVM_GET_REGS", _IOC_READ, 0x81),
    request::<kvm_regs>("KVM_SET_REGS", _IOC_WRITE, 0x82),
    request::<kvm_sregs>("KVM_GET_SREGS", _IOC_READ, 0x83),
    request::<kvm_sregs>("KVM_SET_SREGS", _IOC_WRITE, 0x84),
    request::<kvm_msrs>("KVM_SET_MSRS", _IOC_WRITE, 0x89),
    request::<kvm_signal_mask>("KVM_SET_SIGNAL_MASK", _IOC_WRITE, 0x8b),
    request::<kvm_cpuid2>("KVM_SET_CPUID2", _IOC_WRITE, 0x90),
    request::<kvm_enable_cap>("KVM_ENABLE_CAP", _IOC_WRITE, 0xa3),
    request::<kvm_cpuid2>("KVM_GET_SUPPORTED_HV_CPUID", _IOC_READ | _IOC_WRITE, 0xc1),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // As strace prints them.
        assert_eq!(RUN.number, 0xae80);
        assert_eq!(GET_MSRS.number, 0xc008_ae88);
        assert_eq!(SET_USER_MEMORY_REGION.number, 0x4020_ae46);
    }
}
