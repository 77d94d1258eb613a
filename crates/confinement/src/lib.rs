//! System call filters for the threads of a program, and what tells of a forbidden call.
//!
//! A program says with [`Rules`] what a kind of thread may do, compiles that to a [`Filter`], and
//! lets each thread of the kind [`Filter::apply`] it before it looks at anything hostile. Call
//! [`report_violations`] before: a forbidden call then ends the process with a line that names the
//! call and the thread.
//!
//! Nothing here happens by itself: a program that calls none of it is not confined.
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

/// Gives up, for this thread and all it starts from now on, what a program run with `execve` could
/// gain: the rights of a set-user-ID file and file capabilities.
///
/// # Errors
/// What the kernel says; Linux since 3.5 says nothing.
pub fn no_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}
