//! The Hyper-V MSRs that a VMM reads itself. KVM handles all others.

use std::io;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

/// `HV_X64_MSR_GUEST_OS_ID`: what the guest says it is (TLFS 2.6); zero before it has.
const GUEST_OS_ID: u32 = 0x4000_0000;

/// The guest's own word on what it is, for the whole VM. To be called on the vCPU's thread.
///
/// # Errors
/// What the kernel says.
pub fn guest_os_id(vcpu: &VcpuFd) -> io::Result<u64> {
    let entry = kvm_msr_entry { index: GUEST_OS_ID, ..Default::default() };
    let mut msrs =
        Msrs::from_entries(&[entry]).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    let read = vcpu.get_msrs(&mut msrs)?;
    match msrs.as_slice().first() {
        Some(entry) if read == 1 => Ok(entry.data),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
