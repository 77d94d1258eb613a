//! The Hyper-V ioctls that `kvm-ioctls` does not wrap.

// UNSAFETY: ioctls take raw pointers.
#![expect(unsafe_code, reason = "ioctls take raw pointers")]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{CpuId, kvm_hyperv_eventfd};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_ref};

use crate::ioctl_numbers::{KVM_GET_SUPPORTED_HV_CPUID, KVM_HYPERV_EVENTFD, KVM_SET_SIGNAL_MASK};

/// Room for the leaves KVM returns: ten in Linux 6.12.
const MAX_HV_LEAVES: usize = 32;

/// Everything that KVM can offer in Hyper-V leaves: a maximum, not a table for a guest. `fd` is a
/// vCPU, or with `KVM_CAP_SYS_HYPERV_CPUID` KVM itself.
pub(crate) fn supported_hv_cpuid(fd: &impl AsRawFd) -> io::Result<CpuId> {
    let mut leaves =
        CpuId::new(MAX_HV_LEAVES).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let pointer = leaves.as_mut_fam_struct_ptr();
    // SAFETY: the structure has room for the number of entries that it states; the kernel writes at
    // most that many and then corrects the number.
    let result = unsafe { ioctl_with_mut_ptr(fd, KVM_GET_SUPPORTED_HV_CPUID.into(), pointer) };
    check(result)?;
    Ok(leaves)
}

/// Assigns an eventfd to a connection, or takes it away.
pub(crate) fn hyperv_eventfd(vm: &VmFd, assignment: &kvm_hyperv_eventfd) -> io::Result<()> {
    // SAFETY: the kernel only reads the structure.
    let result = unsafe { ioctl_with_ref(vm, KVM_HYPERV_EVENTFD.into(), assignment) };
    check(result)
}

/// `kvm_signal_mask` with its trailing set: the kernel's signal sets have 64 bits.
#[repr(C)]
struct SignalMask {
    len: u32,
    blocked: [u8; 8],
}

/// Sets the signals that are blocked while the vCPU is in `KVM_RUN`; bit n−1 stands for signal n.
pub(crate) fn set_signal_mask(vcpu: &VcpuFd, blocked: u64) -> io::Result<()> {
    let mask = SignalMask { len: 8, blocked: blocked.to_ne_bytes() };
    // SAFETY: the kernel reads `len` and then that many bytes after it, all inside the structure.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK.into(), &mask) };
    check(result)
}

/// The signals that this thread blocks, in the same form.
pub(crate) fn blocked_signals() -> io::Result<u64> {
    let mut blocked = 0_u64;
    // SAFETY: no new set is given; the old one goes to `blocked`, whose 8 bytes the call is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_BLOCK,
            std::ptr::null::<u64>(),
            &raw mut blocked,
            8_usize,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(blocked) }
}

/// A descriptor number in the kernel's type.
pub(crate) fn raw_fd(fd: &impl AsRawFd) -> i32 {
    fd.as_raw_fd()
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
