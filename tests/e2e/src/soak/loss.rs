//! Tells a guest that the emulation lost from one that `hvb` lost.
//!
//! QEMU's emulation of SVM occasionally loses a guest: the guest hangs or takes a triple fault.
//! Every other failure is `hvb`'s, and so are these two if nothing is emulated or if they recur
//! with the same steps.

use std::fmt;
use std::time::{Duration, Instant};

use crate::{PATIENCE, Vm};

/// The variable that marks an emulated machine; set by the program that starts the machine.
const EMULATED: &str = "HVB_EMULATED";

/// How long a guest may take to answer a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);

/// What a kernel prints when it dies of something it noticed itself.
const LAST_WORDS: [&str; 4] = ["Kernel panic", "Oops", "BUG:", "general protection"];

/// How the guest was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// It neither answers nor prints a reason.
    Silence,
    /// It reset itself without printing anything.
    TripleFault,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silence => "the guest hangs",
            Self::TripleFault => "the guest took a triple fault",
        })
    }
}

/// How the emulation lost the guest of this machine; `None` if it did not, or if the machine is not
/// emulated. `said` is the guest's output since it last started to boot.
pub(super) fn find(vm: &mut Vm, said: &str) -> Option<Loss> {
    std::env::var_os(EMULATED)?;
    // `hvb` itself must be in order.
    if vm.exit_status().ok()?.is_some() {
        return None;
    }
    let mut monitor = vm.connect().ok()?;
    monitor.execute("query-status", qmp::Value::Null).ok()?;
    let complaints = vm.complaints().ok()?;
    judge(&complaints, said, || answers(vm))
}

fn judge(complaints: &str, said: &str, answers: impl FnOnce() -> bool) -> Option<Loss> {
    if LAST_WORDS.iter().any(|words| said.contains(words)) {
        return None;
    }
    let (faults, others): (Vec<_>, Vec<_>) =
        complaints.lines().partition(|line| line.contains("triple fault"));
    match (faults.is_empty(), others.is_empty()) {
        (_, false) => None,
        (false, true) => Some(Loss::TripleFault),
        (true, true) => (!answers()).then_some(Loss::Silence),
    }
}

/// Whether the agent answers a question. The answer to an earlier one may come first.
fn answers(vm: &mut Vm) -> bool {
    let deadline = Instant::now() + SIGN_OF_LIFE.min(PATIENCE);
    vm.agent.tell("ping").is_ok() && !matches!(vm.agent.answer_until(deadline), Ok(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: &str = "WARN the guest reset itself by a triple fault vcpu=1\n";

    #[test]
    fn a_silent_end_is_a_loss() {
        assert_eq!(judge("", "", || false), Some(Loss::Silence));
        assert_eq!(judge(FAULT, "", || true), Some(Loss::TripleFault));
    }

    #[test]
    fn whatever_else_is_wrong_is_no_loss() {
        assert_eq!(judge("", "", || true), None);
        assert_eq!(judge("", "Kernel panic - not syncing", || false), None);
        assert_eq!(judge(FAULT, "Kernel panic - not syncing", || false), None);
        assert_eq!(judge("WARN the guest's balloon driver: x\n", "", || false), None);
        assert_eq!(judge(&format!("{FAULT}WARN the device\n"), "", || false), None);
    }
}
