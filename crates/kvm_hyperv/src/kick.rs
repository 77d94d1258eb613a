//! Getting a vCPU thread out of `KVM_RUN`.
//!
//! The kick signal is blocked in the thread and unblocked only inside `KVM_RUN`. A kick that comes
//! before the thread enters stays pending, so the next `KVM_RUN` returns at once: no kick is lost,
//! and no memory is shared with a signal handler.

use std::io;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, block_signal, clear_signal, register_signal_handler};

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn signal_error(error: &vmm_sys_util::signal::Error) -> io::Error {
    io::Error::other(error.to_string())
}

/// The kick signal: what to send to a vCPU's thread.
#[must_use]
pub fn signal_number() -> i32 {
    SIGRTMIN()
}

/// Makes the process survive kicks; once, before the first vCPU thread starts.
///
/// # Errors
/// What the kernel says.
pub fn install_handler() -> io::Result<()> {
    register_signal_handler(signal_number(), on_kick).map_err(io::Error::from)
}

/// Prepares the calling thread, which will run `vcpu`, to be kicked.
///
/// # Errors
/// What the kernel says.
pub fn prepare_thread(vcpu: &VcpuFd) -> io::Result<()> {
    match block_signal(signal_number()) {
        Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
        Err(error) => return Err(signal_error(&error)),
    }
    let kick = 1_u64 << (signal_number() - 1);
    crate::ioctl::set_signal_mask(vcpu, crate::ioctl::blocked_signals()? & !kick)
}

/// Takes the kick that ended `KVM_RUN` with `EINTR`, so that the next one does not end the same
/// way. To be called on the vCPU's thread, before it looks for work.
///
/// # Errors
/// What the kernel says.
pub fn acknowledge() -> io::Result<()> {
    clear_signal(signal_number()).map_err(|error| signal_error(&error))
}
