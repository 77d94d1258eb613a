//! The ioctls that this program makes (Linux `include/uapi/linux/kvm.h` and `vhost.h`), for its filters.

use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_cpuid2, kvm_enable_cap, kvm_ioeventfd, kvm_lapic_state,
    kvm_mp_state, kvm_msrs, kvm_pit_config, kvm_regs, kvm_sregs, kvm_vcpu_events,
};
use kvm_hyperv::ioctl_numbers::{
    KVM_CHECK_EXTENSION, KVM_GET_MSRS, KVM_GET_SUPPORTED_HV_CPUID, KVM_HYPERV_EVENTFD, KVM_IRQFD,
    KVM_SET_GSI_ROUTING, KVM_SET_SIGNAL_MASK, KVM_SET_USER_MEMORY_REGION, KVM_X86_SET_MSR_FILTER,
};
use virtio_devices::vhost_requests;
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// An ioctl request and its name.
pub(super) struct Request {
    pub(super) name: &'static str,
    pub(super) number: u32,
}

impl From<vhost_requests::Request> for Request {
    fn from((name, number): vhost_requests::Request) -> Self {
        Self { name, number }
    }
}

/// A request that `kvm_hyperv` makes, or whose number it exports.
const fn known(name: &'static str, number: u32) -> Request {
    Request { name, number }
}

const fn request<T>(name: &'static str, direction: u32, number: u32) -> Request {
    let size = size_of::<T>();
    #[expect(clippy::cast_possible_truncation, reason = "both have at most 32 bits")]
    let number = ioctl_expr(direction, KVMIO, number, size as u32) as u32;
    Request { name, number }
}

/// Runs a vCPU. Listed first wherever it is allowed, since filters check in order.
const RUN: Request = request::<()>("KVM_RUN", _IOC_NONE, 0x80);
const GET_MSRS: Request = known("KVM_GET_MSRS", KVM_GET_MSRS);
const GET_REGS: Request = request::<kvm_regs>("KVM_GET_REGS", _IOC_READ, 0x81);
const GET_SREGS: Request = request::<kvm_sregs>("KVM_GET_SREGS", _IOC_READ, 0x83);
const SET_USER_MEMORY_REGION: Request =
    known("KVM_SET_USER_MEMORY_REGION", KVM_SET_USER_MEMORY_REGION);

/// What a vCPU's thread asks of its vCPU while the guest runs.
pub(super) const OF_VCPUS: [Request; 7] = [
    RUN,
    GET_MSRS,
    // For the flight recorder.
    GET_REGS,
    GET_SREGS,
    request::<kvm_lapic_state>("KVM_GET_LAPIC", _IOC_READ, 0x8e),
    request::<kvm_mp_state>("KVM_GET_MP_STATE", _IOC_READ, 0x98),
    request::<kvm_vcpu_events>("KVM_GET_VCPU_EVENTS", _IOC_READ, 0x9f),
];

/// Requests of the bus thread on the VM.
pub(super) const OF_THE_BUS: [Request; 2] = [
    known("KVM_HYPERV_EVENTFD", KVM_HYPERV_EVENTFD),
    // To set the guest's clock.
    request::<kvm_clock_data>("KVM_GET_CLOCK", _IOC_READ, 0x7c),
];

/// Requests of the memory thread on the VM.
pub(super) const OF_THE_MEMORY: [Request; 1] = [SET_USER_MEMORY_REGION];

/// Requests that building a machine takes.
pub(super) const TO_BUILD: [Request; 23] = [
    request::<()>("KVM_CREATE_VM", _IOC_NONE, 0x01),
    known("KVM_CHECK_EXTENSION", KVM_CHECK_EXTENSION),
    request::<()>("KVM_GET_VCPU_MMAP_SIZE", _IOC_NONE, 0x04),
    request::<kvm_cpuid2>("KVM_GET_SUPPORTED_CPUID", _IOC_READ | _IOC_WRITE, 0x05),
    request::<()>("KVM_CREATE_VCPU", _IOC_NONE, 0x41),
    SET_USER_MEMORY_REGION,
    request::<()>("KVM_SET_TSS_ADDR", _IOC_NONE, 0x47),
    request::<u64>("KVM_SET_IDENTITY_MAP_ADDR", _IOC_WRITE, 0x48),
    request::<()>("KVM_CREATE_IRQCHIP", _IOC_NONE, 0x60),
    known("KVM_SET_GSI_ROUTING", KVM_SET_GSI_ROUTING),
    known("KVM_IRQFD", KVM_IRQFD),
    request::<kvm_ioeventfd>("KVM_IOEVENTFD", _IOC_WRITE, 0x79),
    request::<kvm_pit_config>("KVM_CREATE_PIT2", _IOC_WRITE, 0x77),
    GET_REGS,
    request::<kvm_regs>("KVM_SET_REGS", _IOC_WRITE, 0x82),
    GET_SREGS,
    request::<kvm_sregs>("KVM_SET_SREGS", _IOC_WRITE, 0x84),
    request::<kvm_msrs>("KVM_SET_MSRS", _IOC_WRITE, 0x89),
    known("KVM_SET_SIGNAL_MASK", KVM_SET_SIGNAL_MASK),
    request::<kvm_cpuid2>("KVM_SET_CPUID2", _IOC_WRITE, 0x90),
    request::<kvm_enable_cap>("KVM_ENABLE_CAP", _IOC_WRITE, 0xa3),
    known("KVM_GET_SUPPORTED_HV_CPUID", KVM_GET_SUPPORTED_HV_CPUID),
    known("KVM_X86_SET_MSR_FILTER", KVM_X86_SET_MSR_FILTER),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_header() {
        // In strace's format.
        assert_eq!(RUN.number, 0xae80);
        assert_eq!(GET_MSRS.number, 0xc008_ae88);
        assert_eq!(SET_USER_MEMORY_REGION.number, 0x4020_ae46);
    }
}
