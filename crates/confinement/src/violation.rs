//! Reporting a forbidden call.

// UNSAFETY: a signal handler gets a raw pointer to the kernel's description of the signal.
#![expect(
    unsafe_code,
    reason = "the number of the call stands in a structure behind a raw pointer"
)]

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::OnceLock;

use syscalls::Sysno;
use vmm_sys_util::signal::register_signal_handler;

/// Exit status of a process that made a forbidden call, as a shell reports SIGSYS.
pub const VIOLATION_STATUS: i32 = 128 + libc::SIGSYS;

/// `si_code` of a SIGSYS raised by a filter (Linux `include/uapi/asm-generic/siginfo.h`).
const SYS_SECCOMP: i32 = 1;

/// Maximum length of the message in bytes; longer ones are truncated.
const MESSAGE_MAX: usize = 400;

static ADVICE: OnceLock<&'static str> = OnceLock::new();

thread_local! {
    // Constant and without a destructor, so a signal handler can read it.
    static THREAD: Cell<&'static str> = const { Cell::new("new") };
}

/// Records the kind of the calling thread.
pub(crate) fn set_thread(name: &'static str) {
    THREAD.set(name);
}

/// Makes a forbidden call end the process with [`VIOLATION_STATUS`] and a line on stderr that names
/// the call and the kind of thread and ends with `advice`. Otherwise SIGSYS ends the process
/// silently. The filters must allow `write` and `exit_group`.
///
/// # Errors
/// The kernel's error.
pub fn report_violations(advice: &'static str) -> io::Result<()> {
    ADVICE.get_or_init(|| advice);
    register_signal_handler(libc::SIGSYS, on_violation).map_err(io::Error::from)
}

/// The layout of `siginfo_t` for SIGSYS.
#[repr(C)]
struct SystemCallInfo {
    signal: i32,
    error: i32,
    code: i32,
    address: *const libc::c_void,
    call: i32,
    architecture: u32,
}

/// Async-signal-safe: takes no lock and allocates nothing.
extern "C" fn on_violation(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole `siginfo_t`, which is larger than
    // the structure, equally aligned, and has this layout in front for SIGSYS.
    let info = unsafe { info.cast::<SystemCallInfo>().read() };
    let mut text = Message { bytes: [0; MESSAGE_MAX], length: 0 };
    // Fails only if the buffer is full.
    let _ = describe(&mut text, &info);
    let _ = text.write_all(b"\n");
    let _ =
        rustix::io::write(rustix::stdio::stderr(), text.bytes.get(..text.length).unwrap_or(b""));
    signal_hook::low_level::exit(VIOLATION_STATUS)
}

fn describe(text: &mut Message, info: &SystemCallInfo) -> io::Result<()> {
    let thread = THREAD.get();
    if info.code != SYS_SECCOMP {
        return write!(text, "somebody sent this process SIGSYS (its thread '{thread}')");
    }
    let name = usize::try_from(info.call).ok().and_then(Sysno::new);
    let name = name.map_or("unknown", |name| name.name());
    let number = info.call;
    write!(text, "forbidden system call {name} ({number}) in the thread '{thread}'")?;
    ADVICE.get().map_or(Ok(()), |advice| write!(text, ": {advice}"))
}

struct Message {
    bytes: [u8; MESSAGE_MAX],
    length: usize,
}

impl Write for Message {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.bytes.get_mut(self.length..).unwrap_or_default();
        let written = room.write(bytes)?;
        self.length += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(code: i32, call: i32) -> String {
        let mut text = Message { bytes: [0; MESSAGE_MAX], length: 0 };
        let address = std::ptr::null();
        let (signal, architecture) = (libc::SIGSYS, 0);
        let info = SystemCallInfo { signal, error: 0, code, address, call, architecture };
        describe(&mut text, &info).unwrap();
        String::from_utf8(text.bytes[..text.length].to_vec()).unwrap()
    }

    #[test]
    fn calls_are_named_and_signals_told_apart() {
        let text = message(SYS_SECCOMP, 41);
        assert_eq!(text, "forbidden system call socket (41) in the thread 'new'");
        assert!(message(SYS_SECCOMP, -1).contains("unknown (-1)"));
        assert!(message(0, 41).contains("somebody sent"));
    }

    #[test]
    fn a_long_message_is_cut() {
        let mut text = Message { bytes: [0; MESSAGE_MAX], length: 0 };
        assert!(text.write_all(&[b'x'; 500]).is_err());
        assert_eq!(text.length, MESSAGE_MAX);
    }

    #[test]
    fn the_structure_fits_into_the_kernels() {
        assert!(size_of::<SystemCallInfo>() <= size_of::<libc::siginfo_t>());
        assert!(align_of::<SystemCallInfo>() <= align_of::<libc::siginfo_t>());
    }
}
