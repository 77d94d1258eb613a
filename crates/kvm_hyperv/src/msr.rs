//! The Hyper-V MSRs that a VMM reads itself. KVM handles all others.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `HV_X64_MSR_GUEST_OS_ID`: the guest's identity as it states it (TLFS 2.6); zero until it has.
const GUEST_OS_ID: u32 = 0x4000_0000;

/// The guest OS ID, one for the whole VM. Call this on the vCPU's thread.
///
/// # Errors
/// The kernel's error.
pub fn guest_os_id(vcpu: &VcpuFd) -> io::Result<u64> {
    read(vcpu, [GUEST_OS_ID]).map(|[id]| id)
}

/// Reads MSRs.
pub(crate) fn read<const N: usize>(vcpu: &VcpuFd, indices: [u32; N]) -> io::Result<[u64; N]> {
    let entries = indices.map(|index| kvm_msr_entry { index, ..Default::default() });
    let mut msrs =
        Msrs::from_entries(&entries).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let read = vcpu.get_msrs(&mut msrs)?;
    let values: Vec<_> = msrs.as_slice().iter().take(read).map(|entry| entry.data).collect();
    values.try_into().map_err(|_| io::ErrorKind::Unsupported.into())
}
