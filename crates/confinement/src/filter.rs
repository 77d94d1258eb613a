//! Rules as a program for the kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch,
};
use thiserror::Error;

use crate::rules::{Check, Rules};
use crate::violation;

/// What becomes of a forbidden call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The thread gets SIGSYS instead; see [`report_violations`](crate::report_violations).
    Enforce,
    /// It is made, and the kernel writes it to its audit log, where `dmesg` or `ausearch` finds it.
    Log,
}

/// Rules cannot be made a filter.
#[derive(Debug, Error)]
#[error("the rules for the thread '{thread}' cannot be made a filter")]
pub struct CompileError {
    /// The kind of thread.
    pub thread: &'static str,
    /// What is wrong with them.
    #[source]
    pub source: BackendError,
}

/// The kernel does not take a filter.
#[derive(Debug, Error)]
#[error("the kernel takes no system call filter for the thread '{thread}'")]
pub struct ApplyError {
    /// The kind of thread.
    pub thread: &'static str,
    /// What it says.
    #[source]
    pub source: seccompiler::Error,
}

/// What a kind of thread may do, as the kernel takes it.
#[derive(Clone, Debug)]
pub struct Filter {
    thread: &'static str,
    /// For one call the strictest answer of all programs counts; the last one allows no more
    /// programs to be added where the rules do not.
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Compiles `rules`; `thread` names the kind of thread in messages.
    ///
    /// # Errors
    /// The rules are too many, or name an argument that no call has.
    pub fn compile(thread: &'static str, rules: &Rules, mode: Mode) -> Result<Self, CompileError> {
        Self::programs(rules, mode)
            .map(|programs| Self { thread, programs })
            .map_err(|source| CompileError { thread, source })
    }

    /// Confines the calling thread, and every thread that it starts from now on, for ever. It also
    /// sets `no_new_privs` as [`no_new_privileges`](crate::no_new_privileges) does.
    ///
    /// # Errors
    /// The kernel has no seccomp, or another filter forbids to add one.
    pub fn apply(&self) -> Result<(), ApplyError> {
        violation::set_thread(self.thread);
        self.programs
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program))
            .map_err(|source| ApplyError { thread: self.thread, source })
    }

    fn programs(rules: &Rules, mode: Mode) -> Result<Vec<BpfProgram>, BackendError> {
        let otherwise = match mode {
            Mode::Enforce => SeccompAction::Trap,
            Mode::Log => SeccompAction::Log,
        };
        let mut programs = Vec::new();
        let mut allowed = Chains::new();
        for (call, ways) in &rules.calls {
            let chain = allowed.entry(call.id().into()).or_default();
            for way in ways.iter().flatten() {
                chain.push(rule(&way.checks)?);
            }
        }
        for refusal in &rules.refusals {
            let chain = chain_of(&refusal.way.checks)?;
            let number = i64::from(refusal.call.id());
            // What is to fail must not be forbidden: that would count for more.
            match allowed.get_mut(&number) {
                Some(ways) if ways.is_empty() => {}
                Some(ways) if chain.is_empty() => ways.clear(),
                Some(ways) => ways.extend(chain.iter().cloned()),
                None => drop(allowed.insert(number, chain.clone())),
            }
            if mode == Mode::Enforce {
                let errno = SeccompAction::Errno(refusal.errno.unsigned_abs());
                let refused = Chains::from([(number, chain)]);
                programs.push(program(refused, SeccompAction::Allow, errno)?);
            }
        }
        programs.push(program(allowed, otherwise, SeccompAction::Allow)?);
        Ok(programs)
    }
}

/// The ways each call may be made; none stands for any arguments.
type Chains = BTreeMap<i64, Vec<SeccompRule>>;

fn program(
    calls: Chains,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(calls, otherwise, action, TargetArch::x86_64)?.try_into()
}

fn chain_of(checks: &[Check]) -> Result<Vec<SeccompRule>, BackendError> {
    if checks.is_empty() { Ok(Vec::new()) } else { Ok(vec![rule(checks)?]) }
}

fn rule(checks: &[Check]) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(checks.iter().map(Check::condition).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use syscalls::Sysno;

    #[test]
    fn a_condition_on_an_argument_that_no_call_has_is_an_error() {
        let rules = Rules::new().allow_where(Sysno::ioctl, "x", [Check::is(6, 0)]);
        let error = Filter::compile("t", &rules, Mode::Enforce).unwrap_err();
        assert!(error.to_string().contains("'t'"), "{error}");
    }

    #[test]
    fn calls_that_fail_take_a_program_of_their_own_where_rules_are_enforced() {
        let rules =
            Rules::new().allow([Sysno::write]).refuse(Sysno::clone3, "any", [], libc::ENOSYS);
        let count = |mode| Filter::compile("t", &rules, mode).unwrap().programs.len();
        assert_eq!((count(Mode::Enforce), count(Mode::Log)), (2, 1));
    }
}
