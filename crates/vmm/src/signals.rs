//! Signals that ask the process to end, or to write its flight recorder to the log.

use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use crate::confine::{Confinement, Thread};
use crate::control::{Cause, Control, ControlSender};
use crate::error::MachineError;
use crate::flight_recorder::Recorder;
use crate::services::Services;

/// Starts the thread that takes signals.
///
/// - `SIGTERM` and `SIGHUP` ask the guest to shut down, and end the machine if it does not in time, or
///   cannot be asked. A second `SIGTERM` ends it at once; a `SIGHUP` never does, for some service managers
///   send one right after `SIGTERM`.
/// - `SIGINT` ends the machine at once: somebody is waiting.
/// - `SIGUSR1` writes what the flight recorder holds to the log.
pub(crate) fn watch(
    (control, services, recorder): (ControlSender, Services, Arc<Recorder>),
    confinement: Confinement,
) -> Result<Handle, MachineError> {
    let failed = MachineError::system("cannot handle signals");
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).map_err(failed)?;
    let handle = signals.handle();
    let mut asker = Asker::default();
    Thread::Signals
        .builder()
        .spawn(move || {
            if confinement.enter(Thread::Signals).is_err() {
                return;
            }
            for signal in signals.forever() {
                if signal == SIGUSR1 {
                    tracing::warn!("flight recorder: {}", recorder.dump());
                    continue;
                }
                match asker.take(signal) {
                    Next::Nothing => {}
                    Next::End => control.send(Control::Shutdown(Cause::Signal)),
                    Next::Ask => match services.power_down() {
                        Ok(()) => control.send(Control::EndInTime),
                        Err(error) => {
                            tracing::warn!("a signal ends the machine at once, for {error}");
                            control.send(Control::Shutdown(Cause::Signal));
                        }
                    },
                }
            }
        })
        .map_err(failed)?;
    Ok(handle)
}

/// What a signal means after those before it.
#[derive(Debug, Default)]
struct Asker {
    /// The guest was asked.
    has_asked: bool,
    /// There was a `SIGTERM`.
    was_terminated: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Ask,
    End,
    Nothing,
}

impl Asker {
    const fn take(&mut self, signal: i32) -> Next {
        let again = self.was_terminated;
        self.was_terminated |= signal == SIGTERM;
        if signal == SIGINT || (signal == SIGTERM && again) {
            return Next::End;
        }
        if std::mem::replace(&mut self.has_asked, true) { Next::Nothing } else { Next::Ask }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_second_sigterm_or_a_sigint_ends_a_guest_that_was_asked() {
        let after = |signals: &[i32]| {
            let mut asker = Asker::default();
            signals.iter().map(|signal| asker.take(*signal)).last().unwrap()
        };
        assert_eq!(after(&[SIGTERM]), Next::Ask);
        assert_eq!(after(&[SIGHUP]), Next::Ask);
        assert_eq!(after(&[SIGTERM, SIGHUP]), Next::Nothing);
        assert_eq!(after(&[SIGHUP, SIGTERM]), Next::Nothing);
        assert_eq!(after(&[SIGHUP, SIGTERM, SIGTERM]), Next::End);
        assert_eq!(after(&[SIGTERM, SIGTERM]), Next::End);
        assert_eq!(after(&[SIGINT]), Next::End);
        assert_eq!(after(&[SIGTERM, SIGINT]), Next::End);
    }
}
