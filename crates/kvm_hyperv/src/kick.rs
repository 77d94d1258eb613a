//! Getting a vCPU thread out of `KVM_RUN`, with a signal of the caller's choice.
//!
//! The kick signal is blocked in the thread and unblocked only inside `KVM_RUN`. A kick that
//! arrives before the thread enters stays pending and makes the next `KVM_RUN` return at once. So
//! no kick is lost, and no memory is shared with a signal handler.
//!
//! A VMM that kicks its vCPUs by other means (such as a handler that sets `immediate_exit`) does
//! not need this module.

use std::io;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{block_signal, clear_signal, register_signal_handler};

/// The number of signals in the kernel's signal sets.
const SIGNALS: i32 = 64;

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn signal_error(error: &vmm_sys_util::signal::Error) -> io::Error {
    io::Error::other(error.to_string())
}

/// Makes the process survive `signal`. Call this once, before the first vCPU thread starts.
/// Replaces the signal's previous handler.
///
/// # Errors
/// `EINVAL` for a signal that cannot have a handler; otherwise the kernel's error.
pub fn install_handler(signal: i32) -> io::Result<()> {
    register_signal_handler(signal, on_kick).map_err(io::Error::from)
}

/// Prepares the calling thread, which will run `vcpu`, for kicks with `signal`. All other signals
/// that the thread blocks now stay blocked inside `KVM_RUN`.
///
/// # Errors
/// `EINVAL` if there is no such signal; otherwise the kernel's error.
pub fn prepare_thread(vcpu: &VcpuFd, signal: i32) -> io::Result<()> {
    let kick = bit(signal)?;
    match block_signal(signal) {
        Ok(()) | Err(vmm_sys_util::signal::Error::SignalAlreadyBlocked(_)) => {}
        Err(error) => return Err(signal_error(&error)),
    }
    crate::ioctl::set_signal_mask(vcpu, crate::ioctl::blocked_signals()? & !kick)
}

/// Consumes the kick that ended `KVM_RUN` with `EINTR`, so that it does not end the next one as
/// well. Call this on the vCPU's thread, before looking for work.
///
/// # Errors
/// The kernel's error.
pub fn acknowledge(signal: i32) -> io::Result<()> {
    clear_signal(signal).map_err(|error| signal_error(&error))
}

/// The signal's bit in the kernel's sets.
fn bit(signal: i32) -> io::Result<u64> {
    match signal {
        1..=SIGNALS => Ok(1 << (signal - 1)),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::bit;

    #[test]
    fn a_signal_has_a_place_in_the_set_or_is_none() {
        assert_eq!(bit(1).unwrap(), 1);
        assert_eq!(bit(64).unwrap(), 1 << 63);
        for none in [i32::MIN, -1, 0, 65] {
            assert_eq!(bit(none).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{none}");
        }
    }
}
