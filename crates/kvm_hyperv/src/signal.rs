//! `HvSignalEvent` straight to an eventfd, without an exit to the VMM.

use std::io;

use kvm_bindings::{KVM_HYPERV_EVENTFD_DEASSIGN, kvm_hyperv_eventfd};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use crate::ioctl::{hyperv_eventfd, raw_fd};

/// Lets the guest's signals on `connection_id` go to `eventfd`.
///
/// # Errors
/// `EEXIST` where the connection has one already; `EINVAL` above 24 bits.
pub fn assign(vm: &VmFd, connection_id: u32, eventfd: &EventFd) -> io::Result<()> {
    let assignment =
        kvm_hyperv_eventfd { conn_id: connection_id, fd: raw_fd(eventfd), ..Default::default() };
    hyperv_eventfd(vm, &assignment)
}

/// Takes the eventfd away from `connection_id`; signals then exit to the VMM.
///
/// # Errors
/// `ENOENT` where it has none.
pub fn deassign(vm: &VmFd, connection_id: u32) -> io::Result<()> {
    let assignment = kvm_hyperv_eventfd {
        conn_id: connection_id,
        flags: KVM_HYPERV_EVENTFD_DEASSIGN,
        fd: -1,
        ..Default::default()
    };
    hyperv_eventfd(vm, &assignment)
}
