//! System calls that the kernel refuses, for testing the effects of failures on the host.
//!
//! A seccomp filter answers the call with an error before the kernel handles it, so the tests
//! exercise the code as it is, without a seam made for the test. A filter stays with its thread for
//! good and is inherited by the threads that it starts. Threads that existed before are free of it,
//! and can later repeat what failed.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_long};
use std::panic;
use std::thread;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, apply_filter_all_threads,
};

/// A system call to fail.
#[derive(Clone, Debug)]
pub struct Refusal {
    call: c_long,
    errno: c_int,
    conditions: Vec<SeccompCondition>,
}

impl Refusal {
    /// Refuses `call`, a `libc::SYS_…`, with `errno`.
    #[must_use]
    pub fn of(call: c_long, errno: c_int) -> Self {
        Self { call, errno, conditions: Vec::new() }
    }

    /// Only if argument number `index`, counted from 0, has this value.
    #[must_use]
    pub fn with_argument(self, index: u8, value: u64) -> Self {
        self.condition(index, SeccompCmpOp::Eq, value)
    }

    /// Only if argument number `index` has this bit, or all of these bits.
    #[must_use]
    pub fn with_flag(self, index: u8, flag: u64) -> Self {
        self.condition(index, SeccompCmpOp::MaskedEq(flag), flag)
    }

    fn condition(mut self, index: u8, operator: SeccompCmpOp, value: u64) -> Self {
        let length = SeccompCmpArgLen::Qword;
        let condition = SeccompCondition::new(index, length, operator, value);
        self.conditions.push(condition.expect("calls have six arguments"));
        self
    }

    fn program(&self) -> BpfProgram {
        let rules = match self.conditions.is_empty() {
            true => Vec::new(),
            false => vec![SeccompRule::new(self.conditions.clone()).expect("has conditions")],
        };
        let errno = SeccompAction::Errno(self.errno.unsigned_abs());
        let arch = std::env::consts::ARCH.try_into().expect("an architecture with seccomp");
        let rules = BTreeMap::from([(self.call, rules)]);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch);
        filter.and_then(BpfProgram::try_from).expect("a filter of few instructions")
    }
}

/// Runs `body` on a thread for which, and for whose own threads, the kernel refuses these calls.
///
/// # Panics
/// If `body` panics, or the system has no seccomp.
pub fn with<T: Send>(refusals: &[Refusal], body: impl FnOnce() -> T + Send) -> T {
    let filtered = || {
        for refusal in refusals {
            apply_filter(&refusal.program()).expect("a seccomp filter for this thread");
        }
        body()
    };
    let result = thread::scope(|scope| scope.spawn(filtered).join());
    result.unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// Makes the kernel refuse these calls to all threads of this process, from now to its end. For a
/// test program with one test.
///
/// # Panics
/// If the system has no seccomp.
pub fn from_now_on(refusals: &[Refusal]) {
    for refusal in refusals {
        apply_filter_all_threads(&refusal.program()).expect("a seccomp filter for all threads");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io;

    #[test]
    fn calls_fail_on_the_thread_and_on_those_it_starts_and_nowhere_else() {
        let open = || File::open("/dev/null").map_err(|error| error.raw_os_error());
        let refused = with(&[Refusal::of(libc::SYS_openat, libc::EMFILE)], || {
            [open(), thread::spawn(open).join().unwrap()].map(Result::err)
        });
        assert_eq!(refused, [Some(Some(libc::EMFILE)); 2]);
        assert!(open().is_ok());
    }

    #[test]
    fn only_what_meets_all_conditions_fails() {
        let close_on_exec = u64::try_from(libc::O_CLOEXEC).unwrap();
        let refusal = |flag| {
            Refusal::of(libc::SYS_openat, libc::EIO)
                .with_argument(0, u64::from(libc::AT_FDCWD.cast_unsigned()))
                .with_flag(2, flag)
        };
        let open = || File::open("/dev/null").is_ok();
        assert!(!with(&[refusal(close_on_exec)], open));
        assert!(with(&[refusal(close_on_exec | 2)], open));
        let error = with(&[refusal(close_on_exec)], || File::open("/dev/null").unwrap_err());
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let _: io::Error = error;
    }
}
