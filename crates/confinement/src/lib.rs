//! System call filters for the threads of a program, and a report of forbidden calls.
//!
//! A program states in [`Rules`] what a kind of thread may do and compiles them to a [`Filter`].
//! Each thread of that kind calls [`Filter::apply`] before it handles hostile input. Call
//! [`report_violations`] first: a forbidden call then ends the process with a line that names the
//! call and the thread.
//!
//! Nothing happens automatically: a program that does not call these functions is not confined.
//!
//! ```
//! use confinement::{Filter, Mode, Rules, Sysno};
//!
//! let rules = Rules::new().allow([Sysno::write, Sysno::futex, Sysno::exit, Sysno::munmap]);
//! let filter = Filter::compile("worker", &rules, Mode::Enforce)?;
//! # let _ = filter;
//! # Ok::<(), confinement::CompileError>(())
//! ```

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "the filters are written for Linux on x86_64: other architectures have other system calls"
);

mod filter;
mod rules;
mod violation;

pub use filter::{ApplyError, CompileError, Filter, Mode};
pub use rules::{Check, Rules};
pub use syscalls::Sysno;
pub use violation::{VIOLATION_STATUS, report_violations};

use std::io;

/// Sets `no_new_privs` for this thread and all threads it starts from now on: a program run with
/// `execve` then gains no rights from a set-user-ID file or file capabilities.
///
/// # Errors
/// The kernel's error; Linux 3.5 and later do not fail.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}
