//! Delivery of `HvSignalEvent` straight to an eventfd, without an exit to the VMM.

use std::io;

use kvm_bindings::{KVM_HYPERV_EVENTFD_DEASSIGN, kvm_hyperv_eventfd};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::ioctl::{hyperv_eventfd, raw_fd};

/// Directs the guest's signals on `connection_id` to `eventfd`.
///
/// # Errors
/// `EEXIST` if the connection already has one; `EINVAL` for more than 24 bits.
pub fn assign(vm: &VmFd, connection_id: u32, eventfd: &EventFd) -> io::Result<()> {
    let assignment =
        kvm_hyperv_eventfd { conn_id: connection_id, fd: raw_fd(eventfd), ..Default::default() };
    hyperv_eventfd(vm, &assignment)
}

/// Takes the eventfd of `connection_id` away; signals then exit to the VMM.
///
/// # Errors
/// `ENOENT` if it has none.
pub fn deassign(vm: &VmFd, connection_id: u32) -> io::Result<()> {
    let assignment = kvm_hyperv_eventfd {
        conn_id: connection_id,
        flags: KVM_HYPERV_EVENTFD_DEASSIGN,
        fd: -1,
        ..Default::default()
    };
    hyperv_eventfd(vm, &assignment)
}
