//! Compiling rules to a seccomp program.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch,
};
use thiserror::Error;

use crate::rules::{Check, Rules};
use crate::violation;

/// The effect of a forbidden call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The call is not made and the thread gets SIGSYS; see
    /// [`report_violations`](crate::report_violations).
    Enforce,
    /// The call succeeds, and the kernel writes it to its audit log, where `dmesg` or `ausearch`
    /// finds it.
    Log,
}

/// The rules cannot be compiled to a filter.
#[derive(Debug, Error)]
#[error("the rules for the thread '{thread}' cannot be made a filter")]
pub struct CompileError {
    /// The kind of thread.
    pub thread: &'static str,
    /// The reason.
    #[source]
    pub source: BackendError,
}

/// The kernel does not accept a filter.
#[derive(Debug, Error)]
#[error("the kernel takes no system call filter for the thread '{thread}'")]
pub struct ApplyError {
    /// The kind of thread.
    pub thread: &'static str,
    /// The kernel's error.
    #[source]
    pub source: seccompiler::Error,
}

/// The compiled rules for a kind of thread.
#[derive(Clone, Debug)]
pub struct Filter {
    thread: &'static str,
    /// For each call, the strictest result of all programs counts. The last program forbids adding
    /// more programs, unless the rules allow it.
    programs: Vec<BpfProgram>,
}

impl Filter {
    /// Compiles `rules`; `thread` names the kind of thread in messages.
    ///
    /// # Errors
    /// There are too many rules, or a rule names an argument that does not exist.
    pub fn compile(thread: &'static str, rules: &Rules, mode: Mode) -> Result<Self, CompileError> {
        Self::programs(rules, mode)
            .map(|programs| Self { thread, programs })
            .map_err(|source| CompileError { thread, source })
    }

    /// Permanently confines the calling thread and every thread that it starts from now on. It also
    /// sets `no_new_privs`, as [`no_new_privileges`](crate::no_new_privileges) does.
    ///
    /// # Errors
    /// The kernel has no seccomp, or another filter forbids adding one.
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
            // A call that must fail with an error must not be forbidden too, because the stricter
            // result wins.
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

/// The permitted argument checks of each call; an empty list permits any arguments.
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
